"""MDS version 2: shard files that mosaicml-streaming and LitData read, byte for byte as they write them.

`shard_bytes` encodes any samples, a Python call a value. `token_shards` makes the shards of packed sequences with
array operations only: the difference is a factor of a hundred. One file is built in memory at a time.

A shard is: u32 N; u32[N + 1] absolute offsets; the column config as JSON; the samples. A sample is a u32 size for
each column of variable size, then all values, columns by name in both. Little-endian throughout.
"""

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from tessera.errors import CorruptShard, ShardSetError
from tessera.shard.format import encodings
from tessera.shard.format.compression import parse as parse_compression

VERSION = 2
SIZE_LIMIT = 2**26
MAX_BYTES = 2**32

# Shapes: S = samples, T = tokens in a sequence, P = starts in all sequences.
Tokens = NDArray[np.unsignedinteger[Any]]


def make_config(
    columns: Mapping[str, str],
    *,
    size_limit: int = SIZE_LIMIT,
    hashes: Sequence[str] = (),
    compression: str | None = None,
) -> dict[str, Any]:
    """The column config that a shard carries and an index repeats.

    Args:
        columns: name -> encoding.
        size_limit: of a shard file, in bytes.
        hashes: names of the hashes that the index holds for each file.
        compression: of the files that the index names, see `compression`; the bytes made here are those before it.

    Raises:
        ShardSetError: an encoding or a compression that is not known, or is refused.
    """
    if compression is not None:
        parse_compression(compression)
    names = sorted(columns)
    return {
        "column_encodings": [columns[name] for name in names],
        "column_names": names,
        "column_sizes": [encodings.size_of(columns[name]) for name in names],
        "compression": compression,
        "format": "mds",
        "hashes": sorted(hashes),
        "size_limit": size_limit,
        "version": VERSION,
    }


