"""MDS folders that others wrote: their index, their shard files, and the values of one column.

Everything that the folder says is doubted: names may not leave it, sizes and hashes are compared, and a column that
would run foreign code is refused. One shard file is in memory at a time, decompressed. numpy, and pyarrow for some
compressions.
"""

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from tessera.errors import CorruptShard, ShardSetError
from tessera.shard.format import compression, encodings, mds

INDEX = "index.json"
NEEDED = (
    "column_encodings", "column_names", "column_sizes", "compression", "format", "raw_data", "samples", "version",
    "zip_data",
)  # fmt: skip
UNSAFE = "pkl"


@dataclass(frozen=True)
class FileInfo:
    """One file as the index describes it."""

    path: Path
    num_bytes: int
    hashes: Mapping[str, str]


@dataclass(frozen=True)
class ForeignShard:
    """One shard of a folder."""

    name: str
    """As the index calls it."""
    raw: FileInfo
    zipped: FileInfo | None
    compression: str | None
    samples: int
    columns: Mapping[str, str]
    """Name -> encoding, in the order of the index."""
    sizes: tuple[int | None, ...]


def read_index(folder: Path) -> list[ForeignShard]:
    """The shards of a folder, in order; folders within it, as a merged index names them, included.

    Raises:
        ShardSetError: no index, or one that is not understood: another version or format, a `pkl` column, a name that
            leads out of the folder.
    """
    path = folder / INDEX
    if not path.is_file():
        inner = sorted(found.parent.name for found in folder.glob(f"*/{INDEX}"))
        hint = f"; import each of {', '.join(inner[:5])}, or merge their indexes" if inner else "; give an MDS folder"
        raise ShardSetError(f"{folder} has no {INDEX}{hint}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ShardSetError(f"{path} cannot be read as JSON ({type(error).__name__}); write the folder again") from None
    if not isinstance(content, dict) or content.get("version") != mds.VERSION:
        found = content.get("version") if isinstance(content, dict) else type(content).__name__
        raise ShardSetError(f"{path} has version {found}, wanted {mds.VERSION}; write the folder again")
    entries = content.get("shards")
    if not isinstance(entries, list):
        raise ShardSetError(f"{path} lists no shards; write the folder again")
    return [_shard(entry, number=number, index=path) for number, entry in enumerate(entries)]


def read_shard(shard: ForeignShard) -> bytes:
    """The bytes of a shard file, decompressed, as its size and hashes in the index want them.

    Raises:
        CorruptShard: the file is missing, or differs in size or hash, or is not an MDS shard of the samples promised.
    """
    if shard.raw.path.is_file():
        data = _read(shard.raw)
    elif shard.zipped is not None and shard.compression is not None:
        try:
            data = compression.decompress(
                _read(shard.zipped), compression=shard.compression, num_bytes=shard.raw.num_bytes
            )
        except CorruptShard as error:
            raise CorruptShard(f"shard {shard.zipped.path}: {error}; write the folder again") from None
        _check_hashes(data, shard.raw)
    else:
        raise CorruptShard(f"shard {shard.raw.path} is missing; expected {shard.raw.num_bytes} bytes")
    _check_layout(data, shard)
    return data


def column(data: bytes, shard: ForeignShard, *, name: str) -> Iterator[Any]:
    """The values of one column, in order; other columns are passed over, whatever their encoding.

    Args:
        data: as `read_shard` gives it.

    Raises:
        ShardSetError: there is no such column, or its encoding is not one of ours.
        CorruptShard: a sample is shorter than its columns.
    """
    names = list(shard.columns)
    if name not in names:
        raise ShardSetError(f"shard {shard.name} has no column {name!r}, but {', '.join(names)}; name one of them")
    encoding = shard.columns[name]
    encodings.size_of(encoding)
    wanted = names.index(name)
    offsets = np.frombuffer(data, "<u4", shard.samples + 1, 4)
    for number, (begin, end) in enumerate(pairwise(offsets.tolist())):
        try:
            at, size = _place(data, shard, wanted=wanted, begin=begin, end=end)
            value = encodings.decode(encoding, data[at : at + size])
        except (struct.error, ValueError, IndexError, KeyError) as error:
            raise CorruptShard(
                f"shard {shard.name}: sample {number} has no readable column {name!r} of {encoding} "
                f"({type(error).__name__}); write the folder again"
            ) from None
        yield value


def check_hash(name: str, data: bytes) -> str | None:
    """The hex digest of `data` by a hash of hashlib or of xxhash; None where no library has it."""
    if name in hashlib.algorithms_guaranteed and not name.startswith("shake_"):
        return hashlib.new(name, data).hexdigest()
    try:
        import xxhash
    except ModuleNotFoundError:
        return None
    return str(getattr(xxhash, name)(data).hexdigest()) if name in xxhash.algorithms_available else None


def _shard(entry: Any, *, number: int, index: Path) -> ForeignShard:
    missing = [key for key in NEEDED if not isinstance(entry, dict) or key not in entry]
    if missing:
        raise ShardSetError(f"{index}: shard {number} has no {', '.join(missing)}; write the folder again")
    if entry["format"] != "mds" or entry["version"] != mds.VERSION:
        raise ShardSetError(
            f"{index}: shard {number} is {entry['format']} version {entry['version']}, wanted mds version "
            f"{mds.VERSION}; convert the folder"
        )
    if odd := _odd_key(entry):
        raise ShardSetError(f"{index}: shard {number} has a {odd} of the wrong type; write the folder again")
    names, kinds, sizes = (entry[f"column_{what}"] for what in ("names", "encodings", "sizes"))
    if not len(names) == len(kinds) == len(sizes) == len(set(names)):
        raise ShardSetError(f"{index}: shard {number} has columns that do not match; write the folder again")
    if UNSAFE in kinds:
        raise ShardSetError(
            f"{index}: column {names[kinds.index(UNSAFE)]!r} is {UNSAFE}, which runs foreign code when it is read; "
            "convert the column"
        )
    if entry["compression"] is not None:
        compression.parse(entry["compression"])
    raw = _file(entry["raw_data"], number=number, index=index)
    return ForeignShard(
        name=str(entry["raw_data"]["basename"]),
        raw=raw,
        zipped=_file(entry["zip_data"], number=number, index=index) if entry["zip_data"] else None,
        compression=entry["compression"],
        samples=entry["samples"],
        columns=dict(zip(names, kinds, strict=True)),
        sizes=tuple(size or None for size in sizes),
    )


def _odd_key(entry: Mapping[str, Any]) -> str | None:
    """The first key of an entry whose value is of a type that it cannot have."""
    lists = {"column_names": str, "column_encodings": str, "column_sizes": int | None}
    for key, kind in lists.items():
        if not isinstance(entry[key], list) or not all(isinstance(value, kind) for value in entry[key]):
            return key
    if not isinstance(entry["samples"], int):
        return "samples"
    return None if isinstance(entry["compression"], str | None) else "compression"


def _file(entry: Mapping[str, Any], *, number: int, index: Path) -> FileInfo:
    """A file of the index, whose name must stay within the folder, links included."""
    try:
        basename, num_bytes, hashes = str(entry["basename"]), int(entry["bytes"]), dict(entry["hashes"])
    except (KeyError, TypeError, ValueError):
        raise ShardSetError(f"{index}: shard {number} has no name, size and hashes; write the folder again") from None
    name = PurePosixPath(basename)
    path = index.parent / name
    outside = name.is_absolute() or ".." in name.parts or "\\" in basename or not name.parts
    if outside or not path.resolve().is_relative_to(index.parent.resolve()):
        raise ShardSetError(
            f"{index}: shard {number} is named {basename!r}, which leads out of the folder; do not trust this folder"
        )
    return FileInfo(path=path, num_bytes=num_bytes, hashes=hashes)


def _read(file: FileInfo) -> bytes:
    try:
        found = file.path.stat().st_size
        if found != file.num_bytes:
            raise CorruptShard(f"shard {file.path} has {found} bytes, expected {file.num_bytes}; copy it again")
        data = file.path.read_bytes()
    except OSError as error:
        raise CorruptShard(
            f"shard {file.path} cannot be read ({error.strerror}); expected {file.num_bytes} bytes"
        ) from None
    _check_hashes(data, file)
    return data


def _check_hashes(data: bytes, file: FileInfo) -> None:
    for name, expected in file.hashes.items():
        found = check_hash(name, data)
        if found is not None and found != expected:
            raise CorruptShard(f"shard {file.path} has {name} {found}, expected {expected}; copy it again")


def _check_layout(data: bytes, shard: ForeignShard) -> None:
    """The offsets ascend from the samples' begin to the end of the file."""
    try:
        (samples,) = struct.unpack_from("<I", data)
        offsets = np.frombuffer(data, "<u4", samples + 1, 4).astype(np.int64)
    except (struct.error, ValueError):
        raise CorruptShard(f"shard {shard.raw.path} is cut short; copy it again") from None
    if samples != shard.samples:
        raise CorruptShard(f"shard {shard.raw.path} has {samples} samples, expected {shard.samples}; copy it again")
    if offsets[0] < 4 * (samples + 2) or offsets[-1] != len(data) or (np.diff(offsets) < 0).any():
        raise CorruptShard(f"shard {shard.raw.path} has offsets that lead astray; copy it again")


def _place(data: bytes, shard: ForeignShard, *, wanted: int, begin: int, end: int) -> tuple[int, int]:
    """First byte and length of a column's value in the sample at `begin` to `end`."""
    sizes: list[int] = []
    at = begin
    for size in shard.sizes:
        if size is None:
            (size,) = struct.unpack_from("<I", data, at)
            at += 4
        sizes.append(size)
    at += sum(sizes[:wanted])
    if at + sizes[wanted] > end:
        raise ValueError
    return at, sizes[wanted]
