"""What is drawn says what the counts say, however many sources, reasons and classes there are."""

import math

from hypothesis import given
from hypothesis import strategies as st
from tests.prepare.report.decisions import DOCUMENTS

from tessera.prepare.report import charts
from tessera.prepare.report.counts import Count, Counts, in_order

SOURCES = st.integers(0, 60).map(lambda number: f"source {number}")
REASONS = st.integers(0, 12).map(lambda number: f"reason {number}")


def make(*entries: Count) -> Counts:
    return Counts(DOCUMENTS, DOCUMENTS, in_order(entries))


@given(st.dictionaries(st.tuples(SOURCES, REASONS), st.integers(1, 10**9), min_size=1))
def test_the_bars_of_a_source_add_up_to_its_rows(dropped):
    rows: dict[str, int] = {}
    for (source, _), number in dropped.items():
        rows[source] = rows.get(source, 0) + number
    counts = make(
        *(Count(source, "text", "dropped", reason, number) for (source, reason), number in dropped.items()),
        *(Count(source, "text", "rows", "read", number + 5) for source, number in rows.items()),
        *(Count(source, "text", "documents", "train", 5) for source in rows),
    )
    chart = charts.by_source(counts)

    assert list(chart.categories) == sorted(rows, key=lambda source: (-rows[source], source))[: charts.MAX_SOURCES]
    drawn = [sum(series.values[place] for series in chart.series) for place in range(len(chart.categories))]
    assert drawn == [rows[source] + 5 for source in chart.categories]
    assert len(chart.series) <= charts.MAX_SERIES + 2


@given(st.dictionaries(st.sampled_from([0, *(2**power for power in range(40))]), st.integers(1, 9), min_size=1))
def test_lengths_have_no_gaps_and_keep_their_place(found):
    counts = make(
        *(Count("a", "text", "length", str(size), number) for size, number in found.items()),
        Count("a", "text", "rows", "read", sum(found.values())),
    )
    chart = charts.lengths(counts)

    sizes = [0] * (0 in found) + [2**power for power in range(41) if max(1, min(found)) <= 2**power <= max(found)]
    assert chart.categories == tuple(map(charts.num_bytes, sizes))
    assert chart.series[0].values == tuple(found.get(size, 0) for size in sizes)


def test_each_kind_has_its_own_bars():
    counts = make(
        *(Count(name, kind, "rows", "read", 9) for name, kind in (("a", "text"), ("b", "chat"), ("c", "text"))),
        Count("a", "text", "length", "64", 2), Count("b", "chat", "length", "32", 3),
        Count("c", "text", "length", "64", 4),
    )  # fmt: skip
    chart = charts.lengths(counts)

    assert chart.categories == ("32 B", "64 B")
    assert {series.name: series.values for series in chart.series} == {"chat": (3, 0), "text": (0, 6)}


def test_a_wide_range_takes_a_logarithmic_axis_unless_bars_are_stacked():
    def chart(*values: float, stacked: bool = False) -> charts.Chart:
        series = (charts.Series("s", values),)
        return charts.Chart("c", "t", ("a",) * len(values), series, x="x", y="y", stacked=stacked)

    assert chart(1, 0, 1000).log
    assert not chart(100, 200).log
    assert not chart().log
    assert not chart(1, 1000, stacked=True).log


@given(st.integers(0, 50))
def test_bytes_are_written_in_units_that_divide_them(power):
    number, unit = charts.num_bytes(2**power).split()

    scale = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}[unit]
    assert int(number.replace(",", "")) * scale == 2**power
    assert unit == "GiB" or math.log2(int(number)) < 10
