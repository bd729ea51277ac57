"""The pages of comparisons: escaped, complete, and in a real browser without a network drawn, quiet and readable."""

import re
from pathlib import Path

import numpy as np
import pytest
from tests.explore.conftest import NEEDS_CHROMIUM, page, quiet_page  # noqa: F401
from tests.explore.test_page import contrast

from tessera.evaluate.compare import Comparison, Side, compare
from tessera.evaluate.compare_page import LeaderRow, comparison_page, leaderboard_page
from tessera.evaluate.gauntlet import Failure
from tessera.evaluate.task import Choices, Completion, Outcomes, Score, Task, key_of

EVIL = "</script><b id=evil>&amp;<img src=http://192.0.2.1/x onerror=alert(1)>"
SECRET = "what the item says"


def made() -> Comparison:
    """A task that is better, one worse, one that says nothing, one in bits per byte, one that was not asked."""
    rng = np.random.default_rng(17)
    tasks, of_a, of_b = {}, {}, {}
    for name, right, wrong in (("problem", 0.7, 0.4), ("reading", 0.5, 0.48), ("a" * 60 + EVIL, 0.3, 0.6)):
        items = tuple(Choices(((f"{SECRET} {n}", " a"), (f"{SECRET} {n}", " b")), gold=0) for n in range(200))
        tasks[name] = Task(name, kind="multiple_choice", items=items)
        keys = tuple(map(key_of, items))
        of_a[name] = Outcomes(keys, {"acc": tuple(map(float, rng.random(200) < right))})
        of_b[name] = Outcomes(keys, {"acc": tuple(map(float, rng.random(200) < wrong))})
    texts = tuple(Completion(f"{SECRET} {n}", "x") for n in range(60))
    tasks["tickets"] = Task("tickets", kind="language_modeling", items=texts, metric="bits_per_byte")
    keys, bits = tuple(map(key_of, texts)), rng.normal(2, 0.3, 60)
    of_a["tickets"] = Outcomes(keys, {"bits_per_byte": tuple(bits)}, weights=(1.0,) * 60)
    of_b["tickets"] = Outcomes(keys, {"bits_per_byte": tuple(bits + rng.normal(0.2, 0.2, 60))}, weights=(1.0,) * 60)
    tasks["coding"] = tasks["reading"]
    seen = frozenset(key_of(item) for item in tasks["reading"].items[:30])
    b = Side("docs version 2", "b" * 64, of_b, failures={"coding": f"no sandbox {EVIL}"})
    return compare(Side(f"docs version 3 {EVIL}", "a" * 64, of_a, seen=seen), b, tasks=tasks)


def leaders() -> list[LeaderRow]:
    def score(value: float, *, chance: float = 0.25, metric: str = "acc") -> Score:
        return Score(metric, value, low=value - 0.03, high=value + 0.03, n=300, chance=chance)

    return [
        LeaderRow("docs version 1", 2.4, {"reading": score(0.26), "problem": score(0.1, chance=0, metric="f1")}),
        LeaderRow("docs version 3", 1.9, {"problem": score(0.41, chance=0, metric="f1"), "dyck": Failure(EVIL)},
                  gate="failed"),
        LeaderRow(f"docs {EVIL}", 2.0, {"problem": score(0.32, chance=0, metric="f1")}, gate="passed", champion=True),
        LeaderRow("docs version 9", None),
    ]  # fmt: skip


def test_the_page_says_what_was_found_and_nothing_else():
    comparison = made()
    text = comparison_page(comparison)

    assert [one.verdict for one in comparison.tasks] == ["better", "no difference shown", "worse", "better"]
    assert "better on 2, worse on 1, no difference shown on 1; 1 task could not be compared" in text
    assert "90 items are left out" in text
    assert "is not above chance on" in text
    assert SECRET not in text
    assert "<b id=evil" not in text
    assert "<img" not in text
    assert comparison_page(made()) == text


def test_fewer_bits_are_drawn_to_the_right():
    comparison = made()
    tickets = next(one for one in comparison.tasks if one.task == "tickets")
    drawn = re.search(r'aria-label="tickets: \+0\.\d+.*?<circle cx="([\d.]+)%"', comparison_page(comparison), re.DOTALL)

    assert tickets.paired.difference < 0
    assert drawn is not None
    assert float(drawn[1]) > 50


def test_the_leaderboard_is_in_order_of_the_one_problem():
    text = leaderboard_page(leaders())
    heads = re.findall(r'<th scope="col"[^>]*>([^<]*)', text)
    names = re.findall(r'<th scope="row">(.*?)</th>', text)

    assert heads[:6] == ["version", "gate", "problem, f1", "bits per byte", "reading, acc", "dyck"]
    assert [name[:14] for name in names[:4]] == ["docs version 3", "docs &lt;/scri", "docs version 1", "docs version 9"]
    assert heads[6:] == ["version", "task", "why"]
    assert "not above chance" in text
    assert "<img" not in text
    assert "No version is registered yet." in leaderboard_page([])


@NEEDS_CHROMIUM
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [600, 1280])
@pytest.mark.parametrize("which", ["comparison", "leaderboard"])
def test_it_fits_the_window_and_can_be_read(quiet_page, tmp_path, width, dark, which):  # noqa: F811
    path = write(tmp_path, comparison_page(made()) if which == "comparison" else leaderboard_page(leaders()))
    quiet_page.show(path.as_uri(), width=width, dark=dark)

    assert quiet_page.evaluate("document.documentElement.scrollWidth") <= width
    sizes = "[...document.querySelectorAll('body *')].map(one => parseFloat(getComputedStyle(one).fontSize))"
    assert quiet_page.evaluate(f"Math.min(...{sizes})") >= 12
    paper, ink = quiet_page.evaluate("(s => [s.backgroundColor, s.color])(getComputedStyle(document.body))")
    assert contrast(paper, ink) >= 7
    if which == "comparison":
        for css in ("better", "worse", "open"):
            colour = quiet_page.evaluate(f"getComputedStyle(document.querySelector('svg.{css} circle')).fill")
            assert contrast(paper, colour) >= 3
        shown = quiet_page.evaluate("[...document.querySelectorAll('circle')].map(one => one.getBBox().width)")
        assert shown == [10] * 4
    assert quiet_page.evaluate("document.getElementById('evil')") is None


def write(folder: Path, text: str) -> Path:
    path = folder / "page.html"
    path.write_text(text, encoding="utf-8")
    return path
