"""The order of training: which sample comes at global index i, computed from (seed, epoch, i) alone.

An epoch permutes the shards, takes them in blocks of `block_shards`, and permutes the samples of each block. So a
reader touches few files at a time, and no array of the data set's length exists: memory is a few numbers a shard.
The price is that two samples of one block lie within a block of each other in every epoch.

A permutation of n samples is a Feistel network over pairs (a, b), a * b >= n, with modular addition (Black and Rogaway
2002, "Ciphers with arbitrary finite domains"), walked until the result is below n. Costs about 0.3 us a sample.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tessera.errors import ShardSetError
from tessera.shard.mixing import GOLDEN, splitmix64

SEMANTICS = 1
"""Raised when an index comes to lie elsewhere; loader states carry it."""

ROUNDS = 6
AHEAD = 4096
"""Samples that are located at once."""

Int = NDArray[np.int64]
Word = NDArray[np.uint64]


@dataclass(frozen=True)
class Epoch:
    """One epoch's plan, a few numbers a shard."""

    shards: Int
    """Shards in their order of this epoch."""
    before: Int
    """Samples before each of `shards`, and the total; [shards + 1]."""
    block_before: Int
    """Samples before each block, and the total; [blocks + 1]."""
    keys: Word
    """A key a block."""


class Order:
    """A bijection from global sample indices to (epoch, shard, sample).

    Args:
        samples_per_shard: [shards], in the manifest's order.
        seed: of the order; independent of ranks, workers, batch size.
        block_shards: shards whose samples are shuffled together.
    """

    def __init__(self, samples_per_shard: Int | Sequence[int], *, seed: int, block_shards: int) -> None:
        self.samples_per_shard = np.asarray(samples_per_shard, dtype=np.int64)
        self.num_samples = int(self.samples_per_shard.sum())
        self.seed = seed
        self.block_shards = block_shards
        if self.num_samples == 0:
            raise ShardSetError("the split has no samples to order; write a set from more documents")
        self._epoch = lru_cache(maxsize=3)(self._plan)
        self._stretch = lru_cache(maxsize=2)(self._locate_steps)

    def __getstate__(self) -> dict[str, object]:
        return {
            "samples_per_shard": self.samples_per_shard,
            "seed": self.seed,
            "block_shards": self.block_shards,
        }

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def locate(self, indices: Int) -> tuple[Int, Int]:
        """Where the samples at these global indices lie.

        Args:
            indices: [n], each >= 0; index i belongs to epoch i // num_samples.

        Returns:
            shard [n], by the manifest's order, and sample [n] within it.
        """
        indices = np.asarray(indices, dtype=np.int64)
        shard, sample = np.empty_like(indices), np.empty_like(indices)
        epochs = indices // self.num_samples
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            shard[chosen], sample[chosen] = _locate(self._epoch(int(epoch)), indices[chosen] - epoch * self.num_samples)
        return shard, sample

    def block_bounds(self, epoch: int) -> Int:
        """Samples of an epoch before each block, and their total."""
        return self._epoch(epoch).block_before

    def part(self, step: int, *, batch_size: int, rank: int, world_size: int) -> tuple[Int, Int]:
        """`locate` of rank `rank`'s contiguous part of global batch `step`.

        Steps are located some AHEAD samples at a time, at most an epoch: one small batch alone would cost five times as
        much a sample.
        """
        share = batch_size // world_size
        num_steps = max(min(AHEAD // share, self.num_samples // batch_size), 1)
        shard, sample = self._stretch(step // num_steps, num_steps, batch_size, rank * share, share)
        row = step % num_steps
        return shard[row], sample[row]

    def _locate_steps(self, stretch: int, num_steps: int, batch_size: int, first: int, share: int) -> tuple[Int, Int]:
        steps = stretch * num_steps + np.arange(num_steps, dtype=np.int64)
        indices = steps[:, None] * batch_size + first + np.arange(share, dtype=np.int64)
        shard, sample = self.locate(indices.reshape(-1))
        return shard.reshape(indices.shape), sample.reshape(indices.shape)

    def _plan(self, epoch: int) -> Epoch:
        key = splitmix64(splitmix64(np.uint64(self.seed)) + np.uint64(epoch))
        numbers = np.arange(len(self.samples_per_shard), dtype=np.uint64)
        shards = np.argsort(splitmix64(key ^ splitmix64(numbers)), kind="stable")
        before = np.concatenate([[0], np.cumsum(self.samples_per_shard[shards])])
        cuts = np.arange(0, len(shards) + self.block_shards, self.block_shards).clip(max=len(shards))
        blocks = np.arange(len(cuts) - 1, dtype=np.uint64)
        return Epoch(
            shards=shards,
            before=before,
            block_before=before[cuts],
            keys=splitmix64(splitmix64(key) + blocks),
        )


def _locate(plan: Epoch, position: Int) -> tuple[Int, Int]:
    block = np.searchsorted(plan.block_before, position, side="right") - 1
    begin = plan.block_before[block]
    size = plan.block_before[block + 1] - begin
    shuffled = begin + permute(position - begin, size=size, key=plan.keys[block])
    slot = np.searchsorted(plan.before, shuffled, side="right") - 1
    return plan.shards[slot], shuffled - plan.before[slot]


def permute(index: Int, *, size: Int, key: Word) -> Int:
    """Element-wise keyed permutation: `index[i]` within 0 .. size[i] - 1, under `key[i]`.

    For one size and key, a bijection of 0 .. size - 1. Almost every element is done after one pass: the network's
    domain is at most a row larger than `size`.
    """
    rows = np.ceil(np.sqrt(size)).astype(np.uint64)
    columns = (size.astype(np.uint64) + rows - np.uint64(1)) // rows
    result = index.astype(np.uint64)
    left = np.arange(len(result))
    while len(left):
        result[left] = _network(result[left], rows=rows[left], columns=columns[left], key=key[left])
        left = left[result[left] >= size[left].astype(np.uint64)]
    return result.astype(np.int64)


def _network(index: Word, *, rows: Word, columns: Word, key: Word) -> Word:
    """One pass: a bijection of 0 .. rows * columns - 1."""
    row, column = index // columns, index % columns
    for number in range(ROUNDS):
        key = key + GOLDEN
        if number % 2:
            row = (row + splitmix64(key ^ column) % rows) % rows
        else:
            column = (column + splitmix64(key ^ row) % columns) % columns
    return row * columns + column
