"""Runs logged as training logs them, through tessera.tracking into a real SQLite store."""

import json
from typing import Any

import pytest
from tests.browser import Page, browser, find_chromium

from tessera import tracking
from tessera.home import Home
from tessera.tracking import TrackedRun, TrackingSettings

SETTINGS = TrackingSettings(experiment="lab")
NEEDS_CHROMIUM = pytest.mark.skipif(find_chromium() is None, reason="no chromium on this machine's path")
TAGS = {"tessera.table.documents": "tables/documents@0", "tessera.tokenizer_sha256": "t0", "tessera.code": "c0"}


def config_of(**train: Any) -> dict[str, Any]:
    """A configuration as the launcher logs it; keywords change its train section."""
    base = {"steps": 20, "batch_size": 8, "ranks": 2, "model": {"width": 128, "layers": 4}}
    return {
        "sample": {"packages": ["networkx"]},
        "prepare": {"holdout": 0.05},
        "shard": {"seq_len": 256, "seed": 17},
        "train": {**base, "heldout": {"sequences": 64}, **train},
        "serve": {"model_name": "tessera-docs"},
        "tracking": {"uri": None},
    }


def log_run(
    home: Home, name: str, *, end: float | None, seconds: float, tokens: int = 40_960, steps: int = 20,
    status: str | None = "FINISHED", config: dict[str, Any] | None = None, tags: dict[str, str] | None = None,
    settings: TrackingSettings = SETTINGS,
) -> TrackedRun:  # fmt: skip
    """A run of `steps` steps in `seconds`, whose held-out bits per byte fall from 4 to `end`; None never measures."""
    run = tracking.open_run(settings, home=home, name=name, run_id=None)
    run.describe(params=config or config_of(), tags={**TAGS, **(tags or {})})
    lines: list[dict[str, float]] = [{"step": 0, "time": 1_700_000_000.0, "tokens": 0, "heldout_bits_per_byte": 4.0}]
    for step in range(1, steps + 1):
        part = step / steps
        line = {"step": step, "time": 1_700_000_000.0 + step, "loss": 8 - 5 * part, "tokens": int(tokens * part)}
        line["seconds"] = seconds * part
        if end is not None and (step == steps or step % 5 == 0):
            line["heldout_bits_per_byte"] = 4 + (end - 4) * part**0.5
        lines.append(line)
    run.log_steps(lines)
    if status is not None:
        run.end(status)
    return run


@pytest.fixture(scope="module")
def page() -> Any:
    """One browser for all tests of a file."""
    with browser() as opened:
        yield opened


@pytest.fixture
def quiet_page(page: Page) -> Any:
    """The browser's page, with nothing heard yet; at the end nothing may have been heard."""
    page.errors.clear()
    page.requests.clear()
    yield page
    assert page.errors == []
    assert page.requests == []


def data_of(html: str) -> dict[str, Any]:
    """The JSON that the page's script draws, read back from the page."""
    _, _, rest = html.partition('<script type="application/json" id="data">')
    found: dict[str, Any] = json.loads(rest.partition("</script>")[0])
    return found
