"""What the page draws, as plain values: bars by category, one series a colour. The same figures stand in its tables."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tessera.prepare.report.counts import Counts

MAX_SERIES = 7
"""Of one chart, beside what all others make together: as many as colours can be told apart."""
MAX_SOURCES = 25
"""Of the chart of sources, those with most rows; its table has all."""
LOG_RATIO = 50
"""A logarithmic axis from this ratio of the largest to the smallest value."""


@dataclass(frozen=True)
class Series:
    """Bars of one colour."""

    name: str
    values: tuple[float, ...]
    """One a category."""


@dataclass(frozen=True)
class Chart:
    """Bars over categories: stacked, or side by side."""

    name: str
    """Its element on the page."""
    title: str
    categories: tuple[str, ...]
    series: tuple[Series, ...]
    x: str
    y: str
    stacked: bool = False
    lying: bool = False
    """Bars go from left to right; the first category is on top."""

    @property
    def log(self) -> bool:
        """Whether the axis of values is logarithmic; never where bars are stacked."""
        values = [value for one in self.series for value in one.values if value]
        return not self.stacked and bool(values) and max(values) >= LOG_RATIO * min(values)


def by_source(counts: Counts) -> Chart:
    """What became of the rows of each source, by the reasons that took most rows."""
    sources = tuple(counts.sources)[:MAX_SOURCES]
    documents, dropped = counts.by_source("documents"), counts.by_source("dropped")
    reasons = sorted(counts.by_name("dropped").items(), key=lambda one: (-one[1], one[0]))
    named = [reason for reason, _ in reasons[:MAX_SERIES]]
    series = [Series("documents", tuple(sum(documents[source].values()) for source in sources))]
    series += [Series(name, tuple(dropped[source].get(name, 0) for source in sources)) for name in named]
    if len(reasons) > MAX_SERIES:
        others = {reason for reason, _ in reasons[MAX_SERIES:]}
        rest = tuple(sum(dropped[source].get(name, 0) for name in others) for source in sources)
        series.append(Series("other reasons", rest))
    few = f" (the {MAX_SOURCES} with most)" if len(counts.sources) > MAX_SOURCES else ""
    return Chart("by-source", f"What became of the rows of each source{few}", sources, tuple(series),
                 x="rows", y="", stacked=True, lying=True)  # fmt: skip


def lengths(counts: Counts) -> Chart:
    """Documents by their bytes, a bar for each doubling, coloured by kind."""
    classes = _filled(counts.by_name("length"))
    kinds = sorted(set(counts.sources.values()))
    series = tuple(Series(kind, _at(classes, counts.by_name("length", kind=kind))) for kind in kinds)
    return Chart("lengths", "Documents by length", tuple(map(num_bytes, classes)), series,
                 x="bytes, from this to below the next", y="documents", stacked=True)  # fmt: skip


def duplicates(counts: Counts) -> Chart:
    """Rows that were displaced, by the size of their cluster."""
    exact, near = counts.by_name("exact_displaced"), counts.by_name("near_displaced")
    classes = _filled({**exact, **near})
    series = tuple(Series(name, _at(classes, found)) for name, found in (("exact", exact), ("near", near)) if found)
    return Chart("duplicates", "Rows displaced by a duplicate", tuple(map(span, classes)), series,
                 x="size of the cluster", y="rows displaced")  # fmt: skip


def private(counts: Counts) -> Chart:
    """Private data found, by type."""
    values, rows = counts.by_name("private_values"), counts.by_name("private_rows")
    series = (Series("values found", tuple(values.values())), Series("rows that hold it", _at(values, rows)))
    return Chart("private", "Private data found", tuple(values), series, x="type", y="number")


def num_bytes(number: int) -> str:
    """A power of two of bytes, or none, as people read it."""
    for power, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if number >= 1 << power:
            return f"{number >> power:,} {unit}"
    return f"{number} B"


def span(number: int) -> str:
    """The whole numbers from a power of two to below the next."""
    return f"{number:,} to {2 * number - 1:,}" if number > 1 else f"{number}"


def _filled(found: Mapping[str, float]) -> list[int]:
    """The classes from the smallest to the largest, those in which there is nothing too."""
    classes = sorted(map(int, found))
    if not classes:
        return []
    doublings = [2**power for power in range(max(classes).bit_length()) if 2**power >= classes[0]]
    return [0, *doublings] if classes[0] == 0 else doublings


def _at(classes: Iterable[int | str], found: Mapping[str, float]) -> tuple[float, ...]:
    return tuple(found.get(str(one), 0) for one in classes)
