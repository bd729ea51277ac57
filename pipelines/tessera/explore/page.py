"""The map as one HTML file of 5 MB: plotly's script, the data and our own script inside, and no request to anywhere.

A content security policy forbids connections. Whatever MLflow holds of a run is untrusted text: in HTML it is escaped,
in the script's JSON every `<`, `>` and `&` is. The same runs give the same bytes; no time of day is written.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from importlib import resources
from math import isfinite
from typing import Any

from tessera.explore.chart import AXES, Chart
from tessera.explore.runs import HELDOUT, LeftOut, Run

POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
QUALITY = "held-out bits per byte"
MAX_NAMES = 20
"""Names of left out runs that are written out."""
GLOSSARY = (
    ("Bits per byte", "bits that the model needs for a byte of held-out text; fewer are better."),
    ("Training seconds", "time in training steps as each run measured it, on the machine that it had: without "
     "starting, measuring and saving."),
    ("The front", "runs trained to their end that no other such run beats: none is at least as good for at most the "
     "cost, and better in one of them."),
    ("Held-out text", "runs are compared only with runs that were measured on the same text; each text has its front."),
)  # fmt: skip


def render(chart: Chart, *, experiment: str, quality: str, left_out: Sequence[LeftOut]) -> str:
    """The whole page."""
    title = f"Tessera map: {experiment}"
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>{escape(title)}</title><style>{_file('map.css')}</style></head><body>",
        f"<header><h1>{escape(title)}</h1><p>{escape(sentence(chart))}</p></header>",
        *(_charts(chart) if chart.runs else _nothing_yet()),
        *_left_out(chart, left_out=left_out),
        *_glossary(quality),
        *(_scripts(chart) if chart.runs else ()),
        "</body></html>\n",
    ]
    return "\n".join(parts)


def sentence(chart: Chart) -> str:
    """What the map says, in one line."""
    front = chart.front()
    num_shown = len(chart.texts[0].runs) if chart.texts else 0
    many = f"{_count(len(chart.runs), 'training run')}"
    if len(chart.texts) > 1:
        many += f" on {len(chart.texts)} held-out texts, {num_shown:,} on the first"
    if not front:
        return f"{many}; none is finished and measured yet."
    best = front[-1]
    cost = f"{best.seconds:,.1f} s of training"
    return f"{many}, {len(front):,} on the front of quality against time; the best reached {best.quality:.3f} " + (
        f"held-out bits per byte in {cost}."
    )


def _charts(chart: Chart) -> Iterator[str]:
    axes = "".join(
        f'<button type="button" data-axis="{axis}" aria-pressed="{_bool(axis == "seconds")}">{label}</button>'
        for axis, label in (("seconds", "seconds"), ("tokens", "tokens"), ("processor_seconds", "processor-seconds"))
    )
    yield f'<main><div class="controls"><div class="group" role="group" aria-label="Cost"><span>Cost</span>{axes}</div>'
    if len(chart.texts) > 1:
        texts = "".join(
            f'<button type="button" data-text="{place}" aria-pressed="{_bool(place == 0)}">'
            f"{text.label} ({len(text.runs):,})</button>"
            for place, text in enumerate(chart.texts)
        )
        yield f'<div class="group" role="group" aria-label="Held-out text"><span>Held-out text</span>{texts}</div>'
    options = "".join(
        f'<option value="{place}">{escape(chart.names[key])}</option>' for place, key in enumerate(chart.differing)
    )
    yield '<label>Colour <select id="colour"><option value="">none</option>'
    yield f'<option value="parameters">parameters</option>{options}</select></label></div>'
    if len(chart.texts) > 1:
        yield f'<p class="texts">{"; ".join(escape(f"{text.label}: {text.detail}") for text in chart.texts)}</p>'
    yield f'<div id="map" class="plot" role="img" aria-label="{escape(sentence(chart))}"></div>'
    yield "<noscript><p>The plots need JavaScript; the table does not.</p></noscript>"
    yield '<div class="controls"><h2>Curves</h2><div class="group" role="group" aria-label="Curve">'
    yield '<button type="button" data-curve="heldout" aria-pressed="true">held-out bits per byte</button>'
    yield '<button type="button" data-curve="loss" aria-pressed="false">training loss</button></div></div>'
    yield '<div id="curves" class="plot short" role="img" aria-label="Each run over its training seconds"></div>'
    yield from _table(chart)
    yield "</main>"


def _nothing_yet() -> Iterator[str]:
    yield "<main><p>There is no training run in this experiment yet. Make one, then write the map again:</p>"
    yield "<pre>tessera run\ntessera explore</pre></main>"


@dataclass(frozen=True)
class _Column:
    """One column of the table: its head, a word more on it, and a run's value and how that is written."""

    name: str
    value: Callable[[Run], Any]
    title: str = ""
    digits: int | None = None
    """Digits after the point of a number; None for text."""
    kind: str = ""

    def cell(self, run: Run) -> str:
        value = self.value(run)
        text = "" if value is None else value if self.digits is None else f"{value:,.{self.digits}f}"
        title = run.gate_reasons if self.name == "gate" else text if self.kind in ("name", "setting") else ""
        attributes = f' class="{self.css}"' * bool(self.css) + f' title="{escape(title)}"' * bool(title)
        sort = "" if value is None else f"{value}"
        return f'<td data-value="{escape(sort)}"{attributes}>{escape(text)}</td>'

    @property
    def css(self) -> str:
        return f"{self.kind} number".strip() if self.digits is not None else self.kind


