"""What a shard set, one of its files, or one sample holds: numbers and document ids; text only when it is asked for.

A set costs its manifest and one pass over its side table, a file one read of it. Nothing is written.
"""

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera import tables
from tessera.errors import CorruptShard, ShardSetError
from tessera.home import Home
from tessera.lineage import ShardRecord
from tessera.shard import contents, manifest, tokenizer
from tessera.shard.contents import Preferences, Sequences
from tessera.shard.read.manifest import SPLITS, ShardFile

PIECES_SQL = """
SELECT sample, start, num_tokens, piece, doc_id FROM rows
WHERE file = '{file}' {sample} ORDER BY sample, start, piece, doc_id
"""


@dataclass(frozen=True)
class SplitView:
    """One split of a set."""

    split: str
    shards: int
    num_bytes: int
    samples: int
    documents: int
    tokens: int
    padding: int

    @property
    def fill(self) -> float:
        return self.tokens / max(self.tokens + self.padding, 1)


@dataclass(frozen=True)
class SetView:
    """A set at a version."""

    record: ShardRecord
    splits: list[SplitView]
    files: list[ShardFile]


@dataclass(frozen=True)
class Piece:
    """A document, or a stretch of one, in a sample."""

    start: int
    num_tokens: int
    piece: int
    """0 for the document's first."""
    doc_id: str


@dataclass(frozen=True)
class SampleView:
    """One sample. Of a preference: its chosen answer's tokens, and how many the other has."""

    sample: int
    pieces: list[Piece]
    padding: int
    labels: int
    """Tokens that count in the loss."""
    tokens: list[int]
    """Padding left out."""
    other_tokens: int = 0
    text: str | None = None


@dataclass(frozen=True)
class FileView:
    """One shard file."""

    file: ShardFile
    columns: dict[str, str]
    samples: int
    documents: int
    fill: float
    pieces: NDArray[np.int64]
    """[S], documents or stretches of documents in each sample."""
    padding: NDArray[np.int64]
    """[S], in tokens."""


def inspect_set(home: Home, *, name: str, version: int | None = None) -> SetView:
    """What a version of a set holds, by split.

    Raises:
        ShardSetError: there is no such set or version.
    """
    record = manifest.read_record(home, name=name, version=version)
    table = manifest.read_manifest(home, name, record.manifest.version)
    files = [file for split in SPLITS for file in manifest.shard_files(table, split=split)]
    splits = []
    for split in SPLITS:
        part = [file for file in files if file.split == split]
        sums = {
            key: sum(getattr(file, key) for file in part)
            for key in ("num_bytes", "samples", "documents", "tokens", "padding")
        }
        splits.append(SplitView(split=split, shards=len(part), **sums))
    return SetView(record=record, splits=splits, files=files)


def find_file(view: SetView, wanted: str) -> ShardFile:
    """The one file whose name, or part of it, is `wanted`.

    Raises:
        ShardSetError: none, or several.
    """
    found = [file for file in view.files if file.file == wanted] or [file for file in view.files if wanted in file.file]
    if len(found) != 1:
        some = ", ".join(file.file for file in (found or view.files)[:3])
        raise ShardSetError(
            f"{len(found)} of {len(view.files)} shards of {view.record.name}@{view.record.manifest.version} are named "
            f"{wanted!r}; give more of the name of one, such as {some}"
        )
    return found[0]


def inspect_file(home: Home, view: SetView, file: ShardFile) -> FileView:
    """What one file holds.

    Raises:
        CorruptShard: it is not what the manifest says.
    """
    samples, columns = _read(home, view, file)
    pieces = np.zeros(len(samples), np.int64)
    for row in _pieces(home, view, file, sample=None):
        pieces[row["sample"]] += 1
    return FileView(
        file=file, columns=columns, samples=len(samples), documents=file.documents, pieces=pieces,
        padding=_padding(samples, view), fill=file.tokens / max(file.tokens + file.padding, 1),
    )  # fmt: skip


def inspect_sample(home: Home, view: SetView, file: ShardFile, *, sample: int, with_text: bool = False) -> SampleView:
    """One sample: which documents it is of, where each begins, its tokens, and their text if that is wanted.

    Raises:
        CorruptShard: the file is not what the manifest says.
        ShardSetError: it has no such sample.
    """
    samples, _ = _read(home, view, file)
    if not 0 <= sample < len(samples):
        raise ShardSetError(f"{file.file} has samples 0 to {len(samples) - 1}, wanted {sample}; give one of them")
    padding = int(_padding(samples, view)[sample])
    if isinstance(samples, Sequences):
        row = samples.tokens_ST[sample]
        tokens = row[: len(row) - padding].tolist()
        labels = len(tokens) if samples.loss_ST is None else int(samples.loss_ST[sample].sum())
        other = 0
    else:
        tokens, other = samples.chosen[sample].tolist(), len(samples.rejected[sample])
        labels = len(tokens) + other - 2 * int(samples.prompt_S[sample])
    rows = _pieces(home, view, file, sample=sample)
    text = tokenizer.load(home.resolve(view.record.tokenizer.path)).decode(tokens) if with_text else None
    return SampleView(
        sample=sample, padding=padding, labels=labels, tokens=tokens, other_tokens=other, text=text,
        pieces=[Piece(**{key: row[key] for key in ("start", "num_tokens", "piece", "doc_id")}) for row in rows],
    )  # fmt: skip


def as_json(view: SetView | FileView | SampleView) -> dict[str, Any]:
    """A view as plain values."""
    match view:
        case SetView():
            splits = [{**asdict(split), "fill": round(split.fill, 6)} for split in view.splits]
            return {"record": view.record.model_dump(mode="json"), "splits": splits}
        case FileView():
            return {
                **asdict(view.file), "columns": view.columns, "fill": round(view.fill, 6),
                "pieces_per_sample": view.pieces.tolist(), "padding_per_sample": view.padding.tolist(),
            }  # fmt: skip
    return asdict(view)


def _read(home: Home, view: SetView, file: ShardFile) -> tuple[Sequences | Preferences, dict[str, str]]:
    path = manifest.set_folder(home, name=view.record.name) / file.file
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CorruptShard(
            f"shard {path} cannot be read ({error.strerror}); look at all: tessera shard verify {view.record.name}"
        ) from None
    if (found := hashlib.sha256(data).hexdigest()) != file.sha256:
        raise CorruptShard(
            f"shard {path} has SHA-256 {found}, expected {file.sha256}; look at all: tessera shard verify "
            f"{view.record.name}"
        )
    return contents.parse(data, seq_len=view.record.seq_len), contents.columns_of(data)


def _padding(samples: Sequences | Preferences, view: SetView) -> NDArray[np.int64]:
    if isinstance(samples, Sequences):
        return samples.padding_S(end_id=view.record.tokenizer.end_id)
    lengths = [len(one) + len(other) for one, other in zip(samples.chosen, samples.rejected, strict=True)]
    return 2 * view.record.seq_len - np.array(lengths, np.int64)


def _pieces(home: Home, view: SetView, file: ShardFile, *, sample: int | None) -> list[dict[str, Any]]:
    spans = view.record.spans
    chosen = "" if sample is None else f"AND sample = {sample}"
    sql = PIECES_SQL.format(file=file.file, sample=chosen)
    return list(tables.query(home.resolve(spans.path), version=spans.version, sql=sql).to_pylist())
