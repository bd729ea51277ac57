"""The gate: scores in, a verdict with a sentence for each condition out. A pure function; nothing is read or moved.

What is not known meets no condition: a score that is missing, incomplete, not finite, or was never measured. A sentence
of a condition that is not met has "is not" in it; of one that is met, never.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from tessera.evaluate.gauntlet import OVERALL, Failure, GauntletScore
from tessera.evaluate.settings import GateSettings, NonInferiority
from tessera.evaluate.statistics import LOWER_IS_BETTER, Paired, non_inferior
from tessera.evaluate.task import Score

TASK, CATEGORY = "task:", "category:"
"""In front of a name of `at_least` that both a task and a category have."""
Condition = tuple[bool, str]


@dataclass(frozen=True)
class Facts:
    """What was measured of a checkpoint."""

    bits_per_byte: float
    baselines: Mapping[str, float]
    scores: Mapping[str, Score | Failure] = field(default_factory=dict)
    """By task, in the primary metric."""
    gauntlet: GauntletScore | None = None
    paired: Mapping[str, Paired] = field(default_factory=dict)
    """Task -> the checkpoint against the champion, the checkpoint first."""
    not_compared: Mapping[str, str] = field(default_factory=dict)
    """Task that could not be compared -> why."""
    champion: str | None = None
    """As people call it; None: there is none."""
    exposure: float | None = None
    """Mean exposure of canaries planted once, in bits above the held-out ones'."""
    latency_ms: float | None = None
    """Median time to a next token."""


@dataclass(frozen=True)
class Verdict:
    """Whether a checkpoint may become champion, and why."""

    passed: bool
    reasons: tuple[str, ...]
    """One sentence a condition, met or not, in the order of the settings."""


def judge(facts: Facts, *, settings: GateSettings) -> Verdict:
    """Holds what was measured against each condition of the settings."""
    conditions = [*_conditions(facts, settings=settings)]
    return Verdict(passed=all(met for met, _ in conditions), reasons=tuple(reason for _, reason in conditions))


def _conditions(facts: Facts, *, settings: GateSettings) -> Iterator[Condition]:
    bits, most = facts.bits_per_byte, settings.max_bits_per_byte
    yield _held("bits per byte", bits, met=bits <= most, limit=f"at most {most:.4f}, the limit")
    for rival in settings.beat:
        baseline = facts.baselines[rival]
        yield _held("bits per byte", bits, met=bits < baseline, limit=f"below {baseline:.4f}, the {rival}")
    for name, least in settings.at_least.items():
        yield _at_least(facts, name=name, least=least)
    for one in settings.not_worse:
        yield _not_worse(facts, wanted=one)
    if settings.max_exposure is not None:
        yield _at_most("canary exposure in bits", facts.exposure, most=settings.max_exposure)
    if settings.max_latency_ms is not None:
        yield _at_most("time to a next token in ms", facts.latency_ms, most=settings.max_latency_ms)


def _held(what: str, value: float, *, met: bool, limit: str) -> Condition:
    met = met and math.isfinite(value)
    return met, f"{what} {value:.4f} {'is' if met else 'is not'} {limit}"


def _at_most(what: str, value: float | None, *, most: float) -> Condition:
    if value is None:
        return False, f"{what} is not measured, wanted at most {most:.4f}, the limit"
    return _held(what, value, met=value <= most, limit=f"at most {most:.4f}, the limit")


def _at_least(facts: Facts, *, name: str, least: float) -> Condition:
    limit = f"at least {least:.4f}, the least that passes"
    plain = name.removeprefix(TASK).removeprefix(CATEGORY)
    categories = facts.gauntlet.values if facts.gauntlet else {}
    of_task, of_category = plain in facts.scores, plain in categories
    if plain == name and of_task and of_category:
        return False, f"{name} is not one thing: write {TASK}{name} or {CATEGORY}{name} in evaluate.gate.at_least"
    if of_category and not name.startswith(TASK):
        value = categories[plain]
        called = plain if plain == OVERALL else f"category {plain}"
        if value is None:
            return False, f"{called} is not complete ({_missing(facts, category=plain)}), wanted {limit}"
        return _held(called, value, met=value >= least, limit=limit)
    if of_task and not name.startswith(CATEGORY):
        return _task_at_least(facts.scores[plain], name=plain, least=least, limit=limit)
    return False, f"{name} is not among what was scored, wanted {limit}"


def _task_at_least(score: Score | Failure, *, name: str, least: float, limit: str) -> Condition:
    if isinstance(score, Failure):
        return False, f"{name} is not scored ({score.why}), wanted {limit}"
    if score.metric in LOWER_IS_BETTER:
        return False, (
            f"{name} is not a score that at_least can hold: of {score.metric} fewer are better; "
            "take max_bits_per_byte or not_worse"
        )
    met, said = _held(f"{name} {score.metric}", score.value, met=score.value >= least, limit=limit)
    return met, f"{said} ({score.low:.4f} to {score.high:.4f}, {score.n} items)"


def _not_worse(facts: Facts, *, wanted: NonInferiority) -> Condition:
    name, champion = wanted.task, facts.champion
    if champion is None:
        return True, f"{name}: there is no champion yet"
    found = facts.paired.get(name)
    if found is None:
        score = facts.scores.get(name)
        why = facts.not_compared.get(name) or (score.why if isinstance(score, Failure) else "")
        said = f" ({why})" if why else ""
        return False, f"{name} is not compared with {champion}{said}, wanted at most {wanted.margin:g} worse"
    verdict = non_inferior(found, margin=wanted.margin)
    gain = f"{name} {found.metric}, by how much better than {champion}: {found.gain:+.4f}"
    bound = f"its lower 95 % bound {found.gain_low:+.4f}"
    if verdict.passed:
        return True, f"{gain}; {bound} is above {-wanted.margin:g}, the margin ({found.n} items)"
    if verdict.needed is None:
        return False, f"{gain}; {bound} is not above {-wanted.margin:g}, the margin ({found.n} items)"
    return False, (
        f"{gain}; that it is above {-wanted.margin:g}, the margin, is not shown: {found.n} items are too few to tell, "
        f"about {verdict.needed:,} are needed"
    )


def _missing(facts: Facts, *, category: str) -> str:
    """Benchmarks without a score and why, of a category or of all."""
    assert facts.gauntlet is not None
    return "; ".join(
        f"{name}: {why}"
        for one in facts.gauntlet.categories
        if category in (one.name, OVERALL)
        for name, why in one.missing.items()
    )
