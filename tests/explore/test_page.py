"""The page in a real browser without a network: drawn, quiet, and usable; and proof that the browser hears trouble."""

import random
from pathlib import Path

import pytest
from tests.explore.conftest import NEEDS_CHROMIUM

from tessera.explore.chart import arrange
from tessera.explore.page import POLICY, render
from tessera.explore.runs import Run

pytestmark = NEEDS_CHROMIUM
EVIL = "</script><b id=evil>"
DRAWN = "window.drawn.then(() => true)"
FRONT_POINTS = "document.querySelectorAll('#map .scatterlayer .trace:last-child .points path').length"
POINTS = "document.querySelectorAll('#map .scatterlayer .points path').length"


def make_run(number: int, *, rng: random.Random, state: str = "finished") -> Run:
    seconds, quality = rng.uniform(10, 3000), rng.uniform(1.2, 3.0)
    width = rng.choice(["64", "128", "256"])
    return Run(
        run_id=f"{number:032x}", name=f"{EVIL}{number}" if number % 7 == 0 else f"docs-{number}", state=state,
        recipe={"train.model.width": width, "train.steps": str(60 + number % 3), "train.seed": "17", "note": EVIL},
        quality=quality, seconds=seconds, tokens=seconds * 5000, steps=60, ranks=1 + number % 2,
        parameters=int(width) ** 2 * 48, gzip=None, gate="passed", gate_reasons=EVIL, models=("docs 1 (champion)",),
        tables=(), tokenizer="t", heldout_curve=((0.0, 4.0), (seconds, quality)), loss_curve=((1.0, 8.0),),
    )  # fmt: skip


def write(path: Path, *, num_runs: int, num_failed: int = 0) -> tuple[Path, int]:
    """A page of runs that were never logged, and how many lie on its front by comparing every pair."""
    rng = random.Random(num_runs)
    runs = [make_run(n, rng=rng, state="failed" if n < num_failed else "finished") for n in range(num_runs)]
    page = path / "map.html"
    chart = arrange(runs, quality="heldout_bits_per_byte")
    page.write_text(render(chart, experiment=EVIL, quality="heldout_bits_per_byte", left_out=[]), encoding="utf-8")
    able = [(run.seconds, run.quality) for run in runs if run.state == "finished"]
    beaten = [one for one in able if any(other != one and other[0] <= one[0] and other[1] <= one[1] for other in able)]
    return page, len(able) - len(beaten)


@pytest.mark.parametrize("num_runs", [1, 3, 25, 200])
def test_the_plot_is_drawn_with_its_front(quiet_page, tmp_path, num_runs):
    path, num_front = write(tmp_path, num_runs=num_runs, num_failed=num_runs // 5)
    quiet_page.show(path.as_uri())

    assert quiet_page.evaluate(DRAWN)
    assert quiet_page.evaluate(FRONT_POINTS) == num_front
    assert quiet_page.evaluate(POINTS) == num_runs + num_front
    assert quiet_page.evaluate("document.querySelectorAll('tbody tr').length") == num_runs
    assert quiet_page.evaluate("document.querySelectorAll('tr.lit').length") == num_front
    assert quiet_page.evaluate("document.getElementById('evil')") is None


def test_without_runs_the_page_says_what_to_do(quiet_page, tmp_path):
    path, _ = write(tmp_path, num_runs=0)
    quiet_page.show(path.as_uri())

    assert "tessera run" in quiet_page.evaluate("document.body.innerText")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [600, 1280])
def test_it_fits_the_window_and_can_be_read(quiet_page, tmp_path, width, dark):
    path, _ = write(tmp_path, num_runs=25)
    quiet_page.show(path.as_uri(), width=width, dark=dark)
    quiet_page.evaluate(DRAWN)

    assert quiet_page.evaluate("document.documentElement.scrollWidth") <= width
    smallest = (
        "Math.min(...[...document.querySelectorAll('body *')].map(e => parseFloat(getComputedStyle(e).fontSize)))"
    )
    assert quiet_page.evaluate(smallest) >= 12
    paper, ink = quiet_page.evaluate("(s => [s.backgroundColor, s.color])(getComputedStyle(document.body))")
    assert contrast(paper, ink) >= 7
    label = quiet_page.evaluate("getComputedStyle(document.querySelector('#map .xtick text')).fill")
    assert contrast(paper, label) >= 7


