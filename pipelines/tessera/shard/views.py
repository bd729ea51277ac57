"""What a person reads of shard sets, fit for 80 columns: numbers and ids; text only in a sample that carries it."""

import numpy as np
from numpy.typing import NDArray
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tessera.shard.inspect import FileView, SampleView, SetView
from tessera.shard.verify import Verified

MAX_TOKENS = 64
"""Of a sample, shown unless its text is asked for."""
BARS = 10


def verified(found: Verified) -> RenderableType:
    """What was read and how fast; every damage on lines of its own."""
    speed = found.num_bytes / max(found.seconds, 1e-9) / 1e9
    head = (
        f"{found.name}@{found.version}: {found.files:,} files, {found.num_bytes:,} bytes, {found.samples:,} samples, "
        f"{found.tokens:,} tokens read in {found.seconds:.1f} s, {speed:.2f} GB/s"
    )
    if not found.damages:
        return Group(Text(head), Text("all as the manifest says"))
    lines = [Text(f"{one.file}\n  {one.what}: found {one.found}\n  expected {one.expected}") for one in found.damages]
    again = f"import --name {found.name} --fresh FOLDER" if found.imported else "--fresh"
    remedy = f"restore these files, or write the set again: tessera shard {again}"
    damaged = len({one.file for one in found.damages})
    return Group(Text(head), *lines, Text(f"{damaged} damaged; {remedy}"))


def view(shown: SetView | FileView | SampleView) -> RenderableType:
    """A set, a file or a sample."""
    match shown:
        case SetView():
            return _set(shown)
        case FileView():
            return _file(shown)
    return _sample(shown)


def _set(shown: SetView) -> RenderableType:
    record = shown.record
    packing = record.settings.get("packing", "best-fit")
    head = _facts(
        {
            "set": f"{record.name}@{record.manifest.version}, written {record.created[:19].replace('T', ' ')} UTC",
            "of": ", ".join(f"{table.name}@{table.version}" for table in record.inputs),
            "tokenizer": f"{record.tokenizer.path}, {record.tokenizer.vocab_size:,} entries",
            "sequences": f"{record.seq_len:,} tokens, packed {packing}",
        }
    )
    splits = _table("split", ">shards", ">samples", ">documents", ">tokens", ">padding", ">fill")
    for split in shown.splits:
        numbers = (split.shards, split.samples, split.documents, split.tokens, split.padding)
        splits.add_row(split.split, *(f"{number:,}" for number in numbers), f"{split.fill:.1%}")
    parts: list[RenderableType] = [head, Text(), splits]
    if record.generations:
        generations = _table(">generation", ">shards", ">documents", ">tokens", ">bytes", ">bytes a token")
        for one in record.generations:
            counts = (one.generation, one.shards, one.documents, one.tokens, one.num_bytes)
            ratio = one.num_bytes / one.tokens if one.tokens else 0.0
            generations.add_row(*(f"{number:,}" for number in counts), f"{ratio:.3f}")
        parts += [Text(), generations]
    if record.sources:
        sources = _table("source", ">documents", ">tokens", ">labels", ">truncated", ">cuts")
        for source in record.sources:
            counts = (source.documents, source.tokens, source.loss_tokens, source.truncated, source.cuts)
            sources.add_row(Text(source.source, overflow="fold"), *(f"{number:,}" for number in counts))
        parts += [Text(), sources]
    if shown.files:
        parts += [Text(), Text(f"look into one: tessera shard inspect {record.name} --shard {shown.files[0].file}")]
    return Group(*parts)


def _file(shown: FileView) -> RenderableType:
    file = shown.file
    facts = _facts(
        {
            "file": file.file,
            "SHA-256": file.sha256,
            "bytes": f"{file.num_bytes:,}",
            "cell": f"{file.split}, generation {file.generation}, bucket {file.bucket} of {file.buckets}",
            "columns": ", ".join(f"{name} {kind}" for name, kind in shown.columns.items()),
            "samples": f"{shown.samples:,}",
            "documents": f"{file.documents:,} begin here",
            "tokens": f"{file.tokens:,}, {file.padding:,} of padding, {shown.fill:.1%} full",
        }
    )
    spread = _table("documents in a sample", ">samples", "")
    numbers, counts = np.unique(shown.pieces, return_counts=True)
    for number, count in _binned(numbers, counts):
        spread.add_row(number, f"{count:,}", "#" * max(1, round(20 * count / max(int(counts.sum()), 1))))
    hint = Text(f"look into one: --shard {file.file} --sample 0", overflow="fold")
    return Group(facts, Text(), spread, Text(), hint)


def _sample(shown: SampleView) -> RenderableType:
    other = f", {shown.other_tokens:,} of the other answer" if shown.other_tokens else ""
    facts = _facts(
        {
            "sample": str(shown.sample),
            "tokens": f"{len(shown.tokens):,}{other}, {shown.padding:,} of padding",
            "labels": f"{shown.labels:,}",
        }
    )
    pieces = _table(">start", ">tokens", ">piece", "document")
    for one in shown.pieces:
        pieces.add_row(f"{one.start:,}", f"{one.num_tokens:,}", str(one.piece), one.doc_id[:48])
    if shown.text is not None:
        return Group(facts, Text(), pieces, Text(), Text(shown.text))
    tokens = " ".join(map(str, shown.tokens[:MAX_TOKENS]))
    more = f" and {len(shown.tokens) - MAX_TOKENS:,} more" if len(shown.tokens) > MAX_TOKENS else ""
    return Group(facts, Text(), pieces, Text(), Text(f"{tokens}{more}", style="dim"))


def _facts(facts: dict[str, str]) -> Table:
    grid = Table(box=None, show_header=False, pad_edge=False)
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in facts.items():
        grid.add_row(name, Text(value, overflow="fold"))
    return grid


def _table(*columns: str) -> Table:
    """A table; `>` in front of a heading puts its column to the right."""
    made = Table(box=None, pad_edge=False)
    for column in columns:
        made.add_column(column.removeprefix(">"), justify="right" if column.startswith(">") else "left", no_wrap=True)
    return made


def _binned(numbers: NDArray[np.int64], counts: NDArray[np.int64]) -> list[tuple[str, int]]:
    """At most BARS rows of a histogram."""
    if len(numbers) <= BARS:
        return [(str(number), int(count)) for number, count in zip(numbers.tolist(), counts.tolist(), strict=True)]
    edges = np.array_split(np.arange(len(numbers)), BARS)
    return [(f"{numbers[part[0]]} to {numbers[part[-1]]}", int(counts[part].sum())) for part in edges]
