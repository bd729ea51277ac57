"""Two pages that hold everything they show: two models side by side, and the leaderboard. Figures, no item's text.

A page of a few tens of kilobytes, without a script, that asks nobody for anything. Differences are drawn with their
intervals, one scale a unit, always so that right is better for the first model, whichever way its metric goes. The same
figures give the same bytes: no time of day is written.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import chain

from tessera.evaluate.compare import Comparison, Side, TaskComparison
from tessera.evaluate.gauntlet import Failure
from tessera.evaluate.settings import PROBLEM
from tessera.evaluate.statistics import LOWER_IS_BETTER
from tessera.evaluate.task import Score
from tessera.prepare.report import html

STYLE = """
td:first-child, th:first-child { min-width: 6rem; }
.forest { display: grid; grid-template-columns: minmax(6rem, 14rem) minmax(12rem, 1fr) max-content; column-gap: 1rem;
  align-items: center; margin: 0.5rem 0 1rem; }
.forest .name { overflow-wrap: anywhere; }
.forest .figure { font-variant-numeric: tabular-nums; text-align: right; font-size: 0.875rem; }
.forest svg { width: 100%; height: 1.75rem; display: block; overflow: visible; }
.forest line { stroke: var(--soft); stroke-width: 2; }
.forest circle { fill: var(--soft); }
.forest .better line { stroke: var(--c0); } .forest .better circle { fill: var(--c0); }
.forest .worse line { stroke: var(--c7); } .forest .worse circle { fill: var(--c7); }
.forest line.tick, .forest line.middle { stroke: var(--soft); stroke-width: 1; }
.forest line.middle { stroke-dasharray: 3 3; }
.forest text { fill: var(--soft); font-size: 0.8rem; font-variant-numeric: tabular-nums; }
.sides { display: flex; justify-content: space-between; color: var(--soft); font-size: 0.8rem; gap: 1rem; }
.sides span { flex: 1; min-width: 0; overflow-wrap: anywhere; } .sides span + span { text-align: right; }
@media (max-width: 40rem) { .forest { grid-template-columns: minmax(5rem, 8rem) minmax(8rem, 1fr) max-content;
  column-gap: 0.6rem; } }
