"""The line: one method a room, and what spans rooms. The command line, jobs and notebooks are thin over this.

A stage whose fingerprint has a recorded result that still holds is not run again; finding that out needs no JVM, no
torch and no MLflow server. Rooms are imported where they are used, so that a wrong configuration is answered at once.
"""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from tessera import report, spark
from tessera.config import Layer, Section, load, parse_set, read_yaml
from tessera.errors import ConfigError
from tessera.evaluate.settings import EvaluateSettings
from tessera.home import Home
from tessera.lineage import (
    EvaluateRecord,
    PrepareRecord,
    Record,
    SampleRecord,
    ShardRecord,
    TrainRecord,
)
from tessera.prepare.settings import PrepareSettings, SampleSettings
from tessera.progress import Reporter, Tell
from tessera.serve.settings import ServeSettings
from tessera.shard.settings import ShardSettings
from tessera.spark import SparkSettings
from tessera.tracking import TrackingSettings
from tessera.train.settings import TrainSettings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


TARGETS = ("local", "dev", "staging", "prod")
STAGES = ("sample", "prepare", "shard", "train", "evaluate", "serve")
RecordT = TypeVar("RecordT", bound=Record)


class Settings(Section):
    """The whole configuration, a section a room."""

    sample: SampleSettings = SampleSettings()
    prepare: PrepareSettings
    shard: ShardSettings = ShardSettings()
    train: TrainSettings = TrainSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    serve: ServeSettings = ServeSettings()
    spark: SparkSettings = SparkSettings()
    tracking: TrackingSettings = TrackingSettings()


def load_settings(target: str, *, assignments: Sequence[str] = (), conf: Path | None = None) -> Settings:
    """base.yaml, the target's overlay and `--set` assignments, validated.

    Raises:
        ConfigError: naming file and key.
    """
    if target not in TARGETS:
        raise ConfigError(f"--target {target}: wanted one of {', '.join(TARGETS)}")
    folder = conf or conf_folder()
    layers: list[Layer] = [read_yaml(folder / "base.yaml")]
    overlay = folder / f"{target}.yaml"
    if overlay.exists():
        layers.append(read_yaml(overlay))
    return load(Settings, layers=[*layers, *parse_set(assignments)])


def conf_folder() -> Path:
    """`TESSERA_CONF`, `./conf`, the source tree's, or the installed one: the first that holds base.yaml."""
    import os
    import sys

    named = os.environ.get("TESSERA_CONF")
    if named:
        return Path(named)
    places = (Path("conf"), Path(__file__).parents[2] / "conf", Path(sys.prefix) / "share" / "tessera" / "conf")
    for place in places:
        if (place / "base.yaml").is_file():
            return place
    raise ConfigError("no conf/base.yaml was found; name its folder: export TESSERA_CONF=...")


@dataclass(frozen=True)
class Work(Generic[RecordT]):
    """A stage that knows its inputs: how to recognise its result, and how to make it."""

    kind: type[RecordT]
    fingerprint: str
    holds: Callable[[RecordT], bool]
    """Whether a recorded result can still be used: it opens, and its files are there."""
    make: Callable[[Tell], RecordT]

    @property
    def stage(self) -> str:
        return str(self.kind.model_fields["stage"].default)


