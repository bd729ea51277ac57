"""The samples of one split, out of shard files that are memory-mapped, or made where they are not stored.

Opening costs nothing: a file is mapped and hashed (0.7 s a GiB) when a sample of it is first asked for, once a process;
none is given before. A batch is then a few array operations over all its files: see `memory`. The operating system
keeps in memory what is used often. At most MAX_MAPPED files are held at a time, whatever the size of the set.
"""

import hashlib
import json
import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.errors import CorruptShard, ShardSetError
from tessera.shard.read.manifest import Labels, SetInfo, ShardFile, ShardFiles, open_manifest
from tessera.shard.read.memory import Bytes, Int, Memory

MAX_MAPPED = 256
"""Files that one process holds: each mapped one takes a file descriptor."""
MADE_BYTES = 2**29
"""Files made in memory that one process keeps, in bytes, unless a block of the order needs more."""

PACKED, LOSS, PAIRS = 1, 2, 3
"""What a sample of a file is: a sequence, one of which some tokens count, or a preference pair."""

# Shapes: B = samples asked for, T = seq_len, P = starts in all of them, L = tokens of the longest.
_REMEDY = "restore the file, or write the set again: tessera shard --fresh"

Make = Callable[[int], dict[int, Bytes]]
"""From a file's number, the bytes of that file and of others that come with it, as the manifest has them."""


@dataclass(frozen=True)
class Samples:
    """Packed samples, copied out of their files."""

    tokens_BT: NDArray[Any]
    """Of the set's dtype."""
    starts_P: NDArray[np.uint16]
    """Of all samples, one after another."""
    num_starts_B: Int
    loss_BT: NDArray[np.uint8] | None
    """1 where a token counts; None where all do."""


@dataclass(frozen=True)
class Side:
    """One side of preference pairs."""

    tokens_BL: NDArray[Any]
    """Of the set's dtype; what lies behind a sample's tokens means nothing."""
    lengths_B: Int


@dataclass(frozen=True)
class Pairs:
    """Preference pairs, copied out of their files."""

    chosen: Side
    rejected: Side
    prompt_B: Int
    """Leading tokens that both sides share."""


