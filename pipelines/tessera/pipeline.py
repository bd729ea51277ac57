"""The line: one method a room, and what spans rooms. The command line, jobs and notebooks are thin over this.

A stage whose fingerprint has a recorded result that still holds is not run again; finding that out needs no JVM, no
torch and no MLflow server. Rooms are imported where they are used, so that a wrong configuration is answered at once.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from tessera import report, spark, tracking
from tessera.config import Layer, Section, load, parse_set, read_yaml
from tessera.errors import ConfigError, UserError
from tessera.evaluate.settings import EvaluateSettings
from tessera.home import Home
from tessera.lineage import (
    EvaluateRecord,
    PrepareRecord,
    Record,
    SampleRecord,
    ServeRecord,
    ShardRecord,
    TableVersion,
    TrainRecord,
    sha256_json,
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

    from tessera.serve.engine import Engine
    from tessera.tables import Ledger

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
        self,
        settings: Settings,
        *,
        home: Home,
        target: str = "local",
        fresh: bool = False,
        reporter: Reporter | None = None,
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

    def complete(self, record: Record, *, prompt: str | None = None) -> tuple[str, str]:
        """Asks the registered model once; the prompt and its completion."""
        settings = self.settings.serve
        asked = prompt if prompt is not None else settings.prompt
        with self.reporter.stage("answer") as tell:
            tell("loading the model")
            engine = self._engine(record)
            done = engine.complete(asked, max_tokens=settings.max_tokens, temperature=settings.temperature)
        return asked, done.text

    def listen(self, record: Record, *, port: int | None = None) -> None:
        """Answers HTTP with the registered model until SIGINT or SIGTERM."""
        from tessera.serve.http import serve_http
        from tessera.serve.protocol import ServedModel

        assert isinstance(record, ServeRecord)
        created = int(datetime.fromisoformat(record.created).timestamp())
        info = ServedModel(
            name=record.model, version=record.version, weights_sha256=record.weights_sha256, created=created
        )
        engine = self._engine(record)
        serve_http(engine, settings=self.settings.serve, info=info, port=port, announce=self.reporter.line)

    def mlflow_command(self) -> str:
        """What a person types to look around in MLflow."""
        uri = tracking.shown_uri(self.settings.tracking, home=self.home)
        command = Path(sys.executable).with_name("mlflow")
        shown = command.relative_to(Path.cwd()) if command.is_relative_to(Path.cwd()) else command
        return f"{shown} ui --backend-store-uri {uri}" if uri.startswith("sqlite") else uri

    def summary(self, records: Sequence[Record]) -> dict[str, Any]:
        """The record of a whole run: the keys of all its stages, merged, and their records."""
        dumped = [record.model_dump(mode="json") for record in records]
        merged = {key: value for record in dumped for key, value in record.items() if key not in ("inputs", "table")}
        return {
            **merged,
            "stage": "run",
            "fingerprint": sha256_json([record.fingerprint for record in records]),
            "reused": all(record.reused for record in records),
            "seconds": round(sum(record.seconds for record in records), 3),
            "stages": dumped,
        }

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
        published = (SampleRecord, PrepareRecord, ShardRecord, EvaluateRecord)
        kinds = {kind.model_fields["stage"].default: kind for kind in published}
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

    def _sample(self) -> Work[SampleRecord]:
        from tessera.prepare import sample

        def make(tell: Tell) -> SampleRecord:
            return sample.write_sample(settings, home=self.home, progress=lambda n, total: tell("files", n, total))

        settings = self.settings.sample
        return Work(
            kind=SampleRecord,
            fingerprint=sample.fingerprint(settings),
            holds=lambda record: sample.verify(record, home=self.home),
            make=make,
        )

    def _prepare(self) -> Work[PrepareRecord]:
        from tessera.prepare import sources, stage

        settings = self.settings.prepare
        resolved = [sources.resolve(source, home=self.home, spark=self.spark) for source in settings.sources]
        earlier = self._tables_read()
        for source in resolved:
            sources.check_not_rolled_back(source, earlier=earlier)
        fingerprint = stage.fingerprint(resolved, settings=settings)

        def make(tell: Tell) -> PrepareRecord:
            from tessera.prepare.documents import write_documents

            tell("starting Spark")
            return write_documents(
                self.spark(),
                sources=resolved,
                settings=settings,
                fingerprint=fingerprint,
                home=self.home,
                partitions=self.settings.spark.partitions,
                tell=tell,
            )

        return Work(
            kind=PrepareRecord,
            fingerprint=fingerprint,
            holds=lambda record: stage.verify(record, sources=resolved, home=self.home),
            make=make,
        )

    def _shard(self, documents: PrepareRecord) -> Work[ShardRecord]:
        from tessera.shard import stage

        settings = self.settings.shard
        fingerprint = stage.fingerprint(documents, settings=settings, home=self.home)

        def make(tell: Tell) -> ShardRecord:
            from tessera.shard.write.shard_set import write_shards

            tell("starting Spark")
            return write_shards(
                self.spark(),
                documents=documents.table,
                settings=settings,
                fingerprint=fingerprint,
                home=self.home,
                partitions=self.settings.spark.partitions,
                progress=tell,
            )

        return Work(
            kind=ShardRecord,
            fingerprint=fingerprint,
            holds=lambda record: stage.verify(record, home=self.home),
            make=make,
        )

    def _train(self, shards: ShardRecord) -> Work[TrainRecord]:
        from tessera.train import run

        settings, block_shards = self.settings.train, self.settings.shard.block_shards
        fingerprint = run.fingerprint(settings, shards=shards, block_shards=block_shards)

        def make(tell: Tell) -> TrainRecord:
            self._start_early(lambda: tracking.prepare_store(self.settings.tracking, home=self.home))
            from tessera.train.launch import Lineage, train

            tell("starting Spark")
            return train(
                self.spark(),
                shards=shards,
                settings=settings,
                block_shards=block_shards,
                fingerprint=fingerprint,
                home=self.home,
                tracking=self.settings.tracking,
                lineage=Lineage(config=self.settings.model_dump(mode="json"), sources=self._prepare_of(shards).inputs),
                fresh=self.fresh,
                tell=tell,
            )

        return Work(
            kind=TrainRecord,
            fingerprint=fingerprint,
            holds=lambda record: run.verify(record, home=self.home),
            make=make,
        )

    def _evaluate(self, train: TrainRecord) -> Work[EvaluateRecord]:
        from tessera.evaluate import stage

        settings = self.settings.evaluate
        shard = self._shard_of(train)
        prepare = self._prepare_of(shard)

        def make(tell: Tell) -> EvaluateRecord:
            tell("loading the model")
            from tessera.evaluate.scoring import evaluate

            return evaluate(
                self.home,
                train=train,
                shard=shard,
                prepare=prepare,
                settings=settings,
                tracking=self.settings.tracking,
                tell=tell,
            )

        return Work(
            kind=EvaluateRecord,
            fingerprint=stage.fingerprint(train, shard=shard, prepare=prepare, settings=settings),
            holds=lambda record: stage.verify(record, home=self.home),
            make=make,
        )

    def _serve(self, evaluate: EvaluateRecord) -> Work[ServeRecord]:
        from tessera.serve import stage

        settings = self.settings.serve
        uri = tracking.tracking_uri(self.settings.tracking, home=self.home)

        def make(tell: Tell) -> ServeRecord:
            from tessera.serve.register import register

            train = self._train_of(evaluate)
            return register(
                self.home,
                train=train,
                evaluate=evaluate,
                prepare=self._prepare_of(self._shard_of(train)),
                settings=settings,
                tracking_uri=uri,
                tell=tell,
            )

        return Work(
            kind=ServeRecord,
            fingerprint=stage.fingerprint(evaluate, settings=settings),
            holds=lambda record: stage.verify(record, home=self.home, tracking_uri=uri),
            make=make,
        )

    def _engine(self, record: Record) -> "Engine":
        from tessera.serve import stage
        from tessera.serve.engine import Engine

        assert isinstance(record, ServeRecord)
        uri = tracking.tracking_uri(self.settings.tracking, home=self.home)
        folder = stage.checkpoint_folder(record, home=self.home, tracking_uri=uri)
        return Engine(folder, weights_sha256=record.weights_sha256)

    def _newest(self, kind: type[RecordT]) -> RecordT:
        """The newest finished result of a stage, for the stage after it.

        Raises:
            UserError: there is none yet.
        """
        stage = kind.model_fields["stage"].default
        for row in reversed(self._ledger().rows()):
            if row["stage"] == stage and row["status"] in ("done", "reused"):
                record = kind.from_json(row["record"])
                if not isinstance(record, ShardRecord) or record.name == self.settings.shard.name:
                    return record
        raise UserError(f"{self.home.root} has no result of {stage} yet; make one: tessera {stage}")

    def _train_of(self, evaluate: EvaluateRecord) -> TrainRecord:
        """The run that an evaluation scored."""
        for row in reversed(self._ledger().rows()):
            if row["stage"] == "train" and row["status"] == "done" and row["run_id"] == evaluate.run_id:
                record = TrainRecord.from_json(row["record"])
                if record.weights_sha256 == evaluate.weights_sha256:
                    return record
        raise UserError(f"the run of {evaluate.checkpoint} is not in the ledger; train again: tessera train")

    def _shard_of(self, train: TrainRecord) -> ShardRecord:
        """The shard set, at its version, that a run was trained on."""
        return self._published(ShardRecord, train.shard_set)

    def _prepare_of(self, shards: ShardRecord) -> PrepareRecord:
        """The documents, at their version, that a shard set was written from."""
        return self._published(PrepareRecord, shards.inputs[0])

    def _published(self, kind: type[RecordT], table: TableVersion) -> RecordT:
        from tessera import publish

        record = publish.read_record(self.home.resolve(table.path), version=table.version)
        if record is None:
            raise UserError(f"{table.path}@{table.version} has no record any more; run its stage again")
        return kind.model_validate(record)

    def _tables_read(self) -> list[TableVersion]:
        """The source tables at all versions that earlier stages read."""
        rows = [row for row in self._ledger().rows() if row["stage"] == "prepare"]
        return [TableVersion.model_validate(table) for row in rows for table in json.loads(row["inputs"])]

    def _start_early(self, start: Callable[[], object]) -> None:
        """Begins a slow start in a thread, beside work that does not need it yet."""

        def quietly() -> None:
            with suppress(Exception):  # fails again, and is told, where its result is needed
                start()

        thread = threading.Thread(target=quietly, daemon=True)
        thread.start()
        self._early.append(thread)


def _as(kind: type[RecordT], record: Record | None) -> RecordT | None:
    return record if isinstance(record, kind) else None