"""
SCORES = (
    ("Interval", "made so that 95 of 100 such intervals hold what endlessly many items like these would give."),
    ("Chance", "what guessing reaches. A score whose interval reaches down to it is not above chance."),
)
DIFFERENCES = (
    ("p", "how often models that are equal would differ so much, by McNemar's exact test or by random signs."),
    ("Holm's p", "the same, though several tasks were looked at; verdicts go by it. The one problem, chosen "
     "beforehand, has its own p."),
    ("No difference shown", "these items do not tell; it does not mean that the models are equal."),
    ("Left out", "items made of documents that one of the models was trained on; they do not count."),
)  # fmt: skip
VERSIONS = (
    (
        "Bits per byte",
        "bits that the model needs for a byte of its own set's held-out text; fewer are better, and "
        "those of different sets do not compare.",
    ),
    ("Gate", "the verdict of tessera evaluate; a version that failed serves only where it was forced to."),
)
NONE = "-"


@dataclass(frozen=True)
class LeaderRow:
    """A registered version on the leaderboard."""

    name: str
    """As people call it: `tessera-docs version 3`."""
    bits_per_byte: float | None = None
    """Of held-out text; None where it is not known."""
    scores: Mapping[str, Score | Failure] = field(default_factory=dict)
    """By task, in the primary metric."""
    gate: str = ""
    """`passed`, `failed`, or empty where it was not judged."""
    champion: bool = False


@dataclass(frozen=True)
class _Axis:
    """From -reach to reach, over the whole width."""

    reach: float
    step: float

    def at(self, value: float) -> str:
        share = (value + self.reach) / (2 * self.reach)
        return f"{100 * min(1.0, max(0.0, share)):.2f}%"

    def ticks(self) -> list[float]:
        most = math.floor(self.reach / self.step + 1e-9)
        return [self.step * place for place in range(-most, most + 1)]

    @property
    def digits(self) -> int:
        return max(0, -math.floor(math.log10(self.step) + 1e-9))


def comparison_page(comparison: Comparison) -> str:
    """Two models side by side."""
    a, b = comparison.a, comparison.b
    title = f"Tessera: {a.name} against {b.name}"
    weights = f"weights {a.weights_sha256[:12]} and {b.weights_sha256[:12]}"
    body = [
        f"<header><h1>{escape(title)}</h1>{html.paragraph(weights, css='versions')}",
        f"{html.paragraph(f'{comparison.sentence()}.')}</header><main>",
        *html.section("Differences", _forests(comparison)),
        *html.section("Scores", _side_by_side(comparison)),
        *(html.section("Not compared", [_missing(comparison.missing)]) if comparison.missing else ()),
        *_foot(DIFFERENCES),
    ]
    return html.page(title, style=html.file("page.css") + STYLE, body=body)


def leaderboard_page(rows: Sequence[LeaderRow]) -> str:
    """Registered versions by task: the one problem first, the best at it on top; without it by bits per byte."""
    title = "Tessera: leaderboard"
    failed = [
        (row.name, name, score.why)
        for row in sorted(rows, key=_rank)
        for name, score in row.scores.items()
        if isinstance(score, Failure)
    ]
    body = [
        f"<header><h1>{title}</h1>{html.paragraph(f'{_leader_sentence(rows)}.')}</header><main>",
        *html.section("Versions", [_leaders(rows)] if rows else [html.paragraph("No version is registered yet.")]),
        *(html.section("Without a score", [_failures(failed)]) if failed else ()),
        *_foot(VERSIONS),
    ]
    return html.page(title, style=html.file("page.css") + STYLE, body=body)


def _forests(comparison: Comparison) -> Iterator[str]:
    """One drawing a unit: shares together, and each metric of which fewer are better."""
    if not comparison.tasks:
        yield html.paragraph("No task could be compared.")
    units: dict[str, list[TaskComparison]] = {}
    for one in comparison.tasks:
        units.setdefault(one.metric.replace("_", " ") if one.metric in LOWER_IS_BETTER else "share", []).append(one)
    for unit, found in units.items():
        saved = f"{unit.capitalize()} that {comparison.a.name} saves"
        yield f"<h3>{escape('Shares of items' if unit == 'share' else saved)}</h3>"
        yield from _forest(found, a=comparison.a, b=comparison.b)


def _forest(found: Sequence[TaskComparison], *, a: Side, b: Side) -> Iterator[str]:
    axis = _axis(found)
    yield '<div class="forest">'
    for one in found:
        pair = one.paired
        said = f"{pair.gain:+.3f} [{pair.gain_low:+.3f}, {pair.gain_high:+.3f}]"
        css = {"better": "better", "worse": "worse"}.get(one.verdict, "open")
        label = escape(f"{one.task}: {said}, {one.verdict}")
        yield f'<span class="name">{escape(one.task)}</span><svg class="{css}" role="img" aria-label="{label}">'
        yield f"<title>{label}</title>"
        yield '<line class="middle" x1="50%" x2="50%" y1="0" y2="100%"/>'
        if all(map(math.isfinite, (pair.gain, pair.gain_low, pair.gain_high))):
            yield f'<line x1="{axis.at(pair.gain_low)}" x2="{axis.at(pair.gain_high)}" y1="50%" y2="50%"/>'
            yield f'<circle cx="{axis.at(pair.gain)}" cy="50%" r="5"/>'
        yield f'</svg><span class="figure">{escape(said)}</span>'
    marks = "".join(
        f'<line class="tick" x1="{axis.at(value)}" x2="{axis.at(value)}" y1="0" y2="5"/>'
        f'<text x="{axis.at(value)}" y="1.25rem" text-anchor="middle">{_signed(value, digits=axis.digits)}</text>'
        for value in axis.ticks()
    )
    yield f'<span></span><svg aria-hidden="true">{marks}</svg><span></span>'
    yield f'<span></span><div class="sides"><span>{escape(b.name)} is better</span>'
    yield f"<span>{escape(a.name)} is better</span></div><span></span></div>"


def _axis(found: Sequence[TaskComparison]) -> _Axis:
    """Even on both sides of 0, with two or three round ticks a side."""
    ends = chain.from_iterable((one.paired.gain_low, one.paired.gain_high) for one in found)
    most = max((abs(end) for end in ends if math.isfinite(end)), default=0.0) or 1.0
    size = 10.0 ** math.floor(math.log10(most))
    step = next(size * part for part in (0.5, 1.0, 2.0, 5.0) if most / (size * part) <= 2.5)
    return _Axis(reach=1.1 * most, step=step)


def _side_by_side(comparison: Comparison) -> Iterator[str]:
    a, b = comparison.a.name, comparison.b.name
    head = ("task", "verdict", "difference", "p", "Holm's p", a, b, "metric", "items", "left out", "first better",
            "second better")  # fmt: skip
    rows: list[tuple[html.Cell, ...]] = []
    for one in comparison.tasks:
        pair = one.paired
        difference = f"{pair.difference:+.3f} [{pair.low:+.3f}, {pair.high:+.3f}]"
        rows.append(
            (one.task, one.verdict, difference, _p(pair.p_value), _p(one.holm_p), _scored(one.a), _scored(one.b),
             one.metric, one.n, one.left_out + one.absent, pair.wins, pair.losses)
        )  # fmt: skip
    if rows:
        yield html.table(f"The first model is {a}; intervals hold 95 %", head=head, rows=rows)
    chance = [
        f"{side.name} is not above chance on {one.task} (chance {score.chance:.3f})."
        for one in comparison.tasks
        for side, score in ((comparison.a, one.a), (comparison.b, one.b))
        if score.metric not in LOWER_IS_BETTER and not score.above_chance
    ]
    yield from map(html.paragraph, chance)
    left_out = sum(one.left_out for one in comparison.tasks)
    absent = sum(one.absent for one in comparison.tasks)
    if left_out:
        yield html.paragraph(f"{left_out:,} items are left out: one of the models was trained on their documents.")
    if absent:
        yield html.paragraph(f"{absent:,} items are left out: one of the models was not asked.")


def _leaders(rows: Sequence[LeaderRow]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row.scores))
    first, rest = [name for name in names if name == PROBLEM], [name for name in names if name != PROBLEM]
    heading = _heading_over(rows)
    head = ("version", "gate", *map(heading, first), "bits per byte", *map(heading, rest))
    table = [
        (
            f"{row.name} (champion)" if row.champion else row.name,
            row.gate or NONE,
            *(_score_cell(row.scores.get(name)) for name in first),
            NONE if row.bits_per_byte is None else f"{row.bits_per_byte:.4f}",
            *(_score_cell(row.scores.get(name)) for name in rest),
        )
        for row in sorted(rows, key=_rank)
    ]
    return html.table("Registered versions, the best first; intervals hold 95 %", head=head, rows=table)


def _rank(row: LeaderRow) -> tuple[float, float]:
    score = row.scores.get(PROBLEM)
    bits = math.inf if row.bits_per_byte is None else row.bits_per_byte
    if not isinstance(score, Score) or not math.isfinite(score.value):
        return math.inf, bits
    return (score.value if score.metric in LOWER_IS_BETTER else -score.value), bits


def _leader_sentence(rows: Sequence[LeaderRow]) -> str:
    many = f"{len(rows)} registered version{'' if len(rows) == 1 else 's'}"
    champion = next((row.name for row in rows if row.champion), None)
    return f"{many}; the champion is {champion}" if champion else f"{many}; none is the champion"


def _heading_over(rows: Sequence[LeaderRow]) -> Callable[[str], str]:
    """Gives a task's heading, with its metric where all versions have the same."""

    def heading(name: str) -> str:
        scores = [row.scores.get(name) for row in rows]
        metrics = {score.metric for score in scores if isinstance(score, Score)}
        return f"{name}, {next(iter(metrics))}" if len(metrics) == 1 else name

    return heading


def _score_cell(score: Score | Failure | None) -> str:
    if score is None:
        return NONE
    return "no score" if isinstance(score, Failure) else _scored(score)


def _scored(score: Score) -> str:
    said = f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"
    level = score.metric not in LOWER_IS_BETTER and not score.above_chance
    return f"{said} not above chance" if level else said


def _failures(failed: Sequence[tuple[str, str, str]]) -> str:
    return html.table("Tasks without a score, and why", head=("version", "task", "why"), rows=failed)


def _missing(missing: Mapping[str, str]) -> str:
    return html.table("Tasks that say nothing, and why", head=("task", "why"), rows=[*missing.items()])


def _foot(more: Sequence[tuple[str, str]]) -> Iterator[str]:
    yield f"</main><footer><h2>How to read it</h2>{html.definitions((*SCORES, *more), css='glossary')}</footer>"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _signed(value: float, *, digits: int) -> str:
    return "0" if abs(value) < 1e-12 else f"{value:+.{digits}f}"