class Shards:
    """One split of a shard set: samples by (shard, sample). May be pickled; each process maps files of its own."""

    def __init__(self, files: ShardFiles, *, info: SetInfo, root: Path, split: str, make: Make | None = None) -> None:
        self.files = files
        self.info = info
        self.root = root
        self.split = split
        self.samples_per_shard = files.numbers("samples")
        self._make = make
        self._made_bytes = MADE_BYTES
        self._verified: set[int] = set()
        self._clear()

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
    def all_labels(self) -> Labels:
        """Where every token is one."""
        return Labels(tokens=self.num_tokens, text_bytes=self.text_bytes)

    @property
    def num_documents(self) -> int:
        return int(self.files.numbers("documents").sum())

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_memory", "_made", "_layout")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({**state, "_verified": set()})
        self._clear()

    def keep(self, block_shards: int) -> None:
        """Makes room for so many files that are made in memory: all of a block are needed until it ends."""
        if self._make is not None and len(self.files):
            self._made_bytes = max(MADE_BYTES, 2 * block_shards * int(self.files.numbers("num_bytes").max()))

    def gather(self, shard: Int, sample: Int) -> Samples:
        """Copies packed samples out of their files.

        Args:
            shard: [B], index into `files`.
            sample: [B], within the shard.

        Raises:
            CorruptShard: a file that is asked for differs from its manifest; nothing of it is given.
            ShardSetError: a file holds no packed samples.
        """
        dtype = self.info.dtype
        if not self._open(shard, pairs=False):
            return _join([self.gather(shard[half], sample[half]) for half in _halves(len(shard))])
        memory = self._memory
        num_bytes = np.dtype(dtype).itemsize * self.seq_len
        begin, end = self._bounds(shard, sample, smallest=8 + num_bytes)
        at = begin + 4
        lossy = self._layout[shard] == LOSS
        if lossy.any():
            at[lossy] += self.seq_len
        head, low, high = memory.rows(at, num_bytes=3).astype(np.int64).T
        wide = head & 1
        counts = low + (high << 8) * wide
        at += 2 + wide
        self._check(shard, sound=((head | 1) == (1 << 2 | 1)) & (at + 2 * counts == end - num_bytes))
        first = np.cumsum(counts) - counts
        within = np.arange(int(counts.sum()))
        within *= 2
        within += np.repeat(at - 2 * first, counts)
        rows = memory.rows(end - num_bytes, num_bytes=num_bytes)
        return Samples(
            tokens_BT=rows.view(np.dtype(dtype).newbyteorder("<")),
            starts_P=memory.shorts(within),
            num_starts_B=counts,
            loss_BT=self._loss(begin + 4, lossy=lossy) if lossy.any() else None,
        )

    def gather_pairs(self, shard: Int, sample: Int) -> Pairs:
        """`gather` for a set of preference pairs.

        Raises:
            CorruptShard: as `gather`.
            ShardSetError: a file holds no pairs.
        """
        if not self._open(shard, pairs=True):
            return _join_pairs([self.gather_pairs(shard[half], sample[half]) for half in _halves(len(shard))])
        memory = self._memory
        begin, end = self._bounds(shard, sample, smallest=16)
        sizes = [_u32(memory, begin), _u32(memory, begin + 4)]
        prompt = begin + 8 + sizes[0]
        rejected = prompt + 4
        self._check(shard, sound=rejected + sizes[1] == end)
        sides = [self._side(shard, at=at, size=size) for at, size in ((begin + 8, sizes[0]), (rejected, sizes[1]))]
        return Pairs(chosen=sides[0], rejected=sides[1], prompt_B=_u32(memory, prompt))

    def _side(self, shard: Int, *, at: Int, size: Int) -> Side:
        """An `ndarray:<dtype>` of one dimension, `size` bytes from `at`."""
        memory = self._memory
        dtype = np.dtype(self.info.dtype).newbyteorder("<")
        kind = memory.bytes(at).astype(np.int64) & 3
        head = 1 + (1 << kind)
        self._check(shard, sound=(kind <= 2) & (size > head) & ((size - head) % dtype.itemsize == 0))
        lengths = (size - head) // dtype.itemsize
        tokens = np.zeros((len(at), int(lengths.max())), dtype)
        num_bytes = lengths * dtype.itemsize
        row_bytes = tokens.shape[1] * dtype.itemsize
        within = np.arange(int(num_bytes.sum())) - np.repeat(np.cumsum(num_bytes) - num_bytes, num_bytes)
        row = np.repeat(np.arange(len(at)) * row_bytes, num_bytes)
        tokens.view(np.uint8).reshape(-1)[row + within] = memory.bytes(np.repeat(at + head, num_bytes) + within)
        return Side(tokens_BL=tokens, lengths_B=lengths)

    def _loss(self, at: Int, *, lossy: NDArray[np.bool_]) -> NDArray[np.uint8]:
        loss = np.ones((len(at), self.seq_len), np.uint8)
        loss[lossy] = self._memory.rows(at[lossy], num_bytes=self.seq_len)
        return loss

    def _bounds(self, shard: Int, sample: Int, *, smallest: int) -> tuple[Int, Int]:
        """Addresses of each sample's first byte and of the one behind its last, within its file."""
        memory = self._memory
        assert ((sample >= 0) & (sample < self.samples_per_shard[shard])).all(), "the order points into the files"
        file = memory.address[shard]
        begin, end = memory.rows(file + 4 + 4 * sample, num_bytes=8).view("<u4").astype(np.int64).T
        self._check(shard, sound=(begin >= 8) & (begin + smallest <= end) & (end <= memory.num_bytes[shard]))
        return file + begin, file + end

    def _check(self, shard: Int, *, sound: NDArray[np.bool_]) -> None:
        """Holds before any byte is read whose place a file has told."""
        if not sound.all():
            file = self.files[int(shard[np.argmin(sound)])]
            raise CorruptShard(f"shard {self.root / file.file}: its samples do not lie where it says; {_REMEDY}")

    def _open(self, shard: Int, *, pairs: bool) -> bool:
        """Holds all files of a batch, verified; does nothing and is false when they are more than MAX_MAPPED."""
        numbers = sorted(set(shard.tolist()))
        if len(numbers) > MAX_MAPPED:
            return False
        held = self._memory.held
        absent = [number for number in numbers if number not in held]
        for number in absent:
            if number not in held:  # one that is made may bring others
                self._take(number)
        for number in numbers:
            held.move_to_end(number)
        if absent:
            self._let_go(len(numbers))
        if ((self._layout[numbers] == PAIRS) != pairs).any():
            raise ShardSetError(
                f"shard {self.root / self.files[numbers[0]].file} and its like hold "
                f"{'packed documents' if pairs else 'preference pairs'}, wanted the other; preferences are trained on "
                "as pairs, all other kinds as packed documents"
            )
        return True

    def _take(self, number: int) -> None:
        """Maps a file, or makes it where it is not stored, and looks at the columns of its samples."""
        file = self.files[number]
        path = self.root / file.file
        if self._make is not None and not path.exists():
            taken = self._make(number)
            self._made.update((each, len(data)) for each, data in taken.items())
        else:
            taken = {number: _map(file, path=path, verify=number not in self._verified)}
            self._verified.add(number)
        for each, data in taken.items():
            self._layout[each] = self._layout_of(data, file=self.files[each])
            self._memory.hold(each, data)

    def _layout_of(self, data: Bytes, *, file: ShardFile) -> int:
        """PACKED, LOSS or PAIRS, as the file's own column config has it."""
        begin = 4 + 4 * (file.samples + 1)
        config = json.loads(data[begin : int(data[4:8].view("<u4")[0])].tobytes())
        found = dict(zip(config["column_names"], config["column_encodings"], strict=True))
        packed = {"starts": "ndarray:uint16", "tokens": f"ndarray:{self.info.dtype}:{self.seq_len}"}
        side = f"ndarray:{self.info.dtype}"
        layouts = {
            PACKED: packed,
            LOSS: {**packed, "loss": f"ndarray:uint8:{self.seq_len}"},
            PAIRS: {"chosen": side, "prompt": "uint32", "rejected": side},
        }
        for layout, columns in layouts.items():
            if found == columns:
                return layout
        raise ShardSetError(
            f"shard {self.root / file.file} has the columns {found}, wanted {packed}, those with a column loss, or "
            "those of preferences; it is no set of Tessera's: import it"
        )

    def _let_go(self, needed: int) -> None:
        """Keeps within MAX_MAPPED files and the bytes of made ones, and never drops the `needed` newest."""
        held = self._memory.held
        while len(held) > needed and (len(held) > MAX_MAPPED or sum(self._made.values()) > self._made_bytes):
            self._made.pop(self._memory.drop_oldest(), None)

    def _clear(self) -> None:
        self._memory = Memory(len(self.files))
        self._layout = np.zeros(len(self.files), np.int8)
        self._made: dict[int, int] = {}


