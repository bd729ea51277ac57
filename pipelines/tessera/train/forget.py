"""Which training runs saw erased rows, how often and since which step: from set, order and number of steps.

Weights are what they were: who must not serve them is told. Exact, and the same for any number of ranks. Costs the
order of at most two epochs, 0.3 us a sample, and a few numbers a sample.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.erasures import Erased
from tessera.errors import ShardSetError, SourceError, TrainingFailed
from tessera.home import Home
from tessera.shard import forget as shards
from tessera.shard.read.order import Order
from tessera.shard.run_manifest import SetInfo, read_run_manifest
from tessera.train.metrics import Tail
from tessera.train.run import RunFolder
from tessera.train.ship import known_run_id

CHUNK = 2**20
NEVER = -1

Int = NDArray[np.int64]


@dataclass(frozen=True)
class Seen:
    """What a run saw of one row."""

    doc_id: str
    times: int
    """Sequences drawn that hold a piece of it."""
    first_step: int
    """The first step that drew one, from 1."""


@dataclass(frozen=True)
class RunSeen:
    """One training run."""

    run: str
    """The run folder's name."""
    run_id: str
    """The MLflow run; empty where MLflow never answered."""
    steps: int
    rows: tuple[Seen, ...]
    known: bool = True
    """Whether it could be told; the set that it was trained on may be gone."""


def runs_that_saw(home: Home, *, erased: Erased) -> list[RunSeen]:
    """The runs, finished or not, whose steps drew an erased row, and those of which that cannot be told."""
    found = [_run(RunFolder(root), home=home, erased=erased) for root in sorted(home.runs.glob("*"))]
    return [one for one in found if one is not None and (one.rows or not one.known)]


def draws(
    order: Order, *, targets: Int, total: int, batch_size: int = 1, skipped: Sequence[int] = ()
) -> tuple[Int, Int]:
    """How often, and when first, these samples come among the first `total` of an order.

    Args:
        targets: [n], samples numbered through the shards, distinct.
        skipped: batches that do not count. With them the order of all epochs is gone through, not of two.

    Returns:
        times [n], and the first global index [n], NEVER where there is none.
    """
    before = np.cumsum(order.samples_per_shard) - order.samples_per_shard
    if skipped:
        return _draws_one_by_one(order, targets=targets, total=total, batch_size=batch_size, skipped=skipped)
    epochs, rest = divmod(total, order.num_samples)
    sorter = np.argsort(targets)
    times, first = np.full(len(targets), epochs), np.full(len(targets), NEVER)
    for begin in range(0, min(total, order.num_samples), CHUNK):
        at, index = _hits(order, begin, min(begin + CHUNK, total, order.num_samples), before, targets, sorter)
        first[at] = index
        if not (first == NEVER).any():
            break
    for begin in range(total - rest, total, CHUNK):
        at, _ = _hits(order, begin, min(begin + CHUNK, total), before, targets, sorter)
        times[at] += 1
    return times, first


def _draws_one_by_one(
    order: Order, *, targets: Int, total: int, batch_size: int, skipped: Sequence[int]
) -> tuple[Int, Int]:
    before = np.cumsum(order.samples_per_shard) - order.samples_per_shard
    sorter = np.argsort(targets)
    times, first = np.zeros(len(targets), np.int64), np.full(len(targets), NEVER)
    for begin in range(0, total, CHUNK):
        at, index = _hits(order, begin, min(begin + CHUNK, total), before, targets, sorter)
        taken = ~np.isin(index // batch_size, skipped)
        np.add.at(times, at[taken], 1)
        new, index = at[taken][::-1], index[taken][::-1]  # of equal ones the first is written last
        unseen = first[new] == NEVER
        first[new[unseen]] = index[unseen]
    return times, first


def _hits(order: Order, begin: int, end: int, before: Int, targets: Int, sorter: Int) -> tuple[Int, Int]:
    """Which targets come at global indices `begin` to `end` - 1, and at which, in order."""
    index = np.arange(begin, end, dtype=np.int64)
    shard, sample = order.locate(index)
    number = before[shard] + sample
    at = np.searchsorted(targets, number, sorter=sorter).clip(max=len(targets) - 1)
    hit = targets[sorter[at]] == number
    return sorter[at[hit]], index[hit]


def _run(folder: RunFolder, *, home: Home, erased: Erased) -> RunSeen | None:
    """What a run saw; None for a folder that is no run."""
    if not folder.manifest.is_file():
        return None
    try:
        spec = folder.read_spec()
        table = read_run_manifest(folder.manifest)
        info = SetInfo.from_metadata(table.schema.metadata)
        places = shards.places(home, name=info.name, version=info.version, erased=erased).to_pylist()
    except (ShardSetError, SourceError, TrainingFailed):
        return RunSeen(folder.root.name, known_run_id(folder), steps=num_steps(folder), rows=(), known=False)
    train = table.filter(np.array([split == "train" for split in table["split"].to_pylist()], bool))
    samples = train["samples"].to_numpy()
    steps = num_steps(folder)
    rows: tuple[Seen, ...] = ()
    if places and steps and samples.sum():
        order = Order(samples, seed=spec.settings.seed, block_shards=spec.block_shards)
        begins = dict(zip(train["file"].to_pylist(), (np.cumsum(samples) - samples).tolist(), strict=True))
        rows = _seen(
            places, begins=begins, order=order, steps=steps, batch_size=spec.settings.batch_size,
            skipped=skipped_batches(folder),
        )  # fmt: skip
    return RunSeen(folder.root.name, known_run_id(folder), steps=steps, rows=rows)


def _seen(
    places: list[dict[str, Any]], *, begins: Mapping[str, int], order: Order, steps: int, batch_size: int,
    skipped: Sequence[int],
) -> tuple[Seen, ...]:  # fmt: skip
    """By row, from the samples that hold its pieces."""
    held: dict[str, set[int]] = {}
    for place in places:
        held.setdefault(place["doc_id"], set()).add(begins[place["file"]] + place["sample"])
    targets = np.array(sorted(set().union(*held.values())), dtype=np.int64)
    total = (steps + len(skipped)) * batch_size
    times, first = draws(order, targets=targets, total=total, batch_size=batch_size, skipped=skipped)
    rows = []
    for doc_id, samples in sorted(held.items()):
        at = np.searchsorted(targets, sorted(samples))
        drawn = at[times[at] > 0]
        if len(drawn):
            batch = int(first[drawn].min()) // batch_size
            step = batch + 1 - sum(other < batch for other in skipped)
            rows.append(Seen(doc_id, int(times[drawn].sum()), step))
    return tuple(rows)


def skipped_batches(folder: RunFolder) -> tuple[int, ...]:
    """Of its record, or of its newest checkpoint: see `train.spikes`."""
    if (result := folder.read_result()) is not None:
        return result.skipped
    for state in sorted(folder.checkpoints.glob("step-*/state.json"), reverse=True):
        return tuple(json.loads(state.read_text(encoding="utf-8"))["progress"].get("skipped", ()))
    return ()


def num_steps(folder: RunFolder) -> int:
    """Steps that the run has done: of its record, or the newest that it wrote down."""
    result = folder.read_result()
    if result is not None:
        return result.steps
    return max((int(line["step"]) for line in Tail(Path(folder.metrics)).read() if "step" in line), default=0)
