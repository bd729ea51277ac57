"""The page: escaped, complete without plotly, and in a real browser without a network drawn, quiet and readable."""

import re
import sys
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tests.explore.conftest import NEEDS_CHROMIUM
from tests.explore.test_page import contrast
from tests.prepare.report.decisions import DOCUMENTS

from tessera.lineage import TableVersion
from tessera.prepare.report import html
from tessera.prepare.report.counts import Count, Counts, in_order
from tessera.prepare.report.page import render, sentence
from tessera.prepare.report.samples import Sample

EVIL = "</script><b id=evil>&amp;<img src=http://192.0.2.1/x onerror=alert(1)>"
DRAWN = "window.drawn.then(() => true)"
SAMPLE = Sample("wiki", "text", "train", "d" * 64, 77, f"Dear {EVIL}")


def made(num_sources: int = 3, *, name: str = "support.tickets", ratio: str = "assumed") -> Counts:
    """Counts of everything there is, for sources of long names and sets and reasons of evil ones."""
    entries = [Count(None, None, "bytes_per_token", ratio, 4.0), Count(None, None, "moved", "documents", 12)]
    for number in range(num_sources):
        source, kind = f"{name}_{number}", ("text", "chat", "preference")[number % 3]
        entries += [
            Count(source, kind, what, label, value * (1 + number % 7))
            for what, label, value in (
                ("rows", "read", 1000), ("documents", "train", 570), ("documents", "heldout", 30),
                ("bytes", "train", 57_000), ("bytes", "heldout", 3000), ("tokens", "train", 14_250),
                ("tokens", "heldout", 750), ("dropped", "too_short", 150), ("dropped", f"contaminated:{EVIL}", 50),
                ("dropped", "near_duplicate", 200), ("length", "64", 500), ("length", "512", 100),
                ("private_looked_at", "rows", 900), ("private_rows", "email", 90), ("private_values", "email", 270),
                ("contaminated", EVIL, 60),
            )
        ]  # fmt: skip
    for size, clusters in (("2", 90), ("4", 8), ("64", 1)):
        entries += [Count(None, None, "near_clusters", size, clusters), Count(None, None, "near_displaced", size, 9)]
    return Counts(DOCUMENTS, TableVersion(name="decisions", path="tables/decisions", version=9), in_order(entries))


