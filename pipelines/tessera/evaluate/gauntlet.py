"""The gauntlet: categories of benchmarks, each scored by how far above chance a model is. No torch.

A benchmark counts (accuracy - chance) / (1 - chance): 0 is chance, 1 is everything right, below 0 is worse than chance.
A category is the mean of its benchmarks, `overall` the mean of the categories. A benchmark that failed or was not run
makes its category incomplete, and `overall` with it: never a mean over what happens to be there.
"""

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from tessera.config import Section, load, read_yaml
from tessera.errors import ConfigError
from tessera.evaluate.settings import BUILT_IN, PROBLEM, TaskSettings
from tessera.evaluate.statistics import LOWER_IS_BETTER
from tessera.evaluate.task import Score

OVERALL = "overall"


@dataclass(frozen=True)
class Failure:
    """Why a task has no score."""

    why: str


class GauntletSettings(Section):
    """A gauntlet's file."""

    categories: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Category -> benchmarks: built-in ones, those of `tasks` here, of `evaluate.tasks`, and `problem`."""
    tasks: tuple[TaskSettings, ...] = ()
    """Benchmarks from files and tables; one with a category needs no mention in `categories`."""


@dataclass(frozen=True)
class BenchmarkScore:
    """One benchmark of a category."""

    name: str
    score: Score
    value: float
    """Above chance, as a share of what is above chance."""


@dataclass(frozen=True)
class CategoryScore:
    """One category."""

    name: str
    benchmarks: tuple[BenchmarkScore, ...]
    """Those with a score."""
    missing: Mapping[str, str]
    """Those without -> why."""

    @property
    def value(self) -> float | None:
        """The mean of its benchmarks; None: incomplete."""
        if self.missing:
            return None
        return sum(one.value for one in self.benchmarks) / len(self.benchmarks)


@dataclass(frozen=True)
class GauntletScore:
    """All categories of one model."""

    categories: tuple[CategoryScore, ...]

    @property
    def overall(self) -> float | None:
        """The mean of the categories; None: one of them is incomplete."""
        found = [one.value for one in self.categories if one.value is not None]
        return sum(found) / len(found) if len(found) == len(self.categories) else None

    @property
    def missing(self) -> dict[str, str]:
        """Benchmark without a score -> why."""
        return {name: why for one in self.categories for name, why in one.missing.items()}

    @property
    def values(self) -> dict[str, float | None]:
        """By category, and `overall`; None: incomplete."""
        return {**{one.name: one.value for one in self.categories}, OVERALL: self.overall}

    def sentences(self) -> Iterator[str]:
        """What is to be said of it: a line a category, `overall`, and a line for each benchmark to beware of."""
        for one in self.categories:
            why = "; ".join(f"{name}: {reason}" for name, reason in one.missing.items())
            yield f"{one.name}: incomplete ({why})" if one.value is None else f"{one.name}: {one.value:.3f}"
        unfinished = ", ".join(one.name for one in self.categories if one.value is None)
        yield f"{OVERALL}: {self.overall:.3f}" if self.overall is not None else f"{OVERALL}: incomplete ({unfinished})"
        for benchmark in (benchmark for one in self.categories for benchmark in one.benchmarks):
            if not benchmark.score.above_chance:
                yield not_above_chance(benchmark.name, benchmark.score)


@dataclass(frozen=True)
class Gauntlet:
    """Which benchmarks belong to which category."""

    categories: Mapping[str, tuple[str, ...]]
    tasks: tuple[TaskSettings, ...] = ()
    """Those that its file defines."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of all benchmarks, in the order of the categories."""
        return tuple(name for names in self.categories.values() for name in names)

    @property
    def built_in(self) -> tuple[str, ...]:
        """Those made here, in the order of the categories."""
        return tuple(name for name in self.names if name in BUILT_IN)

    def summarise(self, scores: Mapping[str, Score | Failure]) -> GauntletScore:
        """What a model's scores come to; see `summarise`."""
        return summarise(self.categories, scores)


