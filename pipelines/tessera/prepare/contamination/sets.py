"""Evaluation sets, read on the driver without Spark: the hashes of their word n-grams, and what identifies them.

A text of an item gives the n-grams of its words as `duplicates.shingles` finds them, so that case, punctuation and
white space do not matter. Rows are read in batches; what stays is 8 bytes an n-gram, about 1.5 bytes a byte of text.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from tessera import lineage, tables
from tessera.errors import SourceError
from tessera.prepare.contamination.settings import DecontaminateSettings, EvaluationSetSettings
from tessera.prepare.duplicates.shingles import Uint64s, distinct, shingles

BATCH = 1000
COMPRESSED = (".gz", ".bz2", ".zst", ".lz4")
LINE = "text"
"""The one column of a plain text."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class EvaluationSet:
    """What documents are compared with."""

    name: str
    identity: str
    """SHA-256 of the contents of its files, for fingerprints."""
    ngram_words: int
    num_items: int
    num_short: int
    """Items without a single n-gram: too short to be found."""
    ngrams: Uint64s = field(repr=False)
    """Hashes of its n-grams, sorted, each once."""


def read_sets(settings: DecontaminateSettings) -> tuple[EvaluationSet, ...]:
    """Reads the evaluation sets, in the order of the settings.

    Raises:
        SourceError: a file is absent or not of its format, a column is not there, or no item is long enough.
    """
    return tuple(_read_set(one, words=settings.ngram_words) for one in settings.sets)


def identities(settings: DecontaminateSettings) -> dict[str, str]:
    """The name of each set -> SHA-256 of the contents of its file, or of its table's data files; for fingerprints.

    Raises:
        SourceError: nothing is there.
    """
    return {one.name: _identity(_path(one)) for one in settings.sets}


def _identity(path: Path) -> str:
    if not path.is_dir():
        return lineage.sha256_file(path)
    version = tables.open_table(path).version()
    hashes = sorted(lineage.sha256_file(path / name) for name in tables.data_files(path, version=version))
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def _read_set(settings: EvaluationSetSettings, *, words: int) -> EvaluationSet:
    found, num_items, num_short = [np.empty(0, np.uint64)], 0, 0
    for rows in _batches(_rows(settings)):
        texts = [list(_texts(settings, row=row)) for row in rows]
        item = np.repeat(np.arange(len(rows)), [len(some) for some in texts])
        has_ngrams = np.zeros(len(rows), bool)
        flat = pa.array([text for some in texts for text in some], pa.string())
        for part in shingles(flat, words=words, whole_if_short=False):
            has_ngrams[item[part.rows()]] = True
            found.append(distinct(part.hashes))
        num_items += len(rows)
        num_short += int(np.count_nonzero(~has_ngrams))
    if num_items == num_short:
        raise SourceError(
            f"evaluation set {settings.name}: none of {num_items} items has a text of {words} words; "
            "give other columns, or a smaller ngram_words"
        )
    return EvaluationSet(
        name=settings.name,
        identity=_identity(_path(settings)),
        ngram_words=words,
        num_items=num_items,
        num_short=num_short,
        ngrams=distinct(np.concatenate(found)),
    )


def _path(settings: EvaluationSetSettings) -> Path:
    path = Path(settings.path).expanduser()
    if not path.is_file() and not tables.exists(path):
        raise SourceError(
            f"evaluation set {settings.name}: {path} is neither a file nor a folder with a Delta table; give its path"
        )
    return path


def _rows(settings: EvaluationSetSettings) -> Iterator[Row]:
    """The items of a set, a row each.

    Raises:
        SourceError: absent, of an unknown format, or not of the format that its name says.
    """
    path = _path(settings)
    suffixes = [suffix for suffix in path.suffixes if suffix not in COMPRESSED]
    format_ = "delta" if path.is_dir() else suffixes[-1].lower() if suffixes else ""
    if format_ not in READERS:
        raise SourceError(
            f"evaluation set {settings.name}: {path} is of no known format; wanted .jsonl, .parquet, .csv, .txt or a "
            "folder with a Delta table"
        )
    try:
        yield from READERS[format_](path)
    except (pa.ArrowInvalid, OSError, ValueError) as error:  # their words may hold an item's
        raise SourceError(
            f"evaluation set {settings.name}: {path} cannot be read as {format_.removeprefix('.')} "
            f"({type(error).__name__}); mend the file, or name it by what it is"
        ) from None


def _lines(path: Path) -> Iterator[Row]:
    with pa.input_stream(path, compression="detect") as file:
        rest = b""
        while piece := file.read(2**20):
            *whole, rest = (rest + piece).split(b"\n")
            yield from ({LINE: line.decode()} for line in whole if line.strip())
        if rest.strip():
            yield {LINE: rest.decode()}


def _json_lines(path: Path) -> Iterator[Row]:
    for line in _lines(path):
        row = json.loads(line[LINE])
        if not isinstance(row, dict):
            raise ValueError("a line is no JSON object")
        yield row


def _csv(path: Path) -> Iterator[Row]:
    """All columns as they are written: a number among texts is a text."""
    options = pyarrow.csv.ParseOptions(newlines_in_values=True)
    with pa.input_stream(path, compression="detect") as file:
        names = pyarrow.csv.open_csv(file, parse_options=options).schema.names
    as_written = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()))
    with pa.input_stream(path, compression="detect") as file:
        yield from _of_batches(pyarrow.csv.open_csv(file, parse_options=options, convert_options=as_written))


def _parquet(path: Path) -> Iterator[Row]:
    with pq.ParquetFile(path) as file:
        yield from _of_batches(file.iter_batches(batch_size=BATCH))


def _delta(path: Path) -> Iterator[Row]:
    yield from _of_batches(tables.dataset(path).to_batches(batch_size=BATCH))


def _of_batches(batches: Iterable[pa.RecordBatch]) -> Iterator[Row]:
    for batch in batches:
        yield from batch.to_pylist()


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".txt": _lines,
    ".csv": _csv,
    ".parquet": _parquet,
    "delta": _delta,
}


def _batches(rows: Iterator[Row]) -> Iterator[list[Row]]:
    batch: list[Row] = []
    for row in rows:
        batch.append(row)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _texts(settings: EvaluationSetSettings, *, row: Row) -> Iterator[str]:
    """The texts of an item, those in lists one by one."""
    if missing := [name for name in settings.columns or () if name not in row]:
        raise SourceError(
            f"evaluation set {settings.name} has an item without column {missing[0]!r}; it has: {', '.join(row)}"
        )
    for name in settings.columns or row:
        values = row[name] if isinstance(row[name], list) else [row[name]]
        yield from (value for value in values if isinstance(value, str))
