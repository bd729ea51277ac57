"""What the labels of a split stand for: whole texts, and of conversations what the assistant says in them.

Bits per byte divide by the UTF-8 bytes of this, which no tokenizer or template decides: of a conversation the contents
of the assistant's messages, as far as truncation kept them. Of an answer that was cut, the labels that are left are
decoded. Costs a sorted read of the split's documents.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tessera import tables
from tessera.errors import ShardSetError
from tessera.home import Home
from tessera.lineage import ShardRecord
from tessera.shard import chat, tokenizer
from tessera.shard.read.manifest import Labels

RANGE_BYTES = 128 * 2**20
"""Text that is sorted at once; a split is read in ranges of doc_id of about this size."""
REPLACEMENT = "\ufffd"
"""What decoding gives for a character of which the last bytes were cut off."""

SHORTENED_SQL = """
SELECT doc_id, sha256, dropped_turns, cut_tokens FROM rows
WHERE split = '{split}' AND piece = 0 AND (dropped_turns > 0 OR cut_tokens > 0)
"""

Pair = tuple[str, str]
"""doc_id and content hash."""


@dataclass(frozen=True)
class _Shortened:
    dropped_turns: int
    cut_tokens: int


def all_count(record: ShardRecord) -> bool:
    """Whether every token of a set is a label, as in one of texts."""
    return all(source.tokens == source.loss_tokens for source in record.sources)


def count(home: Home, record: ShardRecord, *, split: str) -> Labels:
    """The labels of a split of packed documents.

    Raises:
        ShardSetError: it holds preferences, or no label.
    """
    sql = f"SELECT sum(loss_tokens) AS tokens FROM rows WHERE split = '{split}'"
    found = tables.query(home.resolve(record.spans.path), version=record.spans.version, sql=sql)
    tokens = int(found["tokens"][0].as_py() or 0)
    text_bytes = sum(len(text.encode()) for text in texts(home, record, split=split))
    if tokens == 0 or text_bytes == 0:
        raise ShardSetError(
            f"shard set {record.name}@{record.manifest.version} has {tokens} {split} tokens that count in the loss, "
            f"for {text_bytes} bytes of text; raise shard.seq_len, so that answers fit, or give prepare more rows"
        )
    return Labels(tokens=tokens, text_bytes=text_bytes)


def texts(home: Home, record: ShardRecord, *, split: str) -> Iterator[str]:
    """What the labels of a split stand for, in order of doc_id: a text, or each of the assistant's messages.

    Raises:
        ShardSetError: the split holds preferences.
    """
    (documents,) = record.inputs
    shortened = _shortened(home, record, split=split)
    folder = home.resolve(record.tokenizer.path)
    wanted = ("sha256", "kind", "text", "messages")
    num_bytes = record.splits[split].num_bytes
    path = home.resolve(documents.path)
    for row in rows_in_order(path, version=documents.version, split=split, columns=wanted, num_bytes=num_bytes):
        if row["kind"] == "preference":
            raise ShardSetError(
                f"shard set {record.name}@{record.manifest.version} holds preferences, which are no text to predict; "
                "train and evaluate on a set of texts and conversations"
            )
        if row["messages"] is None:
            yield row["text"]
        elif (short := shortened.get((row["doc_id"], row["sha256"]))) and short.cut_tokens:
            if left := _labels_left(row, folder=folder, seq_len=record.seq_len):
                yield left
        else:
            kept = row["messages"][: len(row["messages"]) - (short.dropped_turns if short else 0)]
            yield from (message["content"] for message in kept if message["role"] == "assistant")


def rows_in_order(
    documents: Path, *, version: int, split: str, columns: Sequence[str], num_bytes: int
) -> Iterator[dict[str, Any]]:
    """The documents of a split in order of doc_id, at most about RANGE_BYTES of them in memory.

    Args:
        num_bytes: of their text, in all.
    """
    held = {field.name for field in tables.open_table(documents, version=version).schema().fields}
    names = dict.fromkeys(["doc_id", *columns])
    selected = ", ".join(name if name in held else f"NULL AS {name}" for name in names)  # format 1 has text only
    for low, high in ranges(1 << max(0, math.ceil(math.log2(max(1, num_bytes) / RANGE_BYTES)))):
        until = f" AND doc_id < '{high}'" if high is not None else ""
        where = f"split = '{split}' AND doc_id >= '{low}'{until}"
        sql = f"SELECT {selected} FROM rows WHERE {where} ORDER BY doc_id"
        for batch in tables.query(documents, version=version, sql=sql).to_batches(max_chunksize=256):
            yield from batch.to_pylist()


def ranges(parts: int) -> Iterator[tuple[str, str | None]]:
    """Bounds that cut hexadecimal hashes into `parts` (a power of two) ranges of equal size."""
    assert parts <= 1 << 32
    width = (1 << 32) // parts
    for part in range(parts):
        high = (part + 1) * width
        yield f"{part * width:08x}" if part else "", f"{high:08x}" if high < 1 << 32 else None


def _shortened(home: Home, record: ShardRecord, *, split: str) -> dict[Pair, _Shortened]:
    """The documents that truncation took something from."""
    sql = SHORTENED_SQL.format(split=split)
    found = tables.query(home.resolve(record.spans.path), version=record.spans.version, sql=sql)
    return {
        (row["doc_id"], row["sha256"]): _Shortened(row["dropped_turns"], row["cut_tokens"]) for row in found.to_pylist()
    }


def _labels_left(row: dict[str, Any], *, folder: Path, seq_len: int) -> str:
    """The text of the labels of a conversation that was cut, without a character that was cut in two."""
    loaded, renderer = _renderer(folder)
    (one,) = renderer.chats([row["messages"]], names=[row["doc_id"]], seq_len=seq_len)
    assert one.loss is not None
    return loaded.decode(one.tokens[one.loss == 1].tolist()).rstrip(REPLACEMENT)


@lru_cache(maxsize=1)
def _renderer(folder: Path) -> tuple[tokenizer.Tokenizer, chat.Renderer]:
    loaded = tokenizer.load(folder)
    return loaded, chat.Renderer(chat.load(folder), tokenizer=loaded)
