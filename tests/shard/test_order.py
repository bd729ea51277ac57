"""The order: a bijection of each epoch, well mixed, the same however it is asked for, and without long arrays."""

import pickle
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.errors import ShardSetError
from tessera.shard.read import order as order_module
from tessera.shard.read.order import Order, permute
from tessera.shard.read.quality import measure


def flat(order: Order, indices: np.ndarray) -> np.ndarray:
    """Sample numbers of the whole set."""
    shard, sample = order.locate(indices)
    before = np.cumsum(order.samples_per_shard) - order.samples_per_shard
    assert (sample < order.samples_per_shard[shard]).all()
    assert (sample >= 0).all()
    return before[shard] + sample


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any),
    st.integers(0, 2**62), st.integers(1, 6), st.integers(0, 5),
)  # fmt: skip
def test_an_epoch_is_a_permutation(samples: list[int], seed: int, block_shards: int, epoch: int) -> None:
    order = Order(samples, seed=seed, block_shards=block_shards)
    indices = epoch * order.num_samples + np.arange(order.num_samples)

    assert np.array_equal(np.sort(flat(order, indices)), np.arange(order.num_samples))


@given(st.integers(1, 300), st.integers(0, 2**63))
def test_permute_is_a_bijection(size: int, key: int) -> None:
    keys, sizes = np.full(size, key, np.uint64), np.full(size, size)

    assert sorted(permute(np.arange(size), size=sizes, key=keys)) == list(range(size))


def test_an_index_lies_where_it_lies_however_it_is_asked_for() -> None:
    order = Order([40, 3, 77, 20], seed=9, block_shards=2)
    indices = np.random.default_rng(1).integers(0, 5 * order.num_samples, 500)
    together = flat(order, indices)
    again = pickle.loads(pickle.dumps(order))

    assert [int(flat(again, np.array([index]))[0]) for index in indices] == together.tolist()


def test_epochs_and_seeds_differ() -> None:
    one, other = (Order(np.full(30, 50), seed=seed, block_shards=4) for seed in (1, 2))
    size = np.arange(one.num_samples)
    orders = [flat(one, size), flat(one, size + one.num_samples), flat(other, size)]

    for left in range(3):
        for right in range(left):
            same = np.mean(orders[left] == orders[right])
            assert same < 5 / one.num_samples


def test_neighbours_are_not_correlated_and_blocks_are_uniform() -> None:
    order = Order(np.full(8, 4000), seed=3, block_shards=8)
    epochs = np.stack([flat(order, epoch * order.num_samples + np.arange(order.num_samples)) for epoch in range(4)])
    count = order.num_samples

    for epoch in epochs:
        assert abs(np.corrcoef(epoch[1:], epoch[:-1])[0, 1]) < 4 / np.sqrt(count)
        assert abs(np.corrcoef(epoch, np.arange(count))[0, 1]) < 4 / np.sqrt(count)
        steps = np.abs(np.diff(epoch))
        assert abs(steps.mean() - count / 3) < 0.02 * count
        cells, _, _ = np.histogram2d(np.arange(count), epoch, bins=(16, 16))
        expected = count / 256
        chi_squared = ((cells - expected) ** 2 / expected).sum()
        assert 140 < chi_squared < 330  # 225 degrees of freedom, five standard deviations either way
    for left, right in ((0, 1), (1, 2), (0, 3)):
        assert abs(np.corrcoef(epochs[left], epochs[right])[0, 1]) < 4 / np.sqrt(count)


def test_a_reader_touches_one_block_of_shards_at_a_time() -> None:
    order = Order(np.full(40, 25), seed=3, block_shards=4)
    shard, _ = order.locate(np.arange(order.num_samples))

    blocks = [frozenset(shard[begin : begin + 100]) for begin in range(0, 1000, 100)]
    assert all(len(block) == 4 for block in blocks)
    assert len(frozenset.union(*blocks)) == 40
    assert [sorted(block) for block in blocks] != [list(range(begin, begin + 4)) for begin in range(0, 40, 4)]


def test_a_billion_samples_need_no_array_of_their_number() -> None:
    samples_per_shard = np.full(70_000, 15_000)
    assert samples_per_shard.sum() > 1e9
    tracemalloc.start()
    try:
        order = Order(samples_per_shard, seed=1, block_shards=16)
        shard, sample = order.locate(np.arange(64) + 5 * order.num_samples - 32)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 200 * len(samples_per_shard)
    assert len(set(zip(shard.tolist(), sample.tolist(), strict=True))) == 64


