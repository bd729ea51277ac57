"""The shard files of one split, memory-mapped; each is checked against its manifest before its first sample is given.

Opening costs nothing: a file is mapped and hashed (about a second a GiB) when a sample of it is first asked for, once
a process. Samples are gathered with one copy for each file of a batch; the operating system keeps what is used often.
"""

import hashlib
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from tessera.errors import CorruptShard, ShardSetError
from tessera.shard.run_manifest import SetInfo, ShardFile, read_run_manifest, shard_files

# Shapes: B = samples asked for, T = seq_len, P = starts in all of them.
Int = NDArray[np.int64]


@dataclass(frozen=True)
class Mapped:
    """One verified shard file."""

    data: NDArray[np.uint8]
    offsets: NDArray[np.uint32]
    """[samples + 1], bytes from the start of the file."""


class Shards:
    """One split of a shard set: samples by (shard, sample). May be pickled; each process maps files of its own."""

    def __init__(self, files: list[ShardFile], *, info: SetInfo, root: Path, split: str) -> None:
        self.files = files
        self.info = info
        self.root = root
        self.split = split
        self.samples_per_shard = np.array([file.samples for file in files], dtype=np.int64)
        self._mapped: dict[int, Mapped] = {}

    @property
    def seq_len(self) -> int:
        return self.info.seq_len

    @property
    def num_samples(self) -> int:
        return int(self.samples_per_shard.sum())

    @property
    def num_tokens(self) -> int:
        """End-of-document tokens included, padding not."""
        return sum(file.tokens for file in self.files)

    @property
    def text_bytes(self) -> int:
        """UTF-8 bytes of the split's documents."""
        return sum(file.text_bytes for file in self.files)

    @property
    def num_documents(self) -> int:
        return sum(file.documents for file in self.files)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_mapped": {}}

    def gather(self, shard: Int, sample: Int) -> tuple[NDArray[Any], NDArray[np.uint16], Int]:
        """Copies samples out of their files.

        Args:
            shard: [B], index into `files`.
            sample: [B], within the shard.

        Returns:
            tokens [B, T] of the set's dtype, starts [P], and how many starts each sample has [B].

        Raises:
            CorruptShard: a file that is asked for differs from its manifest; nothing of it is given.
        """
        tokens = np.empty((len(shard), self.seq_len), np.dtype(self.info.dtype).newbyteorder("<"))
        rows = tokens.view(np.uint8)
        counts = np.empty(len(shard), np.int64)
        chosen = [(number, np.flatnonzero(shard == number)) for number in np.unique(shard)]
        parts: list[tuple[Int, NDArray[np.uint16]]] = []
        for number, where in chosen:
            mapped = self._open(int(number))
            begin = mapped.offsets[sample[where]].astype(np.int64)
            end = mapped.offsets[sample[where] + 1].astype(np.int64)
            rows[where] = sliding_window_view(mapped.data, rows.shape[1])[end - rows.shape[1]]
            counts[where], starts = _starts(mapped.data, begin)
            parts.append((where, starts))
        return tokens, _in_order(parts, counts), counts

    def _open(self, number: int) -> Mapped:
        if number not in self._mapped:
            self._mapped[number] = _map(self.files[number], path=self.root / self.files[number].file)
        return self._mapped[number]


def open_split(run_manifest: Path | str, *, split: str, shards_root: Path | str) -> Shards:
    """The shards of a split as a run's `shards.arrow` names them.

    Args:
        shards_root: the set's folder, which holds `train/` and `heldout/`.

    Raises:
        ShardSetError: the manifest cannot be read, or the split is empty.
    """
    table = read_run_manifest(Path(run_manifest))
    info = SetInfo.from_metadata(table.schema.metadata)
    files = list(shard_files(table, split=split))
    if not files:
        raise ShardSetError(f"shard set {info.name}@{info.version} has no {split} shards; write it from more documents")
    return Shards(files, info=info, root=Path(shards_root), split=split)


def _map(file: ShardFile, *, path: Path) -> Mapped:
    """Maps a shard and checks size and hash."""
    remedy = "restore the file, or write the set again: tessera shard --fresh"
    try:
        found_bytes = path.stat().st_size
    except FileNotFoundError:
        raise CorruptShard(f"shard {path} is missing; expected {file.num_bytes} bytes. {remedy}") from None
    if found_bytes != file.num_bytes:
        raise CorruptShard(f"shard {path} has {found_bytes} bytes, expected {file.num_bytes}. {remedy}")
    with path.open("rb") as opened:
        mapping = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    found = hashlib.sha256(mapping).hexdigest()
    if found != file.sha256:
        raise CorruptShard(f"shard {path} has SHA-256 {found}, expected {file.sha256}. {remedy}")
    data = np.frombuffer(mapping, np.uint8)
    (samples,) = np.frombuffer(mapping, "<u4", 1)
    if samples != file.samples:
        raise CorruptShard(f"shard {path} holds {samples} samples, its manifest says {file.samples}. {remedy}")
    return Mapped(data=data, offsets=np.frombuffer(mapping, "<u4", file.samples + 1, 4))


def _starts(data: NDArray[np.uint8], begin: Int) -> tuple[Int, NDArray[np.uint16]]:
    """The `starts` of the samples that begin at these bytes: how many each has, and all of them in a row.

    A sample is u32 size of `starts`; u8 `ndim << 2 | k`; their number as u8 (k = 0) or u16 (k = 1); the starts; tokens.
    """
    wide = (data[begin + 4] & 3).astype(np.int64)
    counts = data[begin + 5].astype(np.int64) + np.where(wide == 1, data[begin + 6].astype(np.int64) << 8, 0)
    within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    at = np.repeat(begin + 6 + wide, counts) + 2 * within
    return counts, np.stack([data[at], data[at + 1]], axis=1).view("<u2")[:, 0]


def _in_order(parts: list[tuple[Int, NDArray[np.uint16]]], counts: Int) -> NDArray[np.uint16]:
    """Starts, found file by file, in the order of the samples."""
    if len(parts) == 1:
        return parts[0][1]
    place = np.cumsum(counts) - counts
    ordered = np.empty(int(counts.sum()), np.uint16)
    for where, starts in parts:
        number = counts[where]
        within = np.arange(len(starts)) - np.repeat(np.cumsum(number) - number, number)
        ordered[np.repeat(place[where], number) + within] = starts
    return ordered
