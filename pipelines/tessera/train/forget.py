"""Which training runs saw erased rows, how often and since which step: from set, order and number of steps.

Weights are what they were: who must not serve them is told. Exact, and the same for any number of ranks. Costs the
order of at most two epochs, 0.3 us a sample, and a few numbers a sample.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tessera.erasures import Erased
from tessera.errors import ShardSetError, SourceError, TrainingFailed
from tessera.home import Home
from tessera.shard import forget as shards
from tessera.shard.read.order import Order
from tessera.train import ledger
from tessera.train.ledger import Int, Segment
from tessera.train.metrics import last_step
from tessera.train.run import RunFolder
from tessera.train.ship import known_run_id

CHUNK = 2**20
NEVER = -1


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
    order: Order, *, targets: Int, end: int, begin: int = 0, batch_size: int = 1, skipped: Sequence[int] = ()
) -> tuple[Int, Int]:
    """How often, and when first, these samples come at indices `begin` to `end` - 1 of an order.

    Args:
        targets: [n], samples numbered through the shards, distinct.
        skipped: batches that do not count. With them the order of all epochs is gone through, not of two; so it is
            where it does not begin at 0.

    Returns:
        times [n], and the first global index [n], NEVER where there is none.
    """
    before = np.cumsum(order.samples_per_shard) - order.samples_per_shard
    sorter = np.argsort(targets)
    times, first = np.zeros(len(targets), np.int64), np.full(len(targets), NEVER)
    for low, high, weight in _stretches(order.num_samples, begin, end, whole=bool(skipped)):
        for start in range(low, high, CHUNK):
            at, index = _hits(order, start, min(start + CHUNK, high), before, targets, sorter)
            taken = ~np.isin(index // batch_size, skipped)
            at, index = at[taken], index[taken]
            np.add.at(times, at, weight)
            unseen = first[at] == NEVER
            first[at[unseen][::-1]] = index[unseen][::-1]  # of equal ones the first is written last
            if weight > 1 and (first != NEVER).all():
                break  # an epoch holds each once
    return times, first


def _stretches(epoch: int, begin: int, end: int, *, whole: bool) -> Iterator[tuple[int, int, int]]:
    """Stretches of indices to go through, and how often each of their samples comes.

    From the beginning of an order all epochs hold the same samples, so the first stands for every whole one.
    """
    if whole or begin or end < epoch:
        yield begin, end, 1
        return
    yield 0, epoch, end // epoch
    yield end - end % epoch, end, 1


def _hits(order: Order, begin: int, end: int, before: Int, targets: Int, sorter: Int) -> tuple[Int, Int]:
    """Which targets come at global indices `begin` to `end` - 1, and at which, in order."""
    index = np.arange(begin, end, dtype=np.int64)
    shard, sample = order.locate(index)
    number = before[shard] + sample
    at = np.searchsorted(targets, number, sorter=sorter).clip(max=len(targets) - 1)
    hit = targets[sorter[at]] == number
    return sorter[at[hit]], index[hit]


def _run(folder: RunFolder, *, home: Home, erased: Erased) -> RunSeen | None:
    """What a run saw, those that it goes on with included; None for a folder that is no run."""
    if not folder.manifest.is_file():
        return None
    steps, rows = num_steps(folder), dict[str, Seen]()
    try:
        for segment in ledger.segments(folder, steps=steps):
            places = shards.places(home, name=segment.set_name, version=segment.set_version, erased=erased).to_pylist()
            for seen in _seen(segment, places=places):
                known = rows.get(seen.doc_id, Seen(seen.doc_id, 0, seen.first_step))
                rows[seen.doc_id] = Seen(seen.doc_id, known.times + seen.times, known.first_step)
    except (ShardSetError, SourceError, TrainingFailed):
        return RunSeen(folder.root.name, known_run_id(folder), steps=steps, rows=(), known=False)
    return RunSeen(folder.root.name, known_run_id(folder), steps=steps, rows=tuple(rows[key] for key in sorted(rows)))


def _seen(segment: Segment, *, places: list[dict[str, Any]]) -> Iterator[Seen]:
    """By row, from the samples that hold its pieces."""
    samples = np.array(segment.order.samples_per_shard)
    begins = dict(zip(segment.files, (np.cumsum(samples) - samples).tolist(), strict=True))
    held: dict[str, set[int]] = {}
    for place in places:
        if place["file"] in begins:
            held.setdefault(place["doc_id"], set()).add(begins[place["file"]] + place["sample"])
    if not held or segment.last <= segment.first:
        return
    targets = np.array(sorted(set().union(*held.values())), dtype=np.int64)
    size = segment.batch_size
    times, first = draws(
        segment.order, targets=targets, begin=segment.first * size, end=segment.last * size, batch_size=size,
        skipped=segment.skipped,
    )  # fmt: skip
    for doc_id, numbers in sorted(held.items()):
        at = np.searchsorted(targets, sorted(numbers))
        drawn = at[times[at] > 0]
        if len(drawn):
            (step,) = segment.steps_of(first[drawn].min(keepdims=True) // size)
            yield Seen(doc_id, int(times[drawn].sum()), int(step))


def num_steps(folder: RunFolder) -> int:
    """Steps that the run has done: of its record, or the newest that it wrote down."""
    result = folder.read_result()
    if result is not None:
        return result.steps
    return last_step(folder.metrics)
