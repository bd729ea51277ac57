"""Parts of a page that holds everything it shows: its frame, tables and data. Whatever comes in is escaped here.

The policy in the head forbids every connection, so that the page stays as it was written and tells nobody it was read.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from html import escape
from importlib import resources
from typing import Any

POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
MANY_CHARS = 20
"""A first column with a longer name is given more room."""
Cell = str | float
"""Of a table: numbers are written with thousands; they and shares stand on the right."""


def page(title: str, *, style: str, body: Iterable[str]) -> str:
    """The whole document around a body of elements that are HTML already."""
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>{escape(title)}</title><style>{style}</style></head><body>",
        *body,
        "</body></html>\n",
    ]
    return "\n".join(parts)


def section(title: str, body: Iterable[str]) -> Iterator[str]:
    """A section with its heading."""
    yield f"<section><h2>{escape(title)}</h2>"
    yield from body
    yield "</section>"


def paragraph(text: str, *, css: str = "") -> str:
    """A paragraph of plain text."""
    return f"<p{_class(css)}>{escape(text)}</p>"


def definitions(pairs: Iterable[tuple[str, Cell]], *, css: str) -> str:
    """Terms with what belongs to each."""
    inner = "".join(f"<div><dt>{escape(term)}</dt><dd>{_written(value)}</dd></div>" for term, value in pairs)
    return f'<dl class="{css}">{inner}</dl>'


def table(caption: str, *, head: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    """A table whose first column names its rows; wider than the window, it scrolls by itself and keeps that column."""
    rows = list(rows)
    numbers = [any(_is_number(row[place]) for row in rows) for place in range(len(head))]
    heads = "".join(
        f'<th scope="col"{_class("number" * number)}>{escape(name)}</th>'
        for name, number in zip(head, numbers, strict=True)
    )
    body = "".join(f"<tr>{''.join(_cells(row))}</tr>" for row in rows)
    roomy = "roomy" if any(len(_written(row[0])) > MANY_CHARS for row in rows) else ""
    named = escape(caption)
    return (
        f'<div class="wide" role="region" aria-label="{named}" tabindex="0"><table{_class(roomy)}>'
        f"<caption>{named}</caption><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def folded(summary: str, inner: str) -> str:
    """HTML that is shown when its summary is pressed."""
    return f"<details><summary>{escape(summary)}</summary>{inner}</details>"


def script_data(value: Any, *, name: str) -> str:
    """A script element with JSON, which nothing in it can end or turn into a comment."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    safe = text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return f'<script type="application/json" id="{name}">{safe}</script>'


@lru_cache(maxsize=1)
def plotly() -> str | None:
    """Plotly's script, 4.7 MB; None where plotly is not installed."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        return None
    script: str = get_plotlyjs()
    assert "</script" not in script.lower()
    return script


def file(name: str) -> str:
    """A file of this package, as text."""
    return (resources.files(__package__) / name).read_text(encoding="utf-8")


def _cells(row: Sequence[Cell]) -> Iterator[str]:
    yield f'<th scope="row">{_written(row[0])}</th>'
    for cell in row[1:]:
        css = "number" * _is_number(cell) + " zero" * (cell == 0)
        yield f"<td{_class(css)}>{_written(cell)}</td>"


def _is_number(cell: Cell) -> bool:
    return not isinstance(cell, str) or cell.endswith("%")


def _written(cell: Cell) -> str:
    return escape(cell) if isinstance(cell, str) else f"{cell:,.0f}"


def _class(css: str) -> str:
    return f' class="{escape(css)}"' if css else ""
