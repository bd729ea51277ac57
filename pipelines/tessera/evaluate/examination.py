"""Asks a model what it was not asked before, and says what each task comes to.

Outcomes are looked up in `tables/scores` by (weights, task); only what is missing needs the model, which is then loaded
once. A task that cannot be made or asked is a failure with its reason, and stops no other. Items of documents that the
model was trained on do not count: the run's rows in `tables/rows_seen` say which.
"""

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from tessera.errors import TesseraError
from tessera.evaluate import outcomes, score_table
from tessera.evaluate.compare import Side
from tessera.evaluate.gauntlet import Failure
from tessera.evaluate.score_table import Examined
from tessera.evaluate.statistics import score_of, take
from tessera.evaluate.subject import Subject
from tessera.evaluate.task import Outcomes, Score, Task, key_of
from tessera.home import Home
from tessera.lineage import TaskScore
from tessera.progress import Tell, silent
from tessera.train import seen

Ask = Callable[[Mapping[str, Task]], Mapping[str, Outcomes | Failure]]
"""Asks the model some tasks: what it did, or why it could not be asked, by name."""


@dataclass(frozen=True)
class Examination:
    """All that one model did."""

    weights_sha256: str
    tasks: Mapping[str, Task]
    """Those that were asked, whole."""
    outcomes: Mapping[str, Outcomes]
    """Of all their items."""
    scores: Mapping[str, Score]
    """In the primary metric, over the items that count."""
    failures: Mapping[str, Failure]
    """Tasks without a score."""
    left_out: Mapping[str, int]
    """Task -> items that do not count."""
    seen: frozenset[str] = frozenset()
    """Keys of the items whose document the model was trained on."""

    @property
    def results(self) -> dict[str, Score | Failure]:
        """By task."""
        return {**self.scores, **self.failures}

    def side(self, name: str) -> Side:
        """This model in a comparison."""
        why = {task: failure.why for task, failure in self.failures.items()}
        return Side(name, self.weights_sha256, outcomes=self.outcomes, seen=self.seen, failures=why)

    def task_scores(self) -> dict[str, TaskScore]:
        """As a record holds them."""
        return {
            name: TaskScore(
                metric=one.metric, value=one.value, low=one.low, high=one.high, n=one.n, chance=one.chance,
                left_out=self.left_out.get(name, 0),
            )
            for name, one in self.scores.items()
        }  # fmt: skip


def examine_all(
    home: Home,
    *,
    tasks: Mapping[str, Task | Failure],
    weights_sha256: str,
    run: str,
    document_start: bool,
    ask: Ask,
    fresh: bool = False,
) -> Examination:
    """What a model does on `tasks`, kept in `tables/scores`.

    Args:
        run: the folder of the run that trained it, relative to the home; empty where it is not known.
        ask: asks the model; called once, with the tasks that it was not asked before.
        fresh: ask again what is known.
    """
    failures = {name: one for name, one in tasks.items() if isinstance(one, Failure)}
    asked = {name: one for name, one in tasks.items() if isinstance(one, Task)}
    digests = {name: score_table.digest_of(task, document_start=document_start) for name, task in asked.items()}
    known = {} if fresh else score_table.find(home, weights_sha256=weights_sha256, digests=[*digests.values()])
    missing = {name: task for name, task in asked.items() if digests[name] not in known}
    found = {name: in_order(known[digests[name]], task=asked[name]) for name in asked if name not in missing}
    new: dict[str, Examined] = {}
    for name, did in (ask(missing) if missing else {}).items():
        if isinstance(did, Failure):
            failures[name] = did
            continue
        found[name] = did
        new[digests[name]] = Examined(asked[name], did, score_of(did, task=asked[name]))
    score_table.keep(home, new, weights_sha256=weights_sha256)
    trained_on = seen_of(home, items=(item for name in found for item in asked[name].items), run=run)
    return _counted(asked, found, failures=failures, weights_sha256=weights_sha256, trained_on=trained_on)


def ask_here(
    tasks: Mapping[str, Task], *, subject: Callable[[], Subject], tell: Tell = silent
) -> dict[str, Outcomes | Failure]:
    """Asks a model in this process, task by task; one that cannot be asked stops no other."""
    found: dict[str, Outcomes | Failure] = {}
    for place, (name, task) in enumerate(tasks.items()):
        tell(f"asking {name}", place, len(tasks))
        began = time.perf_counter()
        try:
            found[name] = replace(outcomes.examine(subject(), task), seconds=time.perf_counter() - began)
        except TesseraError as error:
            found[name] = Failure(str(error))
    return found


def in_order(kept: Outcomes, *, task: Task) -> Outcomes:
    """Outcomes that were kept, in the order of the task's items."""
    places = {key: place for place, key in enumerate(kept.keys)}
    return take(kept, [places[key_of(item)] for item in task.items])


def seen_of(home: Home, *, items: Iterable[object], run: str) -> frozenset[str]:
    """The documents of these items that a run was trained on, the runs that it goes on with included."""
    doc_ids = {doc_id for item in items if (doc_id := getattr(item, "doc_id", None)) is not None}
    if not run or not doc_ids:
        return frozenset()
    name = run.rpartition("/")[2]
    return frozenset(row["doc_id"] for row in seen.by_rows(home, doc_ids=sorted(doc_ids)) if row["run"] == name)


def _counted(
    tasks: Mapping[str, Task], found: Mapping[str, Outcomes], *, failures: Mapping[str, Failure], weights_sha256: str,
    trained_on: Collection[str],
) -> Examination:  # fmt: skip
    scores: dict[str, Score] = {}
    left_out: dict[str, int] = {}
    failed, seen_keys = dict(failures), set()
    for name, task in tasks.items():
        if name not in found:
            continue
        did = found[name]
        places = [place for place, item in enumerate(task.items) if item.doc_id not in trained_on]
        seen_keys |= {did.keys[place] for place in set(range(len(task.items))) - {*places}}
        left_out[name] = len(task.items) - len(places)
        if places:
            counted = replace(task, items=tuple(task.items[place] for place in places))
            scores[name] = score_of(take(did, places), task=counted)
        else:
            failed[name] = Failure(f"all {left_out[name]} items are of documents that the model was trained on")
    asked = {name: task for name, task in tasks.items() if name in found}
    return Examination(weights_sha256, asked, found, scores, failed, left_out, frozenset(seen_keys))
