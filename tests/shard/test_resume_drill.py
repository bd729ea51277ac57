"""The elastic drill: what a run reads does not depend on when it stops, nor on how many ranks and workers go on."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.shard import conftest

from tessera.errors import ShardSetError
from tessera.shard.read.batches import (
    MEANINGS,
    Batch,
    Batches,
    make_loader,
    make_order,
    make_state,
    resume_step,
)
from tessera.shard.read.shards import Shards

BATCH = 8
SEED = 11
WORLDS = (2, 1, 4)


class Drill:
    """A set, and the batches of an uninterrupted run over two epochs and a bit."""

    def __init__(self, make_set: Any) -> None:
        self.small = make_set(num_documents=150)
        self.shards: Shards = self.small.open()
        self.steps = 2 * self.shards.num_samples // BATCH + 3
        self.whole = list(Batches(self.shards, self.order(self.shards), start=0, stop=self.steps, batch_size=BATCH))

    @staticmethod
    def order(shards: Shards) -> Any:
        return make_order(shards, seed=SEED, block_shards=2)

    def leg(self, state: dict[str, Any] | None, *, stop: int, world: int, workers: int) -> tuple[list[Batch], str]:
        """What `world` fresh ranks read from a checkpoint's state on, and the state that they leave, as JSON."""
        ranks = []
        for rank in range(world):
            shards = self.small.open()
            order = self.order(shards)
            start = resume_step(state, shards=shards, order=order, batch_size=BATCH) if state else 0
            batches = Batches(shards, order, start=start, stop=stop, batch_size=BATCH, rank=rank, world_size=world)
            ranks.append(list(make_loader(batches, num_workers=workers)))
        parts = zip(*ranks, strict=True)
        together = [{name: torch.cat([part[name] for part in step]) for name in step[0]} for step in parts]
        return together, json.dumps(make_state(shards, order, next_step=stop, batch_size=BATCH))


@pytest.fixture(scope="module")
def drill(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Made once, in a folder of the module's."""
    return Drill(conftest.set_maker(tmp_path_factory.mktemp("drill")))


def same(left: Batch, right: Batch) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def run_legs(drill: Drill, *, stops: tuple[int, int], workers: int) -> None:
    """World 2, then 1, then 4, stopped at two steps."""
    read: list[Batch] = []
    state = None
    for world, stop in zip(WORLDS, (*stops, drill.steps), strict=True):
        part, text = drill.leg(state, stop=stop, world=world, workers=workers)
        read += part
        state = json.loads(text)
    assert len(read) == drill.steps
    assert all(same(*pair) for pair in zip(read, drill.whole, strict=True))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_stops_anywhere(drill: Drill, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, drill.steps), label="first stop")
    second = data.draw(st.integers(first, drill.steps), label="second stop")

    run_legs(drill, stops=(first, second), workers=0)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [1, 4])
def test_stops_with_workers(drill: Drill, workers: int) -> None:
    first, second = np.sort(np.random.default_rng(workers).integers(1, drill.steps, 2)).tolist()

    run_legs(drill, stops=(first, second), workers=workers)


CHANGES: dict[str, dict[str, Any]] = {
    "set": {"name": "other"}, "version": {"version": 4}, "seed": {"seed": 2}, "batch_size": {"batch": 16},
    "block_shards": {"block_shards": 1}, "seq_len": {"seq_len": 48}, "split": {"split": "heldout"},
    "tokenizer": {}, "order": {},
}  # fmt: skip


@pytest.mark.parametrize("name", MEANINGS)
def test_other_data_is_refused_by_name_unless_it_is_allowed(make_set: Any, name: str) -> None:
    def loader(*, seed: int = 1, block_shards: int = 3, batch: int = 8, split: str = "train", **made: Any) -> Any:
        shards: Shards = make_set(num_documents=80, **made).open(split)
        order = make_order(shards, seed=seed, block_shards=block_shards)
        return {"shards": shards, "order": order, "batch_size": batch}

    state = make_state(**loader(), next_step=7)
    if name in ("tokenizer", "order"):
        state[name] = {"tokenizer": "1" * 64, "order": 0}[name]
    here = loader(**CHANGES[name])
    told: list[str] = []

    with pytest.raises(ShardSetError, match=f"loader state has {name} .*--set train.resume_data=ignore"):
        resume_step(state, **here)
    with pytest.raises(ShardSetError):
        resume_step(state, **here, allow=set(MEANINGS) - {name})
    assert resume_step(state, **here, allow={name}, notice=told.append) == 7
    assert [line.split()[0] for line in told] == [name]


def test_a_state_names_everything_that_decides(make_set: Any) -> None:
    shards = make_set().open()
    state = make_state(shards, make_order(shards, seed=1, block_shards=3), next_step=0, batch_size=8)

    assert sorted(state) == sorted(("next_step", *MEANINGS)) == sorted(("next_step", *CHANGES))
    assert json.loads(json.dumps(state)) == state


def test_no_file_of_the_drill_is_read_before_it_is_needed(drill: Drill) -> None:
    """A resumed rank opens the files of its own steps only."""
    shards = drill.small.open()
    batches = Batches(shards, drill.order(shards), start=drill.steps - 1, stop=drill.steps, batch_size=BATCH)

    list(batches)

    assert 0 < len(shards._verified) <= 2 * 2 < len(shards.files), "one block of two shards, or the ends of two"