class Shuffled(Order):
    """A true uniform shuffle of the same samples, as if it were one block: the yardstick measured as an order is."""

    def __init__(self, samples_per_shard: np.ndarray, *, seed: int) -> None:
        super().__init__(samples_per_shard, seed=seed, block_shards=len(samples_per_shard))
        self.shuffled = np.random.default_rng(seed).permutation(self.num_samples)

    def locate(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        before = np.concatenate([[0], np.cumsum(self.samples_per_shard)])
        number = self.shuffled[indices % self.num_samples]
        shard = np.searchsorted(before, number, side="right") - 1
        return shard, number - before[shard]


@pytest.mark.parametrize("block_shards", [1, 4, 16, 200])
def test_quality_is_that_of_a_uniform_shuffle_of_each_block(block_shards: int) -> None:
    """Over seeds and epochs: counts of neighbours are all but Poisson, correlations normal, about exact means."""
    samples = np.random.default_rng(0).integers(150, 250, 200)
    groups = np.random.default_rng(1).integers(0, 3, 200)
    qualities = [
        measure(Order(samples, seed=seed, block_shards=block_shards), epoch=epoch, groups=groups)
        for seed in range(4) for epoch in range(3)
    ]  # fmt: skip
    number = len(qualities)
    found = sum(quality.neighbours for quality in qualities)
    expected = sum(quality.neighbours_expected for quality in qualities)
    off = [(one.correlation - one.correlation_expected) / one.correlation_deviation for one in qualities]

    assert abs(found - expected) < 4 * np.sqrt(expected)
    assert abs(np.mean(off)) < 4 / np.sqrt(number)
    assert max(map(abs, off)) < 4.5
    spread = np.mean([quality.spread for quality in qualities])
    bound = qualities[0].spread_uniform if block_shards == 200 else qualities[0].spread_shards
    assert spread < 1.6 * bound, "three groups: the worst is farther off than one is on average"


def test_the_yardsticks_are_right() -> None:
    """Measured on numpy's shuffle, whose neighbours, correlation and spread have the stated means."""
    samples = np.full(40, 100)
    groups = np.repeat([0, 1], 20)
    qualities = [measure(Shuffled(samples, seed=seed), groups=groups) for seed in range(150)]
    expected = qualities[0].neighbours_uniform

    assert expected == pytest.approx(2 * 40 * 99 / 4000)
    assert abs(np.mean([one.neighbours for one in qualities]) - expected) < 4 * np.sqrt(expected / 150)
    assert np.mean([one.spread for one in qualities]) == pytest.approx(qualities[0].spread_uniform, rel=0.12)
    correlations = np.array([one.correlation for one in qualities])
    assert correlations.std() == pytest.approx(qualities[0].correlation_deviation, rel=0.25)
    assert abs(correlations.mean()) < 4 * correlations.std() / np.sqrt(150)


def test_bad_orders_measure_badly() -> None:
    class Stored(Shuffled):
        def __init__(self) -> None:
            super().__init__(np.full(40, 100), seed=0)
            self.shuffled = np.arange(self.num_samples)

    found = measure(Stored(), groups=np.repeat([0, 1], 20))

    assert found.neighbours == 40 * 99
    assert found.correlation > 0.99
    assert found.spread == pytest.approx(0.5)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any), st.integers(1, 3), st.integers(1, 9),
    st.integers(0, 60),
)  # fmt: skip
def test_parts_of_a_batch_are_located_as_their_indices(samples: list[int], world: int, share: int, step: int) -> None:
    """Whatever stretch of steps they are located with."""
    size = world * share
    for ahead in (1, 7, 4096):
        order = Order(samples, seed=3, block_shards=2)
        expected = flat(order, step * size + np.arange(size)).tolist()
        before = np.cumsum(order.samples_per_shard) - order.samples_per_shard
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(order_module, "AHEAD", ahead)
            found = [order.part(step, batch_size=size, rank=rank, world_size=world) for rank in range(world)]
        assert np.concatenate([before[shard] + sample for shard, sample in found]).tolist() == expected


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(ShardSetError, match="no samples"):
        Order([], seed=1, block_shards=2)


def test_golden_order() -> None:
    order = Order([5, 2, 9], seed=17, block_shards=2)

    found = flat(order, np.arange(20)).tolist()
    assert found == [12, 8, 11, 6, 7, 15, 9, 14, 13, 10, 5, 0, 3, 2, 4, 1, 5, 2, 4, 0], (
        "the order changes: runs do not resume over this; raise SEMANTICS there, then this list"
    )
