"""How well an order mixes, measured, with what a uniform shuffle of as many samples would give beside it.

Locates an epoch, so it costs what that does (0.3 us a sample) and holds it (24 bytes a sample): for tests, benchmarks
and a look at small sets, not for training.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tessera.shard.read.order import Order

KOLMOGOROV_MEAN = 0.8687311606361592
"""Mean of the supremum of a Brownian bridge's absolute value: sqrt(pi / 2) ln 2."""

# Shapes: N = samples of an epoch, S = shards.
Int = NDArray[np.int64]


@dataclass(frozen=True)
class Quality:
    """Of one epoch."""

    neighbours: int
    """Pairs that follow one another in the epoch and lie side by side in a shard."""
    neighbours_expected: float
    """Of a uniform shuffle within each block: 2 / n of the block's pairs that lie side by side."""
    neighbours_uniform: float
    """Of a uniform shuffle of the whole epoch."""
    correlation: float
    """Lag-1 correlation of the places in storage, within blocks; mean over blocks, weighted by samples."""
    correlation_expected: float
    """Of a uniform shuffle within each block: -1 / n."""
    correlation_deviation: float
    """Standard deviation of `correlation` under such a shuffle."""
    spread: float
    """Largest difference, over groups and moments, between the share of a group's samples that were seen and the share
    of the epoch that was."""
    spread_uniform: float
    """The mean of the worst group's difference under a uniform shuffle of the whole epoch."""
    spread_shards: float
    """The same under an order that takes whole shards at random: the price of reading in blocks of few."""


def measure(order: Order, *, epoch: int = 0, groups: Int | None = None) -> Quality:
    """Measures an epoch of `order`.

    Args:
        groups: [S], which group (source, generation) each shard belongs to; None has one of all.
    """
    shard, sample = order.locate(epoch * order.num_samples + np.arange(order.num_samples))
    groups = np.zeros(len(order.samples_per_shard), np.int64) if groups is None else groups
    bounds = order.block_bounds(epoch)
    place = (np.cumsum(order.samples_per_shard) - order.samples_per_shard)[shard] + sample
    side_by_side = (shard[1:] == shard[:-1]) & (np.abs(np.diff(sample)) == 1)
    blocks = [slice(*bound) for bound in pairwise(bounds.tolist()) if bound[1] - bound[0] > 2]
    sizes = np.array([block.stop - block.start for block in blocks])
    pairs = np.array([_pairs(order.samples_per_shard[np.unique(shard[block])]) for block in blocks])
    lags = np.array([_lag(place[block]) for block in blocks])
    total = len(shard)
    return Quality(
        neighbours=int(side_by_side.sum()),
        neighbours_expected=float((2 * pairs / sizes).sum()),
        neighbours_uniform=2 * _pairs(order.samples_per_shard) / total,
        correlation=float(np.average(lags, weights=sizes)),
        correlation_expected=float(np.average(-1 / sizes, weights=sizes)),
        correlation_deviation=float(np.sqrt((sizes.astype(float)).sum()) / sizes.sum()),
        spread=max(_spread(groups[shard] == group) for group in np.unique(groups)),
        spread_uniform=_bridge(np.array([(groups[shard] == group).sum() for group in np.unique(groups)]), total=total),
        spread_shards=_bridge(np.unique(groups, return_counts=True)[1], total=len(groups)),
    )


def _pairs(samples_per_shard: Int) -> int:
    """Pairs that lie side by side in storage."""
    return int(np.maximum(samples_per_shard - 1, 0).sum())


def _lag(place: Int) -> float:
    """Lag-1 correlation of the ranks, about their common mean."""
    rank = np.argsort(np.argsort(place)).astype(float)
    rank -= rank.mean()
    return float((rank[1:] * rank[:-1]).sum() / (rank * rank).sum())


def _spread(mine: NDArray[np.bool_]) -> float:
    seen = np.cumsum(mine) / mine.sum()
    return float(np.abs(seen - np.arange(1, len(mine) + 1) / len(mine)).max())


def _bridge(members: Int, *, total: int) -> float:
    """Mean of the largest deviation when `members` of `total` come in uniform order, for the worst group."""
    return float((KOLMOGOROV_MEAN * np.sqrt((total - members) / (members * total))).max())
