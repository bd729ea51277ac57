"""What the page draws, as plain values: axes, what differs, and for each held-out text its runs and Pareto fronts.

Bits per byte compare two runs only on the same text, so runs of another text have a front of their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tessera.explore import pareto
from tessera.explore.recipe import differing, short_names
from tessera.explore.runs import HELDOUT, Run

AXES = {
    "seconds": "training seconds",
    "tokens": "training tokens",
    "processor_seconds": "processor-seconds (training seconds x ranks)",
}
"""What a run may cost, by the attribute of `Run`."""
LOG_RANGE = 20
"""A logarithmic axis from this ratio of the largest to the smallest."""
OF_TEXT = ("sample.", "prepare.")
OF_SEQUENCES = ("shard.seq_len", "shard.seed", "train.heldout.sequences")
"""Settings that decide which text is held out, and which of it is measured while training."""


@dataclass(frozen=True)
class Text:
    """The runs that were measured on one held-out text."""

    label: str
    """A letter, by the number of runs."""
    detail: str
    """What tells it from the other texts, in one line."""
    runs: tuple[int, ...]
    """Places in the list of runs."""
    fronts: dict[str, tuple[int, ...]]
    """By axis: the runs on the front, cheapest first."""
    log: dict[str, bool]
    """By axis: whether it is logarithmic."""


@dataclass(frozen=True)
class Chart:
    """Everything that is drawn."""

    runs: tuple[Run, ...]
    differing: tuple[str, ...]
    """Settings that differ between runs."""
    names: dict[str, str]
    """Their short names."""
    texts: tuple[Text, ...]
    """The one with most runs first."""

    def front(self, axis: str = "seconds") -> list[Run]:
        """The front of the first text, cheapest first."""
        return [self.runs[place] for place in self.texts[0].fronts[axis]] if self.texts else []

    def recipe(self, run: Run, *, among: Sequence[Run]) -> str:
        """What tells a run from the others of these, in one line: what takes most values comes first."""
        values = {key: {other.recipe.get(key) for other in among} for key in differing([run.recipe for run in among])}
        keys = sorted(values, key=lambda key: (-len(values[key]), key))
        return ", ".join(f"{self.names[key]} {run.recipe[key]}" for key in keys if key in run.recipe)


def arrange(runs: Sequence[Run], *, quality: str) -> Chart:
    """Finds what differs, which runs compare, and the fronts."""
    keys = differing([run.recipe for run in runs])
    groups: dict[tuple[object, ...], list[int]] = {}
    for place, key in enumerate(texts_of(runs, quality=quality)):
        groups.setdefault(key, []).append(place)
    ordered = sorted(groups.values(), key=lambda places: (-len(places), places))
    details = _details([[runs[place] for place in places] for places in ordered])
    texts = [
        _text(places, label=_letter(number), detail=detail, runs=runs)
        for number, (places, detail) in enumerate(zip(ordered, details, strict=True))
    ]
    return Chart(runs=tuple(runs), differing=tuple(keys), names=short_names(keys), texts=tuple(texts))


def texts_of(runs: Sequence[Run], *, quality: str) -> list[tuple[object, ...]]:
    """For each run, what identifies the text that its quality was measured on.

    Two runs with the same gzip baseline were measured on the same text, whatever it was called. Before an evaluation
    has told it, tables with versions and the settings of preparation speak for the text. The measure taken while
    training sees the first sequences only, and which those are depends on tokenizer and packing too.
    """
    named = [(run.tables, *_some(run, OF_TEXT)) for run in runs]
    known: dict[object, set[float]] = {}
    for run, name in zip(runs, named, strict=True):
        known.setdefault(name, set()).update([run.gzip] if run.gzip is not None else [])
    found: list[tuple[object, ...]] = []
    for run, name in zip(runs, named, strict=True):
        gzip = run.gzip if run.gzip is not None else next(iter(known[name])) if len(known[name]) == 1 else None
        text = name if gzip is None else (gzip,)
        found.append((text, run.tokenizer, *_some(run, OF_SEQUENCES)) if quality == HELDOUT else (text,))
    return found


def _text(places: Sequence[int], *, label: str, detail: str, runs: Sequence[Run]) -> Text:
    competing = [place for place in places if runs[place].competes]
    shown = [place for place in places if runs[place].on_chart]
    fronts, log = {}, {}
    for axis in AXES:
        points = [(float(getattr(runs[place], axis)), runs[place].quality or 0.0) for place in competing]
        fronts[axis] = tuple(competing[found] for found in pareto.front(points))
        costs = [float(getattr(runs[place], axis)) for place in shown]
        log[axis] = bool(costs) and min(costs) > 0 and max(costs) / min(costs) >= LOG_RANGE
    return Text(label=label, detail=detail, runs=tuple(places), fronts=fronts, log=log)


def _details(groups: Sequence[Sequence[Run]]) -> list[str]:
    """For each text, those of its facts in which the texts differ."""
    facts = []
    for runs in groups:
        run = next((run for run in runs if run.gzip is not None), runs[0])
        gzip = {} if run.gzip is None else {"gzip": f"{run.gzip:.4f}"}
        tables = dict(table.split(" ", 1) for table in run.tables)
        facts.append({**_settings_of_text(run), **tables, "tokenizer": run.tokenizer[:12], **gzip})
    keys = differing(facts)
    names = short_names(keys)
    return [", ".join(f"{names[key]} {fact[key]}" for key in keys if key in fact) or "same settings" for fact in facts]


def _settings_of_text(run: Run) -> dict[str, str]:
    return dict(_some(run, (*OF_TEXT, *OF_SEQUENCES)))


def _some(run: Run, prefixes: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((key, value) for key, value in run.recipe.items() if key.startswith(prefixes)))


def _letter(number: int) -> str:
    """A to Z, then AA."""
    return (_letter(number // 26 - 1) if number >= 26 else "") + chr(ord("A") + number % 26)