def test_another_cost_another_front(quiet_page, tmp_path):
    path, _ = write(tmp_path, num_runs=25)
    quiet_page.show(path.as_uri())
    quiet_page.evaluate(DRAWN)
    quiet_page.evaluate("document.querySelector('[data-axis=processor_seconds]').click()")

    wanted = quiet_page.evaluate("data.texts[0].fronts.processor_seconds")
    assert wanted != quiet_page.evaluate("data.texts[0].fronts.seconds")
    assert quiet_page.evaluate(FRONT_POINTS) == len(wanted)
    lit = quiet_page.evaluate("[...document.querySelectorAll('tr.lit')].map(row => Number(row.id.slice(4)))")
    assert sorted(lit) == sorted(wanted)
    assert "processor-seconds" in quiet_page.evaluate("document.querySelector('#map .xtitle').textContent")


def test_hovering_shows_the_recipe_as_text(quiet_page, tmp_path):
    path, _ = write(tmp_path, num_runs=1)
    quiet_page.show(path.as_uri())
    quiet_page.evaluate(DRAWN)
    box = "document.querySelector('#map .points path').getBoundingClientRect()"
    quiet_page.point_at(*quiet_page.evaluate(f"(b => [b.x + b.width / 2, b.y + b.height / 2])({box})"))

    shown = quiet_page.evaluate(
        "new Promise(done => { const look = () => { const label = document.querySelector('#map .hovertext');"
        " label ? done(label.textContent) : setTimeout(look, 50); }; look(); })"
    )
    assert f"{EVIL}0" in shown
    assert "held-out bits per byte" in shown
    assert "tokens/s" in shown


def test_a_head_sorts_the_table_both_ways(quiet_page, tmp_path):
    path, _ = write(tmp_path, num_runs=25)
    quiet_page.show(path.as_uri())
    heads = quiet_page.evaluate("[...document.querySelectorAll('th')].map(head => head.innerText)")
    column = next(place for place, head in enumerate(heads) if head.startswith("seconds"))
    shown = (
        f"[...document.querySelectorAll('tbody tr')].map(r => Number(r.cells[{column}].innerText.replace(/,/g, '')))"
    )
    press = f"document.querySelectorAll('th button')[{column}].click()"

    quiet_page.evaluate(press)
    up = quiet_page.evaluate(shown)
    quiet_page.evaluate(press)
    down = quiet_page.evaluate(shown)
    assert up == sorted(up)
    assert down == up[::-1]
    assert len(set(up)) == 25


def test_curves_and_colours_can_be_chosen(quiet_page, tmp_path):
    path, _ = write(tmp_path, num_runs=25)
    quiet_page.show(path.as_uri())
    quiet_page.evaluate(DRAWN)
    assert quiet_page.evaluate("document.querySelectorAll('#curves .scatterlayer .trace').length") == 25
    assert "bits per byte" in quiet_page.evaluate("document.querySelector('#curves .ytitle').textContent")

    quiet_page.evaluate("document.querySelector('[data-curve=loss]').click()")
    quiet_page.evaluate(
        "(s => { s.value = '1'; s.dispatchEvent(new Event('change')); })(document.getElementById('colour'))"
    )
    assert "training loss" in quiet_page.evaluate("document.querySelector('#curves .ytitle').textContent")
    legend = quiet_page.evaluate("[...document.querySelectorAll('#map .legendtext')].map(text => text.textContent)")
    assert legend == ["steps 60", "steps 61", "steps 62", "front"]


def test_the_browser_hears_errors_and_requests(page, tmp_path):
    """The checks above can fail."""
    path = tmp_path / "bad.html"
    path.write_text("<script>console.error('spoken'); null.thrown</script><img src='http://192.0.2.1/pixel.png'>")
    page.errors.clear()
    page.requests.clear()
    page.show(path.as_uri())

    assert "spoken" in page.errors
    assert any("thrown" in error for error in page.errors)
    assert page.requests == ["http://192.0.2.1/pixel.png"]
    assert any("Failed to load resource" in error for error in page.errors)


def test_the_policy_of_the_page_refuses_connections(page, tmp_path):
    path = tmp_path / "refused.html"
    script = "fetch('http://192.0.2.1/').catch(() => { window.refused = true; })"
    path.write_text(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><script>{script}</script>')
    page.errors.clear()
    page.requests.clear()
    page.show(path.as_uri())

    assert page.evaluate("new Promise(done => setTimeout(() => done(window.refused), 200))") is True
    assert any("Content Security Policy" in error for error in page.errors)


def contrast(one: str, other: str) -> float:
    """The contrast ratio of two CSS colours, by WCAG 2."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in colour.strip("rgb()").split(",")[:3]]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
