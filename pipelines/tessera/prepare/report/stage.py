"""The report of one prepare: its counts as a table, as a page in the home, and in an MLflow run of its own.

Written after the documents are published, from `tables/decisions`; what goes wrong with MLflow is told and costs the
documents nothing. Costs the counting (see `counts`), 5 MB of page where plotly is installed, and the import of mlflow
(five CPU-seconds) where the page is wanted. Of row text nothing leaves the home: MLflow's page has no samples.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from tessera import tracking
from tessera.away import why
from tessera.home import Home
from tessera.lineage import PrepareRecord, TableVersion
from tessera.prepare.report import page
from tessera.prepare.report.clusters import DUPLICATE
from tessera.prepare.report.counts import Counts, count_decisions
from tessera.prepare.report.samples import read_samples
from tessera.prepare.report.settings import ReportSettings
from tessera.prepare.report.table import write_counts
from tessera.progress import Tell, silent
from tessera.tracking import TrackingSettings

FILE = "prepare.html"
KIND = {"tessera.kind": "prepare"}
"""Tells this run from training runs: see `explore.runs`."""
TOTALS = ("rows", "documents", "dropped", "bytes", "tokens", "private_values", "contaminated", "exact_displaced",
          "near_displaced", "moved", "bytes_per_token")  # fmt: skip
BY_NAME = ("documents", "dropped", "private_values", "contaminated")
"""What MLflow keeps of the counts: these over all, and those by name too."""
NOT_IN_METRICS = re.compile(r"[^A-Za-z0-9_. -]+")
MAX_KEY = 250
"""MLflow's limit of a metric's name."""


@dataclass(frozen=True)
class Report:
    """What was written."""

    counts: Counts
    table: TableVersion
    page: Path | None
    """None where none was wanted."""
    run_id: str
    """The MLflow run that keeps it; '' where none was wanted or MLflow did not take it."""


def write_report(
    home: Home, *, record: PrepareRecord, settings: ReportSettings, tracking_settings: TrackingSettings,
    bytes_per_token: float | None = None, extra_copies: str = DUPLICATE, tell: Tell = silent,
) -> Report:  # fmt: skip
    """Counts the decisions and writes what the settings ask for.

    Args:
        record: of the documents that were published.
        decisions: the version that the record pins.
        bytes_per_token, extra_copies: see `count_decisions`.

    Raises:
        SourceError: a pinned version cannot be read any more.
    """
    assert record.decisions is not None, "documents of an older format have no decisions to count"
    tell("counting")
    counts = count_decisions(
        home, decisions=record.decisions, documents=record.table, bytes_per_token=bytes_per_token, moved=record.moved,
        extra_copies=extra_copies,
    )  # fmt: skip
    table = write_counts(home, counts)
    if not settings.page:
        return Report(counts, table, page=None, run_id="")
    tell("writing the report")
    plain = page.render(counts, inputs=record.inputs)
    path = _write(home, text=_with_samples(home, counts, record=record, settings=settings) or plain)
    tell("telling MLflow")
    try:
        run_id = _log(home, record=record, counts=counts, text=plain, settings=tracking_settings)
    except Exception as error:  # whatever keeps MLflow away, documents and page are there
        tell(f"MLflow did not take the report ({why(error)}); it is in {home.relative(path)}")
        run_id = ""
    return Report(counts, table, page=path, run_id=run_id)


def forget(home: Home) -> list[Path]:
    """Removes the page, which may show text of what is erased; the next prepare writes another. What was removed."""
    found = [*home.reports.glob(FILE), *home.reports.glob(f".{FILE}.*")]
    for path in found:
        path.unlink(missing_ok=True)
    return found


def metrics(counts: Counts) -> dict[str, float]:
    """What MLflow keeps: over all sources, such as `dropped` and `dropped/too_short`."""
    found = {what: counts.total(what) for what in TOTALS if counts.by_name(what)}
    for what in BY_NAME:
        for name, value in counts.by_name(what).items():
            key = f"{what}/{NOT_IN_METRICS.sub('_', name)}"[:MAX_KEY]
            found[key] = found.get(key, 0) + value
    return found


def _with_samples(home: Home, counts: Counts, *, record: PrepareRecord, settings: ReportSettings) -> str | None:
    """The page with text; None where the settings do not ask for it."""
    if not settings.show_text:
        return None
    samples = read_samples(home, documents=record.table, sources=counts.sources, number=settings.samples)
    return page.render(counts, inputs=record.inputs, samples=samples)


def _write(home: Home, *, text: str) -> Path:
    """Replaces the page at once: a reader sees the old or the new one."""
    home.reports.mkdir(parents=True, exist_ok=True)
    path = home.reports / FILE
    temporary = path.with_name(f".{FILE}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        return temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _log(home: Home, *, record: PrepareRecord, counts: Counts, text: str, settings: TrackingSettings) -> str:
    """Keeps page and counts in the one run of this documents version, again where it was cut off; the run's id."""
    created = datetime.fromisoformat(record.created)
    name = f"prepare-{record.fingerprint[:12]}-{created:%Y%m%dT%H%M%S}"
    run = tracking.open_run(settings, home=home, name=name, run_id=None, began=created.timestamp() - record.seconds)
    run.log_at(0, time=created.timestamp(), metrics=metrics(counts), tags={**KIND, **_lineage(record, counts)})
    run.add_inputs(record.inputs, context="prepare")
    with tracking.patient():
        tracking.client(run.uri).log_text(run.run_id, text, FILE)
    run.end("FINISHED")
    return run.run_id


def _lineage(record: PrepareRecord, counts: Counts) -> Mapping[str, str]:
    tables = (record.table, counts.decisions)
    return {
        "tessera.fingerprint": record.fingerprint,
        "tessera.code": record.code,
        **{f"tessera.table.{table.name}": f"{table.path}@{table.version}" for table in tables},
    }