class Reader(HTMLParser):
    """Rows of the tables, as texts by caption, and the attributes of all elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.attributes: list[tuple[str, str | None]] = []
        self._caption: str | None = None
        self._into: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        self._into = tag
        if tag == "tr":
            self.tables.setdefault(self._caption or "", []).append([])
        if tag in ("td", "th"):
            self.tables[self._caption or ""][-1].append("")
        if tag == "caption":
            self._caption = ""

    def handle_endtag(self, tag: str) -> None:
        self._into = None

    def handle_data(self, data: str) -> None:
        if self._into == "caption":
            self._caption = (self._caption or "") + data
        if self._into in ("td", "th"):
            self.tables[self._caption or ""][-1][-1] += data


def test_all_counts_stand_in_tables():
    found = Reader(render(made(2), inputs=[TableVersion(name="support.tickets_1", path="x", version=31)])).tables

    assert found["Sources, the one with most rows first"][1] == [
        "support.tickets_1", "31", "chat", "2,000", "1,200", "60.0%", "800", "1,140", "60", "120,000", "30,000",
    ]  # fmt: skip
    assert found["Rows dropped, by reason"][1:] == [
        ["near_duplicate", "600", "20.0%"], ["too_short", "450", "15.0%"], [f"contaminated:{EVIL}", "150", "5.0%"],
    ]  # fmt: skip
    assert found["Rows dropped, by source"][2] == ["support.tickets_0", "200", "150", "50"]
    assert found["Documents by length"][1:] == [["64 B", "128 B", "1,500"], ["512 B", "1 KiB", "300"]]
    assert found["Clusters of duplicates, by size"][1] == ["2 to 3", "0", "0", "90", "9"]
    assert found["Private data found, by type"][1] == ["email", "810", "270", "10.0%"]
    assert found["Rows that share text with an evaluation set, dropped or only flagged"][1] == [EVIL, "180"]


def test_the_sentence_tells_an_assumption_from_a_measurement():
    assert sentence(made(1)) == (
        "600 of 1,000 rows became documents (60.0%); the most common reason against a row was near_duplicate (200). "
        "About 15,000 tokens, at 4.00 bytes a token, which is assumed."
    )
    assert "as the newest shard set has" in sentence(made(1, ratio="measured"))


def test_nothing_from_data_is_markup():
    text = render(made(2, name=EVIL), inputs=[TableVersion(name=EVIL, path=EVIL, version=1)], samples=[SAMPLE])

    assert "<b id=evil" not in text
    assert "<img" not in text.replace(html.plotly() or "", "")
    assert not {name for name, _ in Reader(text).attributes} & {"onerror", "href", "src"}


def test_without_plotly_the_page_has_the_tables_alone(monkeypatch):
    with_plots = render(made())
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    html.plotly.cache_clear()
    alone = render(made())
    html.plotly.cache_clear()

    assert len(alone) < 60_000 < len(with_plots)
    assert "pip install 'tessera[explore]'" in unescape(alone)
    assert "<script" not in alone
    assert Reader(alone).tables == Reader(with_plots).tables


def test_the_same_counts_give_the_same_bytes():
    assert render(made()) == render(made())


def test_text_stands_only_where_samples_are_handed_in():
    assert "Dear" not in render(made())
    assert "Dear &lt;/script&gt;" in render(made(), samples=[SAMPLE])
    assert "Dear" not in repr(SAMPLE)


def test_nothing_found_is_said():
    nothing = Counts(DOCUMENTS, DOCUMENTS, (Count(None, None, "bytes_per_token", "assumed", 4.0),))
    text = render(nothing)

    for said in ("No row was dropped", "No row was displaced", "No row shares text", "0 of 0 rows: none found"):
        assert said in text


@NEEDS_CHROMIUM
@pytest.mark.parametrize("num_sources", [1, 50])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [600, 1280])
def test_it_fits_the_window_and_can_be_read(quiet_page, tmp_path, width, dark, num_sources):
    path = write(tmp_path, render(made(num_sources, name="n" * 120), samples=[SAMPLE]))
    quiet_page.show(path.as_uri(), width=width, dark=dark)
    quiet_page.evaluate(DRAWN)
    quiet_page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")

    assert quiet_page.evaluate("document.documentElement.scrollWidth") <= width
    sizes = "[...document.querySelectorAll('body *')].map(one => parseFloat(getComputedStyle(one).fontSize))"
    assert quiet_page.evaluate(f"Math.min(...{sizes})") >= 12
    paper, ink = quiet_page.evaluate("(s => [s.backgroundColor, s.color])(getComputedStyle(document.body))")
    assert contrast(paper, ink) >= 7
    assert contrast(paper, quiet_page.evaluate("getComputedStyle(document.querySelector('.versions')).color")) >= 4.5
    assert contrast(paper, quiet_page.evaluate("getComputedStyle(document.querySelector('.xtick text')).fill")) >= 7


@NEEDS_CHROMIUM
def test_every_chart_is_drawn_in_the_colours_of_its_legend(quiet_page, tmp_path):
    quiet_page.show(write(tmp_path, render(made(3))).as_uri())
    quiet_page.evaluate(DRAWN)

    def bars(chart: str) -> int:
        found: int = quiet_page.evaluate(f"document.querySelectorAll('#{chart} .bars .point path').length")
        return found

    assert bars("by-source") == 3 * 4
    assert bars("lengths") == 4 * 3
    assert bars("duplicates") == 6
    assert bars("private") == 2
    drawn = "[...document.querySelectorAll('#by-source .trace.bars')].map(one => one.querySelector('path').style.fill)"
    legend = (
        "[...document.querySelector('#by-source').previousElementSibling.querySelectorAll('i')]"
        ".map(one => getComputedStyle(one).backgroundColor)"
    )
    assert quiet_page.evaluate(drawn) == quiet_page.evaluate(legend)
    assert quiet_page.evaluate("document.getElementById('evil')") is None


@NEEDS_CHROMIUM
def test_long_names_of_one_catalog_can_be_told_apart(quiet_page, tmp_path):
    quiet_page.show(write(tmp_path, render(made(9, name="catalog.support." + "n" * 80))).as_uri(), width=600)
    quiet_page.evaluate(DRAWN)
    ticks = quiet_page.evaluate("[...document.querySelectorAll('#by-source .ytick text')].map(one => one.textContent)")

    assert len(set(ticks)) == 9
    assert all(re.fullmatch(r"catalo.*…n+_\d", tick) for tick in ticks)


def write(folder: Path, text: str) -> Path:
    path = folder / "prepare.html"
    path.write_text(text, encoding="utf-8")
    return path