def index_entry(
    config: Mapping[str, Any],
    *,
    basename: str,
    num_bytes: int,
    samples: int,
    hashes: Mapping[str, str] | None = None,
    zip_data: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What `index.json` says of one shard file.

    Args:
        zip_data: of the compressed file: basename, bytes, hashes.
    """
    raw = {"basename": basename, "bytes": num_bytes, "hashes": dict(hashes or {})}
    return {**config, "raw_data": raw, "samples": samples, "zip_data": dict(zip_data) if zip_data else None}


def index_json(entries: Sequence[Mapping[str, Any]], **extra: Any) -> str:
    """The text of `index.json`; upstream readers pass over `extra` keys at the top."""
    return json.dumps({**extra, "shards": list(entries), "version": VERSION}, sort_keys=True)


def shard_bytes(config: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> Iterator[tuple[bytes, int]]:
    """Encodes samples, in order, into shard files of at most the config's size limit.

    A sample larger than the limit gets a file of its own; no file is ever empty.

    Yields:
        (the file's bytes, its number of samples).
    """
    encoded = [_encode_sample(config, sample) for sample in samples]
    sizes = np.array([len(sample) for sample in encoded], dtype=np.int64)
    for first, last in roll(sizes, config=config):
        yield _head(config, sizes[first:last]) + b"".join(encoded[first:last]), last - first


def token_shards(
    tokens_ST: Tokens,
    *,
    starts_P: NDArray[np.uint16],
    num_starts_S: NDArray[np.integer[Any]],
    config: Mapping[str, Any],
    loss_ST: NDArray[np.uint8] | None = None,
) -> Iterator[tuple[bytes, int]]:
    """`shard_bytes` for samples of the columns of a packed set, without a Python step a sample.

    Args:
        tokens_ST: stored as `tokens`, `ndarray:<dtype>:T`.
        starts_P: stored as `starts`, `ndarray:uint16`, one sequence after another.
        num_starts_S: how many of them each sequence has; at least one.
        loss_ST: stored as `loss`, `ndarray:uint8:T`; no such column without it.
    """
    loss_bytes = 0 if loss_ST is None else loss_ST.shape[1]
    num_bytes = tokens_ST.dtype.itemsize * tokens_ST.shape[1]
    wide_S = (num_starts_S >= 256).astype(np.int64)
    payload_S = 2 + wide_S + 2 * num_starts_S.astype(np.int64)
    sizes = 4 + loss_bytes + payload_S + num_bytes
    first_start = np.concatenate([[0], np.cumsum(num_starts_S)])
    rows = np.ascontiguousarray(tokens_ST, dtype=tokens_ST.dtype.newbyteorder("<")).view(np.uint8)
    for first, last in roll(sizes, config=config):
        part = slice(first, last)
        head = np.frombuffer(_head(config, sizes[part]), np.uint8)
        file = np.empty(len(head) + int(sizes[part].sum()), np.uint8)
        file[: len(head)] = head
        at = len(head) + np.cumsum(sizes[part]) - sizes[part]
        _put(file, at, payload_S[part].astype("<u4")[:, None].view(np.uint8))
        if loss_ST is not None:
            _put(file, at + 4, np.ascontiguousarray(loss_ST[part]))
        at = at + loss_bytes
        file[at + 4] = (1 << 2) | wide_S[part]
        counts = num_starts_S[part].astype("<u2")[:, None].view(np.uint8)
        file[at + 5] = counts[:, 0]
        wide = wide_S[part].astype(bool)
        file[at[wide] + 6] = counts[wide, 1]
        starts = starts_P[first_start[first] : first_start[last]].astype("<u2")[:, None].view(np.uint8)
        within = np.arange(len(starts)) - np.repeat(first_start[first:last] - first_start[first], num_starts_S[part])
        _put(file, np.repeat(at + 6 + wide_S[part], num_starts_S[part]) + 2 * within, starts)
        _put(file, at + 4 + payload_S[part], rows[part])
        yield file.tobytes(), last - first


def roll(sizes: NDArray[np.int64], *, config: Mapping[str, Any]) -> Iterator[tuple[int, int]]:
    """Cuts samples of these sizes, in bytes, into shards: yields (first, last + 1).

    A shard is closed before the sample that would take it over the limit; offsets count four bytes a sample.

    Raises:
        ShardSetError: a file would not fit its 32-bit offsets.
    """
    head = 8 + len(_config_bytes(config))
    ends = np.cumsum(sizes + 4)
    first = 0
    while first < len(sizes):
        before = int(ends[first - 1]) if first else 0
        last = int(np.searchsorted(ends, before + config["size_limit"] - head, side="right"))
        last = max(last, first + 1)
        if head + int(ends[last - 1]) - before >= MAX_BYTES:
            raise ShardSetError(f"sample {first} has {int(sizes[first])} bytes; MDS offsets end at {MAX_BYTES}")
        yield first, last
        first = last


def read_config(path: Path) -> dict[str, Any]:
    """The column config inside a shard file.

    Raises:
        CorruptShard: the file is absent, cut short, or not MDS.
    """
    try:
        with path.open("rb") as file:
            num_samples, begin = struct.unpack("<II", file.read(8))
            file.seek(4 + 4 * (num_samples + 1))
            config: dict[str, Any] = json.loads(file.read(begin - file.tell()))
    except (OSError, struct.error, ValueError) as error:
        raise CorruptShard(
            f"{path} is not a readable MDS shard ({type(error).__name__}); write the set again"
        ) from None
    if config.get("format") != "mds" or config.get("version") != VERSION:
        raise CorruptShard(f"{path} is not MDS version {VERSION}; write the set again")
    return config


def read_samples(path: Path) -> Iterator[dict[str, Any]]:
    """Decodes the samples of a shard file one by one: for inspection and tests; training reads by `shard.read`."""
    config = read_config(path)
    data = path.read_bytes()
    (num_samples,) = struct.unpack_from("<I", data)
    offsets = np.frombuffer(data, "<u4", num_samples + 1, 4)
    for begin, end in pairwise(offsets.tolist()):
        yield _decode_sample(config, data[begin:end])


def _config_bytes(config: Mapping[str, Any]) -> bytes:
    return json.dumps(config, sort_keys=True).encode()


def _head(config: Mapping[str, Any], sizes: NDArray[np.int64]) -> bytes:
    """Everything in front of the samples."""
    text = _config_bytes(config)
    offsets = 4 + 4 * (len(sizes) + 1) + len(text) + np.concatenate([[0], np.cumsum(sizes)])
    return struct.pack("<I", len(sizes)) + offsets.astype("<u4").tobytes() + text


def _put(file: NDArray[np.uint8], at: NDArray[np.int64], rows: NDArray[np.uint8]) -> None:
    """Writes row i of `rows`, all of one length, at byte `at[i]` of `file`."""
    if len(rows):
        sliding_window_view(file, rows.shape[1], writeable=True)[at] = rows


def _encode_sample(config: Mapping[str, Any], sample: Mapping[str, Any]) -> bytes:
    sizes, values = b"", []
    for name, encoding, size in zip(
        config["column_names"], config["column_encodings"], config["column_sizes"], strict=True
    ):
        value = encodings.encode(encoding, sample[name])
        if size is None:
            sizes += struct.pack("<I", len(value))
        values.append(value)
    return sizes + b"".join(values)


def _decode_sample(config: Mapping[str, Any], data: bytes) -> dict[str, Any]:
    at = 0
    sizes = []
    for size in config["column_sizes"]:
        if size is None:
            (size,) = struct.unpack_from("<I", data, at)
            at += 4
        sizes.append(size)
    sample = {}
    for name, encoding, size in zip(config["column_names"], config["column_encodings"], sizes, strict=True):
        sample[name] = encodings.decode(encoding, data[at : at + size])
        at += size
    return sample
