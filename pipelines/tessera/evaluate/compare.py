"""Two models on the same tasks: what each scores, and whether the difference is real. Numbers only, no item's text.

Items of documents that either model was trained on do not count, and are counted. Of several tasks some differ by luck:
the one problem is judged by its own p-value, all other tasks by Holm's over them. A verdict needs that p below 0.05 and
an interval without 0; anything else is "no difference shown", which is not the same as being equal.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tessera.errors import SourceError
from tessera.evaluate.settings import PROBLEM
from tessera.evaluate.statistics import Paired, common, holm, paired, score_of, take
from tessera.evaluate.task import Outcomes, Score, Task, key_of

LEVEL = 0.05
Judgement = Literal["better", "worse", "no difference shown"]


@dataclass(frozen=True)
class Side:
    """One model, and what it did."""

    name: str
    """As people call it."""
    weights_sha256: str
    outcomes: Mapping[str, Outcomes]
    """By task."""
    seen: frozenset[str] = frozenset()
    """Keys of items whose document it was trained on."""
    failures: Mapping[str, str] = field(default_factory=dict)
    """Task without outcomes -> why."""


@dataclass(frozen=True)
class TaskComparison:
    """Both models on one task, over the items that count."""

    task: str
    category: str
    left_out: int
    """Items of documents that a model was trained on."""
    absent: int
    """Further items that a model was not asked."""
    a: Score
    b: Score
    paired: Paired
    """`a` against `b`."""
    holm_p: float
    """The p-value that the verdict goes by: Holm's over all tasks but the one problem, whose own it is."""
    verdict: Judgement
    """Of `a`."""

    @property
    def n(self) -> int:
        return self.paired.n

    @property
    def metric(self) -> str:
        return self.paired.metric


@dataclass(frozen=True)
class Comparison:
    """Two models on all tasks."""

    a: Side = field(repr=False)
    b: Side = field(repr=False)
    tasks: tuple[TaskComparison, ...]
    """The one problem first, then in the order given."""
    missing: Mapping[str, str]
    """Tasks that say nothing -> why."""

    def to_rows(self) -> list[dict[str, Any]]:
        """A flat row a task, of plain values; a number that is not finite is None."""
        return [_row(one) for one in self.tasks]

    def sentence(self) -> str:
        """What came out, in one line."""
        counts = {verdict: sum(one.verdict == verdict for one in self.tasks) for verdict in ("better", "worse")}
        rest = len(self.tasks) - sum(counts.values())
        said = (
            f"{self.a.name} against {self.b.name}, {_tasks(len(self.tasks))}: better on {counts['better']}, worse on "
        )
        said += f"{counts['worse']}, no difference shown on {rest}"
        return said + (f"; {_tasks(len(self.missing))} could not be compared" if self.missing else "")


def compare(a: Side, b: Side, *, tasks: Mapping[str, Task]) -> Comparison:
    """`a` against `b` on each of `tasks`, in its primary metric.

    A task without outcomes of both models, or without an item that neither was trained on, is missing with its reason.
    """
    found: dict[str, TaskComparison] = {}
    missing: dict[str, str] = {}
    for name in sorted(tasks, key=lambda name: name != PROBLEM):
        try:
            found[name] = _compare(a, b, task=tasks[name], name=name)
        except SourceError as error:
            missing[name] = str(error)
    for side in (a, b):
        missing.update({name: f"{side.name}: {why}" for name, why in side.failures.items() if name not in found})
    adjusted = holm({name: one.paired.p_value for name, one in found.items() if name != PROBLEM})
    judged = [_judged(one, holm_p=adjusted.get(name, one.paired.p_value)) for name, one in found.items()]
    return Comparison(a, b, tuple(judged), missing)


def _compare(a: Side, b: Side, *, task: Task, name: str) -> TaskComparison:
    for side in (a, b):
        if name not in side.outcomes:
            raise SourceError(f"{side.name}: {side.failures.get(name, 'was not asked; evaluate it on this task')}")
    keys = [key_of(item) for item in task.items]
    fresh = [place for place, key in enumerate(keys) if key not in a.seen and key not in b.seen]
    left_out = len(keys) - len(fresh)
    fresh_keys = [keys[place] for place in fresh]
    in_a, of_a = common(fresh_keys, a.outcomes[name].keys)
    in_b, of_b = common(fresh_keys, b.outcomes[name].keys)
    both = set(in_a) & set(in_b)
    if not both:
        why = f"all {left_out} items are of documents that a model was trained on" if not fresh else "no common item"
        raise SourceError(why)
    mine = take(a.outcomes[name], [place for at, place in zip(in_a, of_a, strict=True) if at in both])
    theirs = take(b.outcomes[name], [place for at, place in zip(in_b, of_b, strict=True) if at in both])
    counted = replace(task, items=tuple(task.items[fresh[at]] for at in sorted(both)))
    difference = paired(mine, theirs, metric=task.primary)
    return TaskComparison(
        name, category=task.category, left_out=left_out, absent=len(fresh) - len(both),
        a=score_of(mine, task=counted), b=score_of(theirs, task=counted), paired=difference,
        holm_p=difference.p_value, verdict="no difference shown",
    )  # fmt: skip


def _judged(one: TaskComparison, *, holm_p: float) -> TaskComparison:
    shown = holm_p < LEVEL and (one.paired.low > 0 or one.paired.high < 0)
    verdict: Judgement = "no difference shown" if not shown else "better" if one.paired.gain > 0 else "worse"
    return replace(one, holm_p=holm_p, verdict=verdict)


def _row(one: TaskComparison) -> dict[str, Any]:
    pair = one.paired
    row: dict[str, Any] = {
        "task": one.task, "category": one.category, "metric": one.metric, "n": one.n, "left_out": one.left_out,
        "absent": one.absent, "chance": one.a.chance,
        "a": one.a.value, "a_low": one.a.low, "a_high": one.a.high,
        "b": one.b.value, "b_low": one.b.low, "b_high": one.b.high,
        "difference": pair.difference, "low": pair.low, "high": pair.high,
        "wins": pair.wins, "losses": pair.losses, "p": pair.p_value, "holm_p": one.holm_p, "verdict": one.verdict,
    }  # fmt: skip
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}


def _tasks(number: int) -> str:
    return f"{number} task{'' if number == 1 else 's'}"
