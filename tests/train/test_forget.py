"""How often a run drew a sample: counted without drawing, compared with drawing one by one."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.shard.read.order import Order
from tessera.train import forget


@settings(max_examples=80, deadline=None)
@given(
    samples=st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any),
    seed=st.integers(0, 2**31),
    block=st.integers(1, 5),
    epochs=st.floats(0, 3.5),
    chunk=st.sampled_from([1, 3, 7, 10_000]),
    share=st.floats(0.01, 1),
    batch_size=st.integers(1, 5),
    skipped=st.sets(st.integers(0, 20), max_size=4),
    begin=st.sampled_from([0.0, 0.0, 0.3, 1.4]),
)
def test_draws_equal_those_that_are_drawn(
    samples: list[int], seed: int, block: int, epochs: float, chunk: int, share: float, batch_size: int,
    skipped: set[int], begin: float,
) -> None:  # fmt: skip
    order = Order(samples, seed=seed, block_shards=block)
    total = int(epochs * order.num_samples)
    targets = np.random.default_rng(seed).permutation(order.num_samples)[: max(1, int(share * order.num_samples))]
    before = np.cumsum(samples) - samples
    shard, sample = order.locate(np.arange(total))
    low = min(int(begin * order.num_samples), total)
    counts = [low <= n and n // batch_size not in skipped for n in range(total)]
    drawn = [one if counts[n] else -2 for n, one in enumerate((before[shard] + sample).tolist())]
    kept, forget.CHUNK = forget.CHUNK, chunk
    try:
        times, first = forget.draws(
            order, targets=targets, begin=low, end=total, batch_size=batch_size, skipped=tuple(skipped)
        )
    finally:
        forget.CHUNK = kept

    assert times.tolist() == [drawn.count(target) for target in targets.tolist()]
    assert first.tolist() == [drawn.index(target) if target in drawn else -1 for target in targets.tolist()]