def _columns(chart: Chart) -> list[_Column]:
    labels = {chart.runs[place].run_id: text.label for text in chart.texts for place in text.runs}
    ranks = _places_on_front(chart)
    several = len(chart.texts) > 1
    return [
        _Column("front", lambda run: ranks.get(run.run_id), "place on the front, cheapest first", 0, "front"),
        _Column("run", lambda run: run.name, kind="name"),
        *([_Column("text", lambda run: labels[run.run_id], "held-out text")] if several else []),
        _Column("state", lambda run: run.state),
        _Column("bits per byte", lambda run: run.quality, QUALITY, 3),
        _Column("seconds", lambda run: run.seconds, AXES["seconds"], 1),
        *(_setting_column(chart, key=key) for key in chart.differing),
        _Column("tokens", lambda run: run.tokens, AXES["tokens"], 0),
        _Column("tokens/s", lambda run: run.tokens_per_second, "training tokens a second", 0),
        _Column("steps done", lambda run: run.steps, "steps when the quality was measured", 0),
        _Column("parameters", lambda run: run.parameters, "of the model, embeddings included", 0),
        _Column("gate", lambda run: run.gate, "the verdict of tessera evaluate"),
        _Column("model", lambda run: ", ".join(run.models), "registered versions", kind="name"),
    ]


def _setting_column(chart: Chart, *, key: str) -> _Column:
    numbers = all(_is_number(run.recipe[key]) for run in chart.runs if key in run.recipe)
    kind = "setting number" if numbers else "setting"
    return _Column(chart.names[key], lambda run: run.recipe.get(key), key, kind=kind)


def _table(chart: Chart) -> Iterator[str]:
    """All runs, best first; the heads are buttons that sort."""
    columns = _columns(chart)
    yield f'<h2>All {_count(len(chart.runs), "run")}</h2><div class="wide" tabindex="0"><table><thead><tr>'
    for place, column in enumerate(columns):
        sorted_by = ' aria-sort="ascending"' if column.name == "bits per byte" else ""
        css = ' class="number"' if "number" in column.css else ""
        title = f' title="{escape(column.title)}"' if column.title else ""
        button = f'<button type="button" data-column="{place}"{title}>{escape(column.name)}</button>'
        yield f'<th scope="col"{css}{sorted_by}>{button}</th>'
    yield "</tr></thead><tbody>"
    ranks = _places_on_front(chart)
    for place in sorted(range(len(chart.runs)), key=lambda place: (_or_last(chart.runs[place].quality), place)):
        run = chart.runs[place]
        lit = ' class="lit"' if run.run_id in ranks else ""
        yield f'<tr id="run-{place}"{lit}>{"".join(column.cell(run) for column in columns)}</tr>'
    yield "</tbody></table></div>"


