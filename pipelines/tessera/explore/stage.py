"""Writes the map: every training run of the experiment, quality against cost, as one page in `reports/`.

Costs the import of mlflow (five CPU-seconds), about 10 ms a run from SQLite, and 5 MB of page.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tessera.away import answering, why
from tessera.explore import page, store
from tessera.explore.chart import arrange
from tessera.explore.runs import Found, LeftOut, Run, read_runs
from tessera.explore.settings import ExploreSettings
from tessera.home import Home
from tessera.lineage import TrainRecord
from tessera.progress import Tell, silent
from tessera.tables import Ledger
from tessera.tracking import TrackingSettings, prepare_store, registry_uri, tracking_uri
from tessera.tracking import client as tracking_client

FILE = "map.html"


@dataclass(frozen=True)
class FrontRun:
    """One run on the front of quality against seconds."""

    name: str
    seconds: float
    quality: float
    recipe: str
    """What tells it from the other runs on the front."""


@dataclass(frozen=True)
class MapResult:
    """What was written."""

    path: Path
    num_runs: int
    """Runs on the page."""
    num_texts: int
    """Held-out texts, each with its front; `front` is that of the text with most runs."""
    num_left_out: int
    front: tuple[FrontRun, ...]
    """Cheapest first."""
    run_id: str
    """The MLflow run that keeps the page; '' when MLflow did not take it."""

    @property
    def num_front(self) -> int:
        return len(self.front)

    def lines(self, *, columns: int = 80) -> list[str]:
        """The front in words: a head and a line a run, cut to `columns`; nothing when there is no front."""
        head = f"{'':>3} {'bits/byte':>9} {'seconds':>9}  run"
        rows = [
            f"{rank:>3} {run.quality:>9.3f} {run.seconds:>9,.1f}  {run.name}  {run.recipe}".rstrip()
            for rank, run in enumerate(self.front, start=1)
        ]
        return [row if len(row) <= columns else row[: columns - 1] + "…" for row in [head, *rows]] if rows else []


def write_map(home: Home, *, tracking: TrackingSettings, settings: ExploreSettings, tell: Tell = silent) -> MapResult:
    """Reads the experiment's runs, writes `reports/map.html` and keeps it in MLflow.

    Raises:
        TrackingError: MLflow cannot be used now.
        ConfigError: the experiment was deleted.
    """
    tell("reading runs")
    client, experiment_id, runs, left_out = _read(home, tracking=tracking, settings=settings)
    chart = arrange(runs, quality=settings.quality)
    text = page.render(chart, experiment=tracking.experiment, quality=settings.quality, left_out=left_out)
    tell("writing the page")
    path = _write(home.reports / FILE, text=text)
    tell("telling MLflow")
    try:
        run_id = store.log_map(client, experiment_id=experiment_id, page=path)
    except Exception as error:  # whatever keeps MLflow away, the page is written
        tell(f"MLflow did not take the map ({why(error)}); it is in {home.relative(path)}")
        run_id = ""
    best = chart.front()
    return MapResult(
        path=path,
        num_runs=len(runs),
        num_texts=len(chart.texts),
        num_left_out=sum(len(entry.names) for entry in left_out),
        front=tuple(
            FrontRun(run.name, run.seconds, run.quality, chart.recipe(run, among=best))
            for run in best
            if run.quality is not None
        ),
        run_id=run_id,
    )


def _read(
    home: Home, *, tracking: TrackingSettings, settings: ExploreSettings
) -> tuple[Any, str, list[Run], list[LeftOut]]:
    rows = [row for row in Ledger(home.ledger).rows() if row["stage"] == "train"]
    records = [TrainRecord.from_json(row["record"]) for row in rows if row["status"] == "done"]
    failed = {row["fingerprint"] for row in rows if row["status"] == "failed"}
    uri = tracking_uri(tracking, home=home)
    with answering(uri):
        experiment_id = prepare_store(tracking, home=home)
        client = tracking_client(uri, registry=registry_uri(tracking, home=home))
        parameters = {Path(record.run).name: record.parameters for record in records}
        found = read_runs(client, experiment_id=experiment_id, settings=settings, parameters=parameters)
    unknown = _unknown(records, failed=failed, known=found, experiment=tracking.experiment)
    return client, experiment_id, found.runs, [*found.left_out, *unknown]


def _unknown(records: list[TrainRecord], *, failed: set[str], known: Found, experiment: str) -> list[LeftOut]:
    """What this home's ledger knows of training and the experiment lacks: MLflow is away, or it is in another.

    By name: the ledger has no run id of what was trained while MLflow was away.
    """
    lost = {Path(record.run).name for record in records} - known.names
    early = {fingerprint[:12] for fingerprint in failed - known.fingerprints - {one.fingerprint for one in records}}
    where = f"in this home's ledger but not in experiment {experiment}"
    reasons = {where: lost, f"{where}, failed early; by fingerprint": early}
    return [LeftOut(reason, tuple(sorted(names))) for reason, names in reasons.items() if names]


def _write(path: Path, *, text: str) -> Path:
    """Replaces the page at once: a reader sees the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    return temporary.replace(path)
