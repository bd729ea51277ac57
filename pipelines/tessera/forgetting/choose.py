"""What is looked for: stretches of the erased rows' texts, and of their tokens, that no row that stays has.

Costs a pass over the text of all documents and of the sources' newest versions.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tessera import arrow_text, erasures, tables
from tessera.forgetting.needles import Needles, Stretch, own, search_for, stretches, token_stretches
from tessera.forgetting.target import Target
from tessera.home import Home
from tessera.prepare import forget as documents
from tessera.shard import tokenizer

TOKEN_WINDOW = 12
TOKEN_WINDOWS = 256
BATCH_ROWS = 1024


def needles(home: Home, target: Target, *, dry_run: bool) -> tuple[Needles, tuple[str, ...]]:
    """What to look for, numbered by row; and the rows of which nothing can be looked for."""
    numbers = {doc_id: number for number, doc_id in enumerate(target.doc_ids)}
    candidates: list[Stretch] = []
    for doc_id, texts in target.texts.items():
        for text in dict.fromkeys(texts):
            candidates += stretches(numbers[doc_id], text=text)
    for folder in _tokenizers(home):
        encode = _encoder(folder)
        for doc_id, texts in target.texts.items():
            for text in dict.fromkeys(texts):
                candidates += token_stretches(numbers[doc_id], windows=encode(text))
    kept = own(candidates, other_texts=_other_texts(home, target, dry_run=dry_run))
    searched = {one.row for one in kept}
    return search_for(kept), tuple(
        doc_id for doc_id, number in numbers.items() if number not in searched and target.texts[doc_id]
    )


def _tokenizers(home: Home) -> list[Path]:
    return sorted(path.parent for path in home.tokenizers.glob("*/tokenizer.json"))


def _encoder(folder: Path) -> Callable[[str], Iterator[tuple[list[int], str]]]:
    """Windows of token ids over a text, with the text of each."""
    loaded = tokenizer.load(folder)

    def windows(text: str) -> Iterator[tuple[list[int], str]]:
        (ids,) = loaded.encode_batch([text])
        last = len(ids) - TOKEN_WINDOW
        stride = max(last // TOKEN_WINDOWS, 1)
        for start in range(0, last + 1, stride):
            window = list(ids[start : start + TOKEN_WINDOW])
            yield window, loaded.decode(window)

    return windows


def _other_texts(home: Home, target: Target, *, dry_run: bool) -> Iterator[Any]:
    """The texts of all rows that stay: of every version of the documents, and of the sources' newest."""
    erased = erasures.make(target.pairs)
    yield from documents.other_texts(home, erased=erased)
    ours = pa.array(sorted({text for texts in target.texts.values() for text in texts}), pa.string())
    for source in target.sources:
        if source.in_catalog or not tables.exists(Path(source.location)):
            continue
        for batch in tables.dataset(Path(source.location)).to_batches(
            columns=list(dict.fromkeys(source.settings.contents.values())), batch_size=BATCH_ROWS
        ):
            for column in batch.columns:
                if dry_run and pa.types.is_string(column.type):
                    column = column.filter(pc.invert(pc.is_in(column, value_set=ours)))
                yield from arrow_text.buffers(column)