def _left_out(chart: Chart, *, left_out: Sequence[LeftOut]) -> Iterator[str]:
    """What is not on the chart, or not on the page at all."""
    unmeasured = [run.name for run in chart.runs if not run.on_chart]
    unfinished = [run.name for run in chart.runs if run.on_chart and not run.competes]
    lines = []
    if unfinished:
        lines.append(("On the chart as crosses and never on the front, not trained to their end", unfinished))
    if unmeasured:
        lines.append(("In the table only, without a held-out measurement after a step", unmeasured))
    lines += [(f"Left out, {entry.reason}", list(entry.names)) for entry in left_out]
    if not lines:
        return
    yield "<section><h2>Not compared</h2><ul>"
    for reason, names in lines:
        shown = ", ".join(escape(name) for name in names[:MAX_NAMES])
        rest = f" and {len(names) - MAX_NAMES:,} more" if len(names) > MAX_NAMES else ""
        yield f"<li>{escape(reason)}: <strong>{_count(len(names), 'run')}</strong> ({shown}{rest})</li>"
    yield "</ul></section>"


def _glossary(quality: str) -> Iterator[str]:
    where = "the first held-out sequences (train.heldout.sequences)" if quality == HELDOUT else "the whole split"
    yield f"<footer><h2>How to read it</h2><p>Quality here is measured on {where}.</p><dl>"
    for term, meaning in GLOSSARY:
        yield f"<dt>{term}</dt><dd>{meaning}</dd>"
    yield "</dl></footer>"


def _scripts(chart: Chart) -> Iterator[str]:
    yield f'<script type="application/json" id="data">{to_script_json(_data(chart))}</script>'
    yield f"<script>{_plotly()}</script>"
    yield f"<script>{_file('map.js')}</script>"


def _data(chart: Chart) -> dict[str, Any]:
    """What map.js draws; places are indexes of `runs`."""
    return {
        "quality": QUALITY,
        "axes": AXES,
        "settings": [{"key": key, "name": chart.names[key]} for key in chart.differing],
        "texts": [
            {"label": text.label, "runs": text.runs, "fronts": text.fronts, "log": text.log} for text in chart.texts
        ],
        "runs": [_run_data(run, chart=chart) for run in chart.runs],
    }


def _run_data(run: Run, *, chart: Chart) -> dict[str, Any]:
    return {
        "name": run.name,
        "state": run.state,
        "shown": run.on_chart,
        "recipe": [run.recipe.get(key) for key in chart.differing],
        "quality": run.quality,
        "seconds": round(run.seconds, 3),
        "tokens": run.tokens,
        "processor_seconds": round(run.processor_seconds, 3),
        "rate": run.tokens_per_second and round(run.tokens_per_second, 1),
        "steps": run.steps,
        "parameters": run.parameters,
        "gate": run.gate,
        "models": run.models,
        "heldout": _rounded(run.heldout_curve),
        "loss": _rounded(run.loss_curve),
    }


def to_script_json(value: Any) -> str:
    """JSON that may stand inside a script element: nothing in it can end the element or begin a comment."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _places_on_front(chart: Chart) -> dict[str, int]:
    """By run id, from 1: the place on the front of its own text, against seconds."""
    return {
        chart.runs[place].run_id: rank
        for text in chart.texts
        for rank, place in enumerate(text.fronts["seconds"], start=1)
    }


def _rounded(curve: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(round(x, 2), round(y, 4)) for x, y in curve]


def _or_last(value: float | None) -> float:
    return float("inf") if value is None else value


def _is_number(text: str) -> bool:
    try:
        return isfinite(float(text))
    except ValueError:
        return False


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _bool(value: bool) -> str:
    return "true" if value else "false"


def _file(name: str) -> str:
    return (resources.files("tessera.explore") / name).read_text(encoding="utf-8")


@lru_cache(maxsize=1)
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    script: str = get_plotlyjs()
    assert "</script" not in script.lower()
    return script
