"""The counts in a terminal: complete, within its columns, and free of control characters."""

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from tests.prepare.report.decisions import DOCUMENTS
from tests.prepare.report.test_page import made

from tessera.prepare.report.counts import Count, Counts, in_order
from tessera.prepare.report.terminal import MAX_LINES, short, view


def shown(counts: Counts, *, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(view(counts))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("name", ["tickets", "n" * 120])
@pytest.mark.parametrize("num_sources", [1, 50])
@pytest.mark.parametrize("width", [60, 120])
def test_it_fits_the_terminal_and_cuts_no_number(width, num_sources, name):
    text = shown(made(num_sources, name=name), width=width)

    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for total in ("near_displaced", "private_values"):
        assert short(made(num_sources).total(total)) in text


def test_what_is_shown():
    lines = [re.sub(" +", " ", line.strip()) for line in shown(made(1), width=80).splitlines()]

    for line in ("support.tickets_0 1,000 600 15,000", "too_short 150", "near 99 27", "email 90 270"):
        assert line in lines
    for line in ("tokens at 4.00 bytes a token, assumed", "12 documents changed their split: clusters merged"):
        assert line in lines


def test_many_sources_end_in_one_line_with_what_they_have_together():
    counts = in_order(
        [
            *(Count(f"s{number:02}", "text", "rows", "read", 100 - number) for number in range(50)),
            Count(None, None, "bytes_per_token", "assumed", 4.0),
        ]
    )
    text = shown(Counts(DOCUMENTS, DOCUMENTS, counts), width=60)

    others = sum(100 - number for number in range(MAX_LINES - 1, 50))
    assert f"{50 - MAX_LINES + 1} others {others:,}" in re.sub(" +", " ", text)
    assert f"s{MAX_LINES - 2:02}" in text
    assert f"s{MAX_LINES - 1:02}" not in text


def test_names_are_no_markup_and_move_no_cursor():
    counts = made(1, name="[red]\x1b[31m")
    text = shown(counts, width=80)

    assert "[red]" in text
    assert "\x1b" not in text


@given(st.integers(0, 10**15 - 1))
def test_short_numbers_are_right_to_three_digits(value):
    text = short(value)
    number, _, unit = text.partition(" ")

    assert len(text) <= 9
    said = float(number.replace(",", "")) * {"": 1, "M": 1e6, "G": 1e9, "T": 1e12}[unit]
    assert said == pytest.approx(value, rel=0.0051)
    assert unit or said == value