def open_split(run_manifest: Path | str, *, split: str, shards_root: Path | str) -> Shards:
    """The shards of a split as a run's `shards.arrow` names them.

    Beside it may lie `documents.json`: then files that are not stored are made where they are needed.

    Args:
        shards_root: the set's folder, which holds `train/` and `heldout/`.

    Raises:
        ShardSetError: the manifest or documents.json cannot be read, or the split is empty.
    """
    path = Path(run_manifest)
    info, files = open_manifest(path, split=split)
    if not files:
        raise ShardSetError(f"shard set {info.name}@{info.version} has no {split} shards; write it from more documents")
    make = _maker(path, files=files, split=split)
    return Shards(files, info=info, root=Path(shards_root), split=split, make=make)


def documents_path(run_manifest: Path) -> Path:
    """Where a run in direct mode finds the documents: see `direct`."""
    return run_manifest.with_name("documents.json")


def _maker(run_manifest: Path, *, files: ShardFiles, split: str) -> Make | None:
    """What makes the files that are not stored; None where all are, which needs no Arrow and no tokenizer."""
    path = documents_path(run_manifest)
    if not path.exists():
        return None
    from tessera.shard.read.direct import Maker, read_run_documents

    home = run_manifest.absolute().parents[2]  # of home/runs/NAME/shards.arrow
    return Maker(read_run_documents(path), files=files, split=split, home=home)


def _map(file: ShardFile, *, path: Path, verify: bool) -> Bytes:
    """Maps a shard; checks its size and, with `verify`, its hash."""
    if Path(file.file).is_absolute() or ".." in Path(file.file).parts:
        raise CorruptShard(f"shard {file.file} leads out of its set's folder: this manifest is not ours. {_REMEDY}")
    try:
        found_bytes = path.stat().st_size
    except FileNotFoundError:
        raise CorruptShard(f"shard {path} is missing; expected {file.num_bytes} bytes. {_REMEDY}") from None
    if found_bytes != file.num_bytes:
        raise CorruptShard(f"shard {path} has {found_bytes} bytes, expected {file.num_bytes}. {_REMEDY}")
    with path.open("rb") as opened:
        mapping = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    if verify and (found := hashlib.sha256(mapping).hexdigest()) != file.sha256:
        raise CorruptShard(f"shard {path} has SHA-256 {found}, expected {file.sha256}. {_REMEDY}")
    return np.frombuffer(mapping, np.uint8)


def _u32(memory: Memory, address: Int) -> Int:
    return memory.rows(address, num_bytes=4).view("<u4")[:, 0].astype(np.int64)


def _halves(number: int) -> tuple[slice, slice]:
    return slice(0, number // 2), slice(number // 2, number)


def _join(parts: Sequence[Samples]) -> Samples:
    """Batches one behind the other."""
    losses = [part.loss_BT if part.loss_BT is not None else np.ones(part.tokens_BT.shape, np.uint8) for part in parts]
    return Samples(
        tokens_BT=np.concatenate([part.tokens_BT for part in parts]),
        starts_P=np.concatenate([part.starts_P for part in parts]),
        num_starts_B=np.concatenate([part.num_starts_B for part in parts]),
        loss_BT=np.concatenate(losses) if any(part.loss_BT is not None for part in parts) else None,
    )


def _join_pairs(parts: Sequence[Pairs]) -> Pairs:
    return Pairs(
        chosen=_join_sides([part.chosen for part in parts]),
        rejected=_join_sides([part.rejected for part in parts]),
        prompt_B=np.concatenate([part.prompt_B for part in parts]),
    )


def _join_sides(parts: Sequence[Side]) -> Side:
    longest = max(part.tokens_BL.shape[1] for part in parts)
    padded = [np.pad(part.tokens_BL, ((0, 0), (0, longest - part.tokens_BL.shape[1]))) for part in parts]
    return Side(tokens_BL=np.concatenate(padded), lengths_B=np.concatenate([part.lengths_B for part in parts]))
