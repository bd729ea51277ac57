"""Where a home stands: what is stale against the newest versions, what runs, and what failed last. No JVM, no MLflow.

Staleness goes by versions: a result is stale when what it was made from has a newer version, or is stale itself. A
source that only a Spark catalog knows is not asked.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tessera.errors import SourceError
from tessera.home import Home
from tessera.lineage import KINDS, PrepareRecord, Record, ShardRecord
from tessera.prepare import sources
from tessera.prepare.settings import SourceSettings
from tessera.results import Results
from tessera.settings import Settings
from tessera.stages import STAGES
from tessera.train.garbage import is_running
from tessera.train.run import RunFolder


@dataclass(frozen=True)
class StageStatus:
    """One stage's newest result, and whether it is of today's inputs."""

    stage: str
    at: str
    """UTC, ISO 8601."""
    record: Record
    stale: str
    """Why it is stale; empty when it is not, as far as is known."""
    unknown: str
    """What could not be asked."""


@dataclass(frozen=True)
class RunStatus:
    """One run that is not finished."""

    run: str
    state: str
    """`running` or `interrupted`."""
    step: int
    steps: int
    loss: float | None


@dataclass(frozen=True)
class Failure:
    """The newest failure of a stage that has not succeeded since."""

    stage: str
    at: str
    said: str


@dataclass(frozen=True)
class Status:
    """All of it."""

    stages: tuple[StageStatus, ...]
    runs: tuple[RunStatus, ...]
    failures: tuple[Failure, ...]


def examine(home: Home, *, settings: Settings, results: Results) -> Status:
    """Looks at the ledger, the newest versions of the sources, and the run folders."""
    rows = results.ledger.rows()
    return Status(
        stages=tuple(_stages(rows, home=home, settings=settings)),
        runs=tuple(found for root in sorted(home.runs.glob("*")) if (found := _run(RunFolder(root)))),
        failures=tuple(_failures(rows)),
    )


def _stages(rows: Sequence[dict[str, Any]], *, home: Home, settings: Settings) -> list[StageStatus]:
    newest: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["status"] in ("done", "reused") and _is_of(row, settings=settings):
            newest[row["stage"]] = row
    found: dict[str, StageStatus] = {}
    for stage in STAGES:
        if stage in newest:
            row = newest[stage]
            record = KINDS[stage].from_json(row["record"])
            stale, unknown = _stale_inputs(record, earlier=found), ""
            if isinstance(record, PrepareRecord):
                stale, unknown = _stale_sources(record, home=home, settings=settings)
            found[stage] = StageStatus(stage=stage, at=row["at"], record=record, stale=stale, unknown=unknown)
    return list(found.values())


def _is_of(row: dict[str, Any], *, settings: Settings) -> bool:
    """Whether the row is of the shard set that the settings name; other stages have one result a home."""
    return bool(row["stage"] != "shard" or json.loads(row["record"])["name"] == settings.shard.name)


def _stale_sources(record: PrepareRecord, *, home: Home, settings: Settings) -> tuple[str, str]:
    """What has happened to the sources since the documents were made, and what could not be asked."""
    read = {table.name: table.version for table in record.inputs}
    unknown = ""
    for source in settings.prepare.sources:
        if source.name not in read:
            return f"{source.name} is a source now", ""
        try:
            newest = sources.resolve(source, home=home).pinned.version
        except SourceError as error:
            unknown = f"{source.name} was not asked: {_why(source, error=error)}"
            continue
        if newest != read[source.name]:
            return f"{source.name} is at version {newest}, {read[source.name]} was read", ""
    gone = sorted(set(read) - {source.name for source in settings.prepare.sources})
    return (f"{gone[0]} is no source any more" if gone else ""), unknown


def _why(source: SourceSettings, *, error: SourceError) -> str:
    return "only a Spark catalog knows it" if source.table and "." in source.table else str(error)


def _stale_inputs(record: Record, *, earlier: dict[str, StageStatus]) -> str:
    """Whether the stage before has a newer result than the one that this was made from."""
    stages_before = reversed(STAGES[: STAGES.index(record.stage)])
    before = next((earlier[stage] for stage in stages_before if stage in earlier), None)
    if before is None or record.stage in ("sample", "prepare"):
        return ""
    if before.stale:
        return f"{before.stage} is stale"
    return "" if _made_from(record, before=before.record) else f"{before.stage} has a newer result"


def _made_from(record: Record, *, before: Record) -> bool:
    if isinstance(before, PrepareRecord):
        return before.table.version == record.inputs[0].version
    if isinstance(before, ShardRecord):
        return before.manifest in record.inputs
    ours, theirs = getattr(record, "weights_sha256", ""), getattr(before, "weights_sha256", "")
    return bool(ours == theirs)


def _run(folder: RunFolder) -> RunStatus | None:
    """A run that is not finished; None for one that is, or that is no run."""
    if not folder.spec.is_file() or folder.read_result() is not None:
        return None
    last = _last_line(folder)
    return RunStatus(
        run=folder.root.name,
        state="running" if is_running(folder) else "interrupted",
        step=int(last.get("step", 0)),
        steps=folder.read_spec().settings.steps,
        loss=last.get("loss"),
    )


def _last_line(folder: RunFolder) -> dict[str, Any]:
    """The newest whole line of a run's metrics."""
    if not folder.metrics.is_file():
        return {}
    lines = folder.metrics.read_text(encoding="utf-8").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    found: dict[str, Any] = json.loads(whole[-1]) if whole else {}
    return found


def _failures(rows: Sequence[dict[str, Any]]) -> list[Failure]:
    last = {row["stage"]: row for row in rows}
    return [
        Failure(stage=stage, at=row["at"], said=json.loads(row["record"]).get("error", ""))
        for stage, row in last.items()
        if row["status"] == "failed"
    ]
