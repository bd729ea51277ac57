"""The counts of one documents version for a terminal, readable from 60 columns on. Numbers and names, never text."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tessera.prepare.report.counts import Counts
from tessera.prepare.report.text import printable

MAX_LINES = 12
"""Of sources and of reasons; what comes after is one line."""
Line = tuple[str, *tuple[float, ...]]
"""A name and its numbers."""


def view(counts: Counts) -> RenderableType:
    """Sources, reasons, duplicates, private data and evaluation text, each where there is any."""
    parts = (_sources(counts), _reasons(counts), _duplicates(counts), _private(counts), _contaminated(counts))
    spaced = [one for part in parts if part is not None for one in (part, Text())]
    return Group(*spaced, *map(Text, _notes(counts)))


def short(value: float) -> str:
    """A count in few characters: whole below a million, else three digits of millions or more."""
    for power, unit in ((12, "T"), (9, "G"), (6, "M")):
        if value >= 10**power:
            scaled = value / 10**power
            return f"{scaled:.{max(0, 3 - len(str(int(scaled))))}f} {unit}"
    return f"{value:,.0f}"


def _sources(counts: Counts) -> RenderableType:
    documents, rows, tokens = (counts.by_source(what) for what in ("documents", "rows", "tokens"))
    lines: list[Line] = [
        (source, *(sum(found[source].values()) for found in (rows, documents, tokens))) for source in counts.sources
    ]
    return _table(("source", "rows", "documents", "tokens"), lines=lines)


def _reasons(counts: Counts) -> RenderableType | None:
    lines = sorted(counts.by_name("dropped").items(), key=lambda one: (-one[1], one[0]))
    return _table(("dropped", "rows"), lines=lines) if lines else None


def _duplicates(counts: Counts) -> RenderableType | None:
    sorts = [sort for sort in ("exact", "near") if counts.total(f"{sort}_clusters")]
    lines: list[Line] = [(sort, counts.total(f"{sort}_clusters"), counts.total(f"{sort}_displaced")) for sort in sorts]
    return _table(("duplicates", "clusters", "rows displaced"), lines=lines) if lines else None


def _private(counts: Counts) -> RenderableType | None:
    holding = counts.by_name("private_rows")
    lines: list[Line] = [(name, holding[name], value) for name, value in counts.by_name("private_values").items()]
    return _table(("private data", "rows", "values"), lines=lines) if lines else None


def _contaminated(counts: Counts) -> RenderableType | None:
    lines = list(counts.by_name("contaminated").items())
    return _table(("evaluation text", "rows"), lines=lines) if lines else None


def _notes(counts: Counts) -> list[str]:
    ratio = next(iter(counts.by_name("bytes_per_token").values()))
    basis = "as in the newest shard set" if counts.tokens_are_measured else "assumed"
    notes = [f"tokens at {ratio:.2f} bytes a token, {basis}"]
    for number in counts.by_name("moved").values():
        notes += [f"{short(number)} documents changed their split: clusters merged"] if number else []
    return notes


def _table(head: Sequence[str], *, lines: Sequence[Line]) -> Table:
    """Names on the left, folded where they are long; numbers on the right; what is too much summed in a last line."""
    shown = Table(box=None, pad_edge=False)
    shown.add_column(head[0], overflow="fold", min_width=15)
    for name in head[1:]:
        shown.add_column(name, justify="right", no_wrap=True)
    few = lines if len(lines) <= MAX_LINES else lines[: MAX_LINES - 1]
    rest = lines[len(few) :]
    for name, *values in [*few, *([_summed(rest)] if rest else [])]:
        shown.add_row(Text(printable(name)), *map(short, values))
    return shown


def _summed(lines: Sequence[Line]) -> Line:
    columns = zip(*(values for _, *values in lines), strict=True)
    return f"{len(lines)} others", *map(sum, columns)
