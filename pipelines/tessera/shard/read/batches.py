"""Batches of training and evaluation: the same global batches for any number of ranks and workers, from any step on.

Global batch s holds the samples of global indices s * B to (s + 1) * B - 1; rank r of W takes the r-th contiguous part.
Nothing is kept between steps, so resuming at s is starting at s. The state is a small record that names what the
indices mean, and is refused by any other set, seed or size.

The stored tokens are the labels. The end token in front of each document piece is made up here: it is the begin
marker, so that every token of a document, its first and its end included, is predicted exactly once.
"""

from collections.abc import Iterator, Mapping
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
from tessera.shard.read.shards import Shards

# Shapes: B = samples in a batch, T = seq_len, P = starts in all of them.
Batch = dict[str, Tensor]
State = dict[str, Any]

IGNORED = -100
"""Label of padding."""


def open_split(run_manifest_path: Path | str, *, split: str, shards_root: Path | str) -> Shards:
    """See `tessera.shard.read.shards.open_split`."""
    return shards_module.open_split(run_manifest_path, split=split, shards_root=shards_root)


def make_order(shards: Shards, *, seed: int, block_shards: int) -> Order:
    """The order of `shards` under a seed."""
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
        CorruptShard: a file of this batch differs from its manifest.
    """
    share = _share(batch_size, world_size=world_size)
    first = step * batch_size + rank * share
    shard, sample = order.locate(np.arange(first, first + share, dtype=np.int64))
    return to_batch(*shards.gather(shard, sample), end_id=shards.info.end_id)


def sequential(shards: Shards, *, batch_size: int, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
    """The whole split in stored order, each sample once; the last batch may be short.

    Rank r takes batches r, r + world_size, ...
    """
    ends = np.cumsum(shards.samples_per_shard)
    for first in range(rank * batch_size, shards.num_samples, batch_size * world_size):
        index = np.arange(first, min(first + batch_size, shards.num_samples))
        shard = np.searchsorted(ends, index, side="right")
        sample = index - (ends[shard] - shards.samples_per_shard[shard])
        yield to_batch(*shards.gather(shard, sample), end_id=shards.info.end_id)


def to_batch(tokens: NDArray[Any], starts: NDArray[np.uint16], counts: NDArray[np.int64], *, end_id: int) -> Batch:
    """Stored samples as tensors; see `batch_at`.

    Args:
        tokens: [B, T]. A piece never begins with the end token, so a last start that has it is the padding's.
        starts: [P], of all samples one after another.
        counts: [B], starts of each sample.
    """
    num_samples, seq_len = tokens.shape
    labels = tokens.astype(np.int64).reshape(-1)
    row = np.repeat(np.arange(num_samples), counts)
    flat_starts = row * seq_len + starts
    lengths = np.diff(flat_starts, append=num_samples * seq_len)
    last = np.cumsum(counts) - 1
    piece = np.arange(len(starts)) - np.repeat(last + 1 - counts, counts)
    padding = np.zeros(len(starts), bool)
    padding[last] = labels[flat_starts[last]] == end_id

    inputs = np.empty_like(labels)
    inputs[1:] = labels[:-1]
    inputs[flat_starts] = end_id
    positions = np.arange(len(labels)) - np.repeat(flat_starts, lengths)
    documents = np.repeat(np.where(padding, -1, piece).astype(np.int32), lengths)
    for begin, length in zip(flat_starts[padding], lengths[padding], strict=True):
        labels[begin : begin + length] = IGNORED
        inputs[begin : begin + length] = end_id
    arrays = {"input_ids": inputs, "labels": labels, "position_ids": positions, "document_ids": documents}
    return {name: torch.from_numpy(array.reshape(num_samples, seq_len)) for name, array in arrays.items()}


def make_state(shards: Shards, order: Order, *, next_step: int, batch_size: int) -> State:
    """What a checkpoint keeps of the loader: where it is, and what that position means."""
    return {"next_step": next_step, **_meaning(shards, order, batch_size=batch_size)}


def resume_step(state: Mapping[str, Any], *, shards: Shards, order: Order, batch_size: int) -> int:
    """The step to go on with.

    Raises:
        ShardSetError: the state was made with another set, version, seed, size or tokenizer, which it names.
    """
    for name, here in _meaning(shards, order, batch_size=batch_size).items():
        if state.get(name) != here:
            raise ShardSetError(
                f"the checkpoint's loader state has {name} {_short(state.get(name))}, this run has {_short(here)}; "
                f"resume with the same {name}, or start a new run"
            )
    return int(state["next_step"])


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
        _share(batch_size, world_size=world_size)
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


def _share(batch_size: int, *, world_size: int) -> int:
    if batch_size % world_size:
        raise ConfigError(f"a batch of {batch_size} samples cannot be shared by {world_size} ranks; give a multiple")
    return batch_size // world_size


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