class Pipeline:
    """The stages over one home with one configuration.

    Args:
        fresh: run stages again although a recorded result holds.
    """

    def __init__(
        self, settings: Settings, *, home: Home, target: str = "local", fresh: bool = False, reporter: Reporter | None = None
    ) -> None:
        self.settings = settings
        self.home = home
        self.target = target
        self.fresh = fresh
        self.reporter = reporter or Reporter()
        self._early: list[threading.Thread] = []
        self._repaired = False

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages of `run`: the sample is written only for a source that reads it."""
        from tessera.prepare.sample import TABLE

        reads_sample = any(source.table == TABLE for source in self.settings.prepare.sources)
        return STAGES if reads_sample else STAGES[1:]

    def run(self) -> list[Record]:
        """All stages in order; each finds its recorded result or makes it."""
        if any(action == "run" for stage, action in self.plan().items() if stage in ("prepare", "shard", "train")):
            self._start_early(lambda: spark.start_early(self.settings.spark, home=self.home))
        records: list[Record] = []
        for stage in self.stages:
            records.append(self.do(stage, after=records[-1] if records else None))
        return records

    def do(self, stage: str, *, after: Record | None = None) -> Record:
        """One stage, on what `after` records or, without it, on the newest result of the stage before.

        Raises:
            UserError: the stage before has no result yet.
        """
        self._repair()
        work = self._work(stage, after=after)
        began = time.monotonic()
        found = None if self.fresh else self._find(work)
        if found is not None:
            record = found.model_copy(update={"reused": True, "seconds": round(time.monotonic() - began, 3)})
            self._ledger().append(record, status="reused")
        else:
            record = self._make(work, began=began)
        self.reporter.line(report.line(record))
        return record

    def plan(self) -> dict[str, str]:
        """What `run` would do, stage by stage: `reuse` or `run`; nothing is started or written."""
        actions: dict[str, str] = {}
        record: Record | None = None
        for stage in self.stages:
            if self.fresh or (actions and "run" in actions.values()):
                actions[stage] = "run"
                continue
            record = self._find(self._work(stage, after=record))
            actions[stage] = "reuse" if record is not None else "run"
        return actions

    def spark(self) -> "SparkSession":
        """The Spark session, started at the first call."""
        for thread in self._early:
            thread.join()
        return spark.session(self.settings.spark, home=self.home)

    def close(self) -> None:
        """Stops the Spark session, if one was started here."""
        for thread in self._early:
            thread.join()
        spark.stop()

    def history(self) -> list[dict[str, Any]]:
        """The rows of the ledger, oldest first."""
        self._repair()
        return self._ledger().rows()

    def _repair(self) -> None:
        """Adds to the ledger what was published and, after a kill, not yet written there."""
        if self._repaired:
            return
        self._repaired = True
        from tessera import publish

        ledger = self._ledger()
        tables = (self.home.tables / "python_docs", self.home.documents, *self.home.shards.glob("*/manifest"))
        kinds = {kind.model_fields["stage"].default: kind for kind in (SampleRecord, PrepareRecord, ShardRecord, EvaluateRecord)}
        for table in (*tables, self.home.evaluations):
            record = publish.read_record(table)
            if record is not None and ledger.repair(kinds[record["stage"]].model_validate(record)):
                self.reporter.line(f"ledger: the row of a published {record['stage']} was missing and is added")

    def _ledger(self) -> "Ledger":
        from tessera.tables import Ledger

        return Ledger(self.home.ledger)

    def _find(self, work: Work[Any]) -> Record | None:
        recorded = self._ledger().find(stage=work.stage, fingerprint=work.fingerprint)
        if recorded is None:
            return None
        record: Record = work.kind.from_json(recorded)
        return record if work.holds(record) else None

    def _make(self, work: Work[Any], *, began: float) -> Record:
        try:
            with self.reporter.stage(work.stage) as tell:
                record: Record = work.make(tell)
        except Exception:
            with suppress(Exception):
                failed = Record(stage=work.stage, fingerprint=work.fingerprint, seconds=time.monotonic() - began)
                self._ledger().append(failed, status="failed")
            raise
        record = record.model_copy(update={"seconds": round(time.monotonic() - began, 3)})
        self._ledger().append(record)
        return record

    def _work(self, stage: str, *, after: Record | None) -> Work[Any]:
        match stage:
            case "sample":
                return self._sample()
            case "prepare":
                return self._prepare()
            case "shard":
                return self._shard(_as(PrepareRecord, after) or self._newest(PrepareRecord))
            case "train":
                return self._train(_as(ShardRecord, after) or self._newest(ShardRecord))
            case "evaluate":
                return self._evaluate(_as(TrainRecord, after) or self._newest(TrainRecord))
        return self._serve(_as(EvaluateRecord, after) or self._newest(EvaluateRecord))
