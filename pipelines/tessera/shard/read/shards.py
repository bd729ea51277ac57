"""The shard files of one split, memory-mapped; each is checked against its manifest before its first sample is given.

Opening costs nothing: a file is mapped and hashed (0.7 s a GiB) when a sample of it is first asked for, once a process.
A sample is one copy of its tokens and a slice of its starts, about two microseconds; the operating system keeps in
memory what is used often. At most MAX_MAPPED files are mapped at a time, whatever the size of the set.
"""

import hashlib
import mmap
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.errors import CorruptShard, ShardSetError
from tessera.shard.read.manifest import SetInfo, ShardFile, ShardFiles, open_manifest

MAX_MAPPED = 256
"""Mapped files of one process: each takes a file descriptor, and memory for its starts, about 3 % of its size."""

# Shapes: B = samples asked for, T = seq_len, P = starts in all of them.
Int = NDArray[np.int64]


@dataclass(frozen=True)
class Mapped:
    """One verified shard file."""

    data: NDArray[np.uint8]
    ends: list[int]
    """Where each sample ends: its tokens are in front of that."""
    starts: NDArray[np.uint16]
    """Of all samples, one after another."""
    first_start: list[int]
    """[samples + 1], where the starts of each sample begin."""


class Shards:
    """One split of a shard set: samples by (shard, sample). May be pickled; each process maps files of its own."""

    def __init__(self, files: ShardFiles, *, info: SetInfo, root: Path, split: str) -> None:
        self.files = files
        self.info = info
        self.root = root
        self.split = split
        self.samples_per_shard = files.numbers("samples")
        self._mapped: OrderedDict[int, Mapped] = OrderedDict()
        self._verified: set[int] = set()

    @property
    def seq_len(self) -> int:
        return self.info.seq_len

    @property
    def num_samples(self) -> int:
        return int(self.samples_per_shard.sum())

    @property
    def num_tokens(self) -> int:
        """End-of-document tokens included, padding not."""
        return int(self.files.numbers("tokens").sum())

    @property
    def text_bytes(self) -> int:
        """UTF-8 bytes of the split's documents."""
        return int(self.files.numbers("text_bytes").sum())

    @property
    def num_documents(self) -> int:
        return int(self.files.numbers("documents").sum())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_mapped": OrderedDict(), "_verified": set()}

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
        num_bytes = rows.shape[1]
        parts = []
        for row, (number, place) in enumerate(zip(shard.tolist(), sample.tolist(), strict=True)):
            mapped = self._open(number)
            end = mapped.ends[place]
            rows[row] = mapped.data[end - num_bytes : end]
            parts.append(mapped.starts[mapped.first_start[place] : mapped.first_start[place + 1]])
        return tokens, np.concatenate(parts), np.array([len(part) for part in parts], dtype=np.int64)

    def _open(self, number: int) -> Mapped:
        """The mapped file, verified when this process sees it for the first time."""
        if number in self._mapped:
            self._mapped.move_to_end(number)
            return self._mapped[number]
        file = self.files[number]
        mapping = _map(file, path=self.root / file.file, verify=number not in self._verified)
        self._verified.add(number)
        self._mapped[number] = _parse(mapping, samples=file.samples)
        if len(self._mapped) > MAX_MAPPED:
            self._mapped.popitem(last=False)
        return self._mapped[number]


def open_split(run_manifest: Path | str, *, split: str, shards_root: Path | str) -> Shards:
    """The shards of a split as a run's `shards.arrow` names them.

    Args:
        shards_root: the set's folder, which holds `train/` and `heldout/`.

    Raises:
        ShardSetError: the manifest cannot be read, or the split is empty.
    """
    info, files = open_manifest(Path(run_manifest), split=split)
    if not files:
        raise ShardSetError(f"shard set {info.name}@{info.version} has no {split} shards; write it from more documents")
    return Shards(files, info=info, root=Path(shards_root), split=split)


def _map(file: ShardFile, *, path: Path, verify: bool) -> mmap.mmap:
    """Maps a shard; checks its size and, with `verify`, its hash."""
    remedy = "restore the file, or write the set again: tessera shard --fresh"
    try:
        found_bytes = path.stat().st_size
    except FileNotFoundError:
        raise CorruptShard(f"shard {path} is missing; expected {file.num_bytes} bytes. {remedy}") from None
    if found_bytes != file.num_bytes:
        raise CorruptShard(f"shard {path} has {found_bytes} bytes, expected {file.num_bytes}. {remedy}")
    with path.open("rb") as opened:
        mapping = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    if verify and (found := hashlib.sha256(mapping).hexdigest()) != file.sha256:
        raise CorruptShard(f"shard {path} has SHA-256 {found}, expected {file.sha256}. {remedy}")
    return mapping


def _parse(mapping: mmap.mmap, *, samples: int) -> Mapped:
    """Finds the samples of a shard and their starts.

    A sample is u32 size of `starts`; u8 `ndim << 2 | k`; their number as u8 (k = 0) or u16 (k = 1); the starts; tokens.
    """
    data = np.frombuffer(mapping, np.uint8)
    offsets = np.frombuffer(mapping, "<u4", samples + 1, 4).astype(np.int64)
    begin = offsets[:-1]
    wide = (data[begin + 4] & 3).astype(np.int64)
    counts = data[begin + 5] + np.where(wide == 1, data[begin + 6].astype(np.int64) << 8, 0)
    first = np.concatenate([[0], np.cumsum(counts)])
    within = np.arange(first[-1]) - np.repeat(first[:-1], counts)
    at = np.repeat(begin + 6 + wide, counts) + 2 * within
    starts = np.stack([data[at], data[at + 1]], axis=1).view("<u2")[:, 0]
    return Mapped(data=data, ends=offsets[1:].tolist(), starts=starts, first_start=first.tolist())