def read_gauntlet(path: Path, *, tasks: Sequence[TaskSettings] = ()) -> Gauntlet:
    """A gauntlet from its file.

    Args:
        tasks: those of `evaluate.tasks`, which categories may name; one whose category is a name joins that category.

    Raises:
        ConfigError: an unknown key or benchmark, one in two places, an empty category, or one that is no accuracy.
    """
    settings = load(GauntletSettings, layers=[read_yaml(path)])
    defined = [*settings.tasks, *tasks]
    categories = {name: [*names] for name, names in settings.categories.items()}
    for task in defined:
        if task.category and task.name not in categories.setdefault(task.category, []):
            categories[task.category].append(task.name)
    _check(categories, defined=defined, origin=str(path))
    unused = [task.name for task in settings.tasks if not any(task.name in names for names in categories.values())]
    if unused:
        raise ConfigError(f"{path}: {unused[0]} stands in no category; give it one, or put it under evaluate.tasks")
    return Gauntlet({name: tuple(names) for name, names in categories.items()}, tasks=settings.tasks)


def summarise(categories: Mapping[str, Sequence[str]], scores: Mapping[str, Score | Failure]) -> GauntletScore:
    """Category and overall means above chance.

    Raises:
        ConfigError: a benchmark's metric is no accuracy.
    """
    return GauntletScore(tuple(_category(name, names=names, scores=scores) for name, names in categories.items()))


def above_chance(score: Score) -> float:
    """(accuracy - chance) / (1 - chance)."""
    return (score.value - score.chance) / (1 - score.chance)


def not_above_chance(name: str, score: Score) -> str:
    """The plain sentence for a score whose interval reaches down to chance."""
    return (
        f"{name} is not above chance: {score.metric} {score.value:.3f} ({score.low:.3f} to {score.high:.3f}, "
        f"{score.n} items), chance {score.chance:.3f}"
    )


def _category(name: str, *, names: Sequence[str], scores: Mapping[str, Score | Failure]) -> CategoryScore:
    found: list[BenchmarkScore] = []
    missing: dict[str, str] = {}
    for benchmark in names:
        score = scores.get(benchmark, Failure("not run"))
        if isinstance(score, Failure):
            missing[benchmark] = score.why
            continue
        if score.metric in LOWER_IS_BETTER:
            raise ConfigError(
                f"gauntlet: {benchmark} is measured in {score.metric}, which is no accuracy and has no chance level; "
                f"take it out of {name}"
            )
        if not math.isfinite(score.value):
            missing[benchmark] = f"its {score.metric} is {score.value}"
        elif score.chance >= 1:
            missing[benchmark] = "there is nothing to choose from: chance is 1"
        else:
            found.append(BenchmarkScore(benchmark, score, above_chance(score)))
    return CategoryScore(name, tuple(found), missing)


def _check(categories: Mapping[str, Sequence[str]], *, defined: Sequence[TaskSettings], origin: str) -> None:
    if not categories:
        raise ConfigError(f"{origin}: found no category, wanted at least one: categories: {{logic: [dyck]}}")
    known = [*BUILT_IN, *(task.name for task in defined), PROBLEM]
    places: dict[str, str] = {}
    for category, names in categories.items():
        if category == OVERALL:
            raise ConfigError(f"{origin}: a category is called {OVERALL}, as the mean of all is; rename it")
        if not names:
            raise ConfigError(f"{origin}: the category {category} is empty; name a benchmark, or leave it out")
        for name in names:
            if name not in known:
                nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
                hint = f"did you mean {nearest[0]}?" if nearest else f"built in are {', '.join(BUILT_IN)}"
                raise ConfigError(f"{origin}: {category} names {name}, which is no benchmark; {hint}")
            if name in places:
                raise ConfigError(f"{origin}: {name} stands in {places[name]} and in {category}; it counts once only")
            places[name] = category
    for task in defined:
        if task.name in places and (task.kind == "perplexity" or task.metric in LOWER_IS_BETTER):
            raise ConfigError(
                f"{origin}: {task.name} is measured in {task.metric or 'bits_per_byte'}, which is no accuracy and has "
                f"no chance level; take it out of {places[task.name]}"
            )
