"""Batches of training and evaluation: the same global batches for any number of ranks and workers, from any step on.

Global batch s holds the samples of global indices s * B to (s + 1) * B - 1; rank r of W takes the r-th contiguous part.
Nothing is kept between steps, so resuming at s is starting at s. The state is a small record that names what the
indices mean, and is refused by any other set, seed or size.

The stored tokens are the labels. The end token in front of each document piece is made up here: it is the begin
marker, so that every token of a document, its first and its end included, is predicted exactly once.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from tessera.errors import ConfigError, ShardSetError
from tessera.shard.read import order as order_module
from tessera.shard.read import shards as shards_module
from tessera.shard.read.order import Order
from tessera.shard.read.shards import Samples, Shards, Side

# Shapes: B = samples in a batch, T = seq_len, P = starts in all of them, L = tokens of the longest side of a pair.
Batch = dict[str, Tensor]
State = dict[str, Any]

IGNORED = -100
"""Label of padding, and of tokens that are read and not learned."""
OVERRIDE = "train.resume_data=ignore"
"""What lets a run go on with other data; see `train.settings`."""


def open_split(run_manifest_path: Path | str, *, split: str, shards_root: Path | str) -> Shards:
    """See `tessera.shard.read.shards.open_split`."""
    return shards_module.open_split(run_manifest_path, split=split, shards_root=shards_root)


def make_order(shards: Shards, *, seed: int, block_shards: int) -> Order:
    """The order of `shards` under a seed."""
    shards.keep(block_shards)
    return Order(shards.samples_per_shard, seed=seed, block_shards=block_shards)


def batch_at(shards: Shards, order: Order, *, step: int, batch_size: int, rank: int = 0, world_size: int = 1) -> Batch:
    """Rank `rank`'s part of global batch `step`.

    Args:
        batch_size: B, samples of the global batch.

    Returns:
        [B / world_size, T]: `input_ids`, `labels` (-100 in padding), `position_ids` (from 0 in each document piece),
        all int64, and `document_ids` int32 (0, 1, ... within a sequence; -1 in padding).

    Raises:
        ConfigError: the batch cannot be shared out.
        ShardSetError: the split has fewer samples than a global batch.
        CorruptShard: a file of this batch differs from its manifest.
    """
    _refuse_unfit(shards, batch_size=batch_size, world_size=world_size)
    where = order.part(step, batch_size=batch_size, rank=rank, world_size=world_size)
    return to_batch(shards.gather(*where), end_id=shards.info.end_id)


def preference_batch_at(
    shards: Shards, order: Order, *, step: int, batch_size: int, rank: int = 0, world_size: int = 1
) -> dict[str, Batch]:
    """`batch_at` for a set of preference pairs: `chosen` and `rejected`, each a batch of its own.

    Returns:
        [B / world_size, L], L that of the longest side of this part: `input_ids` (the end token in front, and in
        padding), `labels` (-100 on the prompt, which both share, and in padding), `position_ids`, all int64, and
        `document_ids` int32 (0; -1 in padding).

    Raises:
        ConfigError, CorruptShard: as `batch_at`.
        ShardSetError: the set holds packed documents, or fewer samples than a global batch.
    """
    _refuse_unfit(shards, batch_size=batch_size, world_size=world_size)
    where = order.part(step, batch_size=batch_size, rank=rank, world_size=world_size)
    pairs = shards.gather_pairs(*where)
    longest = max(pairs.chosen.tokens_BL.shape[1], pairs.rejected.tokens_BL.shape[1])
    return {
        name: _to_side(side, prompt_B=pairs.prompt_B, longest=longest, end_id=shards.info.end_id)
        for name, side in (("chosen", pairs.chosen), ("rejected", pairs.rejected))
    }


def sequential(shards: Shards, *, batch_size: int, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
    """The whole split in stored order, each sample once; the last batch may be short.

    Rank r takes batches r, r + world_size, ...
    """
    ends = np.cumsum(shards.samples_per_shard)
    for first in range(rank * batch_size, shards.num_samples, batch_size * world_size):
        index = np.arange(first, min(first + batch_size, shards.num_samples))
        shard = np.searchsorted(ends, index, side="right")
        sample = index - (ends[shard] - shards.samples_per_shard[shard])
        yield to_batch(shards.gather(shard, sample), end_id=shards.info.end_id)


def to_batch(samples: Samples, *, end_id: int) -> Batch:
    """Stored samples as tensors; see `batch_at`.

    A piece never begins with the end token, so a last start that has it is the padding's. There the stored tokens, and
    so the inputs, are end tokens already.
    """
    num_samples, seq_len = samples.tokens_BT.shape
    size = num_samples * seq_len
    counts = samples.num_starts_B
    last = np.cumsum(counts) - 1
    flat_starts = samples.starts_P + np.repeat(np.arange(0, size, seq_len), counts)
    lengths = np.empty_like(flat_starts)
    np.subtract(flat_starts[1:], flat_starts[:-1], out=lengths[:-1])
    lengths[-1] = size - flat_starts[-1]
    pieces = np.arange(len(flat_starts), dtype=np.int32)
    pieces -= np.repeat((last + 1 - counts).astype(np.int32), counts)
    padded = last[samples.tokens_BT.reshape(-1)[flat_starts[last]] == end_id]
    pieces[padded] = -1

    inputs, labels, positions, documents = _allocate(size)
    labels[:] = samples.tokens_BT.reshape(-1)
    inputs[1:] = labels[:-1]
    inputs[flat_starts] = end_id
    np.subtract(_places(size), np.repeat(flat_starts, lengths), out=positions)
    documents[:] = np.repeat(pieces, lengths)
    if len(padded):
        labels[_stretches(flat_starts[padded], lengths[padded])] = IGNORED
    if samples.loss_BT is not None:
        np.putmask(labels, samples.loss_BT.reshape(-1) == 0, IGNORED)
    arrays: dict[str, NDArray[Any]] = {
        "input_ids": inputs, "labels": labels, "position_ids": positions, "document_ids": documents
    }  # fmt: skip
    return {name: torch.from_numpy(array.reshape(num_samples, seq_len)) for name, array in arrays.items()}


def make_state(shards: Shards, order: Order, *, next_step: int, batch_size: int) -> State:
    """What a checkpoint keeps of the loader: where it is, and what that position means."""
    return {"next_step": next_step, **_meaning(shards, order, batch_size=batch_size)}


def resume_step(
    state: Mapping[str, Any],
    *,
    shards: Shards,
    order: Order,
    batch_size: int,
    allow: Collection[str] = (),
    notice: Callable[[str], None] | None = None,
) -> int:
    """The step to go on with.

    Args:
        allow: what may differ, by name: see `MEANINGS`. Samples may then come twice, or never.
        notice: told of each difference that is allowed.

    Raises:
        ShardSetError: the state was made with another set, version, seed, size or tokenizer, which it names.
    """
    for name, here in _meaning(shards, order, batch_size=batch_size).items():
        if (there := state.get(name)) == here:
            continue
        if name not in allow:
            raise ShardSetError(
                f"the checkpoint's loader state has {name} {_short(there)}, this run has {_short(here)}; resume with "
                f"the same {name}, start a new run (--fresh), or go on all the same, so that samples may come twice or "
                f"never: --set {OVERRIDE}"
            )
        if notice:
            notice(f"{name} {_short(there)} -> {_short(here)} since the checkpoint: samples may come twice or never")
    return int(state["next_step"])


MEANINGS = (
    "set", "version", "split", "seq_len", "tokenizer", "order", "seed", "block_shards", "batch_size"
)  # fmt: skip
"""What a loader state names beside its step: every one decides which samples a step takes."""


class Batches(IterableDataset[Batch]):
    """The batches of steps `start` to `stop` - 1 for one rank, in order; worker w of n makes every n-th."""

    def __init__(
        self,
        shards: Shards,
        order: Order,
        *,
        start: int,
        stop: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        _refuse_unfit(shards, batch_size=batch_size, world_size=world_size)
        self.shards = shards
        self.order = order
        self.start = start
        self.stop = stop
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        return max(self.stop - self.start, 0)

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        offset, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        for step in range(self.start + offset, self.stop, stride):
            yield batch_at(
                self.shards,
                self.order,
                step=step,
                batch_size=self.batch_size,
                rank=self.rank,
                world_size=self.world_size,
            )


def make_loader(batches: Batches, *, num_workers: int = 0) -> "DataLoader[Batch]":
    """A DataLoader over `batches` that keeps their order, whatever the number of workers."""
    return DataLoader(batches, batch_size=None, num_workers=num_workers, in_order=True)


def _refuse_unfit(shards: Shards, *, batch_size: int, world_size: int) -> None:
    """A batch may reach into the next epoch; one that is longer than an epoch would hold a sample twice every time."""
    if batch_size % world_size:
        raise ConfigError(f"a batch of {batch_size} samples cannot be shared by {world_size} ranks; give a multiple")
    if batch_size > shards.num_samples:
        raise ShardSetError(
            f"{shards.info.name}@{shards.info.version} has {shards.num_samples} samples in its {shards.split} split, "
            f"fewer than one global batch of {batch_size}; give a smaller train.batch_size, or prepare more documents "
            "and write the set again (tessera shard)"
        )


def _to_side(side: Side, *, prompt_B: NDArray[np.int64], longest: int, end_id: int) -> Batch:
    """One side of preference pairs as tensors, padded to `longest`."""
    num_samples, width = side.tokens_BL.shape
    place = np.arange(longest)
    inside = place < side.lengths_B[:, None]
    tokens = np.full((num_samples, longest), end_id, np.int64)
    np.copyto(tokens[:, :width], side.tokens_BL, where=inside[:, :width])
    inputs = np.full_like(tokens, end_id)
    inputs[:, 1:] = np.where(inside[:, 1:], tokens[:, :-1], end_id)
    learned = inside & (place >= prompt_B[:, None])
    arrays: dict[str, NDArray[Any]] = {
        "input_ids": inputs,
        "labels": np.where(learned, tokens, IGNORED),
        "position_ids": np.where(inside, place, place - side.lengths_B[:, None]),
        "document_ids": np.where(inside, 0, -1).astype(np.int32),
    }
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _allocate(size: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]:
    """A batch's arrays in one piece of memory: several would be given back to the system and taken anew each time."""
    words = np.empty(3 * size + (size + 1) // 2, np.int64)
    return words[:size], words[size : 2 * size], words[2 * size : 3 * size], words[3 * size :].view(np.int32)[:size]


@lru_cache(maxsize=4)
def _places(size: int) -> NDArray[np.int64]:
    places = np.arange(size)
    places.flags.writeable = False
    return places


def _stretches(begin: NDArray[np.int64], length: NDArray[np.int64]) -> NDArray[np.int64]:
    """The indices of all stretches, one stretch after another."""
    index = np.arange(int(length.sum()))
    index += np.repeat(begin - (np.cumsum(length) - length), length)
    return index


def _meaning(shards: Shards, order: Order, *, batch_size: int) -> State:
    info = shards.info
    return {
        "set": info.name,
        "version": info.version,
        "split": shards.split,
        "seq_len": info.seq_len,
        "tokenizer": info.tokenizer,
        "order": order_module.SEMANTICS,
        "seed": order.seed,
        "block_shards": order.block_shards,
        "batch_size": batch_size,
    }


def _short(value: Any) -> str:
    return f"{value[:12]}..." if isinstance(value, str) and len(value) > 40 else f"{value}"
