"""What the model has to beat: gzip on the held-out text, and n-gram models trained on the tokens that it saw.

All in bits per byte of the same held-out text, so that they stand beside the model's own. Costs one sorted read of the
held-out documents and one pass each over the training tokens seen and the held-out tokens.

gzip: level 9, one stream; the documents in order of doc_id, each followed by one newline, which stands for the end
token that the model has to predict as well; bits = 8 * compressed bytes, header included, over the bytes of the text
without those newlines. Of conversations the assistant's messages take the place of documents: what the model has to
predict and no more, so that gzip does without the questions, which the model and the n-grams see.

n-grams: see `ngrams`. Trained on the samples with global indices [0, min(steps * batch_size, N)): after a whole epoch
a sample repeats and teaches nothing new, so each counts once. Padding counts nowhere; what is no label
is context alone.
"""

import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tessera.errors import ShardSetError
from tessera.evaluate import ngrams
from tessera.shard import labels


def gzip_bits_per_byte(texts: Iterable[str], *, text_bytes: int) -> float:
    """8 * |gzip -9 of the texts, each with a newline after it| / `text_bytes`.

    Raises:
        ShardSetError: the texts' UTF-8 bytes are not `text_bytes`: they are not what the shards were made from.
    """
    compressor = zlib.compressobj(9, zlib.DEFLATED, wbits=31)
    compressed, found = 0, 0
    for text in texts:
        encoded = text.encode()
        found += len(encoded)
        compressed += len(compressor.compress(encoded)) + len(compressor.compress(b"\n"))
    compressed += len(compressor.flush())
    if found != text_bytes:
        raise ShardSetError(
            f"the held-out documents have {found} bytes of text, the shard set says {text_bytes}; "
            "they are of different versions. Write the shards again: tessera shard"
        )
    return 8 * compressed / text_bytes


def heldout_texts(documents: Path, *, version: int, text_bytes: int) -> Iterator[str]:
    """The texts of the held-out documents in order of doc_id; of a set with conversations see `labels.texts`."""
    rows = labels.rows_in_order(documents, version=version, split="heldout", columns=("text",), num_bytes=text_bytes)
    return (row["text"] for row in rows)


def ngram_bits_per_byte(
    *,
    seen: Iterable[Mapping[str, Any]],
    heldout: Any,
    end_id: int,
    vocab_size: int,
    text_bytes: int,
) -> dict[str, float]:
    """Bits per byte of the unigram, bigram and trigram models trained on `seen`.

    Args:
        seen: training batches of numpy arrays, as `ngrams.occurrences` takes them.
        heldout: called twice for an iterator over the batches of the held-out split.
    """
    size = {"end_id": end_id, "vocab_size": vocab_size}
    contexts = ngrams.contexts_of((ngrams.occurrences(batch, **size) for batch in heldout()), vocab_size=vocab_size)
    models = ngrams.train(
        (ngrams.occurrences(batch, **size) for batch in seen), vocab_size=vocab_size, contexts=contexts
    )
    bits = dict.fromkeys(ngrams.ORDERS, 0.0)
    for batch in heldout():
        found = ngrams.probabilities(models, ngrams.occurrences(batch, **size), vocab_size=vocab_size)
        for name, chances in found.items():
            bits[name] -= float(np.log2(chances).sum())
    return {name: total / text_bytes for name, total in bits.items()}
