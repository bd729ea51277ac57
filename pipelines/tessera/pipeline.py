"""The line: one method a room, and what spans rooms. The command line, jobs and notebooks are thin over this.

A stage whose fingerprint has a recorded result that still holds is not run again; finding that out needs no JVM, no
torch and no MLflow server. Rooms are imported where they are used, so that a wrong configuration is answered at once.
"""

import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tessera import report, spark, tracking
from tessera.errors import TesseraError, UserError
from tessera.garbage import Garbage
from tessera.home import Home
from tessera.lineage import PrepareRecord, Record, ServeRecord, ShardRecord, TableVersion, sha256_json
from tessera.progress import Reporter, Tell
from tessera.results import Results
from tessera.settings import Settings
from tessera.stages import Stages, Work

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from tessera.evaluate.examination import Examination
    from tessera.evaluate.gathering import Gathering
    from tessera.evaluate.rival import Rival
    from tessera.evaluate.scoring import Examiner
    from tessera.examining import Compared, Leaderboard
    from tessera.explore.stage import MapResult
    from tessera.forgetting.forget import Forgotten
    from tessera.forgetting.target import Wanted
    from tessera.reproducing.reproduce import Reproduced
    from tessera.row_lineage import TrainedOn
    from tessera.serve.engine import Engine
    from tessera.status import Status


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
        self.results = Results(home)
        self.stages = Stages(
            settings, home=home, results=self.results, spark=self.spark, start_early=self._start_early, fresh=fresh
        )
        self._early: list[threading.Thread] = []
        self._found_session = spark.has_started()
        self._repaired = False
        self._replayed = False

    def run(self) -> list[Record]:
        """All stages in order; each finds its recorded result or makes it."""
        if any(action == "run" for stage, action in self.plan().items() if stage in ("prepare", "shard", "train")):
            spark.import_client()
            self._start_early(lambda: spark.start_early(self.settings.spark, home=self.home))
        records: list[Record] = []
        for stage in self.stages.names:
            records.append(self.do(stage, after=records[-1] if records else None))
        return records

    def do(self, stage: str, *, after: Record | None = None) -> Record:
        """One stage, on what `after` records or, without it, on the newest result of the stage before.

        Raises:
            UserError: the stage before has no result yet.
        """
        self._repair()
        if stage in ("train", "evaluate", "serve"):
            self._replay()
        return self._do(self.stages.work(stage, after=after))

    def compact(self) -> Record:
        """Writes the newest documents as one generation of the shard set; states of its loaders are then refused.

        Raises:
            UserError: nothing was prepared yet.
        """
        self._repair()
        return self._do(self.stages.shard(self.results.newest(PrepareRecord), compact=True))

    def forget(self, wanted: "Wanted", *, dry_run: bool = False) -> "Forgotten":
        """Takes rows out of every room, and searches for what is left; see `forgetting.forget`.

        Raises:
            ForgetFailed: something is.
        """
        from tessera.forgetting.forget import forget_and_keep

        self._repair()
        with self.reporter.stage("forget") as tell:
            return forget_and_keep(
                self.home, settings=self.settings, wanted=wanted, spark=self.spark, close=self._settle,
                ledger=self.results.ledger, dry_run=dry_run, tell=tell,
            )  # fmt: skip

    def trained_on(self, wanted: "Wanted") -> "tuple[list[str], list[TrainedOn]]":
        """The ids of rows, and the runs and registered models that were trained on each.

        Raises:
            ConfigError: the rows are not named, or by what is no key of their source.
        """
        from tessera import row_lineage

        self._replay()
        return row_lineage.trained_on(self.home, settings=self.settings, wanted=wanted, spark=self.spark)

    def reproduce(self, model: str, *, from_documents: bool = False) -> "Reproduced":
        """Rebuilds a registered model version from its record and compares; see `reproducing.reproduce`.

        Args:
            model: `models:/NAME/VERSION` or `models:/NAME@ALIAS`.
            from_documents: begin at the documents, whatever became of their sources.

        Raises:
            UserError: what it was made of is gone; says what.
        """
        from tessera.reproducing.reproduce import reproduce

        self._repair()
        with self.reporter.stage("reproduce") as tell:
            return reproduce(
                self.home, model=model, settings=self.settings, results=self.results, spark=self.spark,
                from_documents=from_documents, tell=tell,
            )  # fmt: skip

    def examine(self, model: str, *, files: Sequence[str] = ()) -> "Examination":
        """What any model does on task files, or on the configured tasks; see `examining`.

        Args:
            model: `models:/NAME@ALIAS`, `models:/NAME/VERSION`, a run of the home, or a folder.
        """
        from tessera import examining

        with self.reporter.stage("evaluate") as tell:
            asking = self._examiner(tell)
            return examining.examine(self._model(model), examiner=asking, tasks=self._tasks(), files=files)

    def compare(self, first: str, second: str, *, files: Sequence[str] = ()) -> "Compared":
        """Two models on the same tasks; writes the page that shows whether a difference is real."""
        from tessera import examining

        with self.reporter.stage("compare") as tell:
            return examining.compare(
                self._model(first), self._model(second), examiner=self._examiner(tell), settings=self.settings,
                tasks=self._tasks(), files=files,
            )  # fmt: skip

    def leaderboard(self) -> "Leaderboard":
        """Every version of the registered model, with the scores that are known; writes the page."""
        from tessera import examining

        return examining.leaderboard(home=self.home, settings=self.settings)

    def promote(self, model: str, *, force: bool = False, reason: str = "") -> str:
        """Makes a registered version the champion, if its gate passed it; its URI.

        Raises:
            GateRefused: the gate did not, and it is not forced with a reason.
        """
        from tessera.serve import champion

        uris = tracking.uris(self.settings.tracking, home=self.home)
        return champion.promote_by_hand(self.home, model=model, force=force, reason=reason, **uris).uri

    def canaries(self) -> TableVersion:
        """Writes the table of canaries, by `evaluate.safety.canaries` or its defaults."""
        from tessera.evaluate import canaries
        from tessera.evaluate.settings import CanarySettings

        return canaries.write_table(self.settings.evaluate.safety.canaries or CanarySettings(), home=self.home)

    def _examiner(self, tell: Tell) -> "Examiner":
        from tessera.evaluate.scoring import Examiner

        return Examiner(self.home, settings=self.settings.evaluate, spark=self.spark, fresh=self.fresh, tell=tell)

    def _model(self, given: str) -> "Rival":
        from tessera import examining

        return examining.find_model(given, home=self.home, settings=self.settings, fetch=self.stages.fetch)

    def _tasks(self) -> "Gathering | None":
        """The configured tasks over the newest documents; None where there are no documents yet."""
        try:
            return self.stages.tasks(self.results.newest(PrepareRecord))
        except UserError:
            return None

    def _settle(self) -> None:
        """No early start goes on; a session that spills into the home is ended by `forget`, which asks for it."""
        for thread in self._early:
            thread.join()

    def import_shards(self, folder: Path, *, column: str | None = None) -> Record:
        """Makes an MDS folder that others wrote the shard set of the settings' name; no JVM is started.

        Args:
            column: of text or tokens; by default `tokens`, else `text`.

        Raises:
            UserError: the folder or the tokenizer is unfit, or the set is of something else.
        """
        from tessera.shard.write.imported import import_folder

        self._repair()
        with self.reporter.stage("import") as tell:
            record, imported = import_folder(
                self.home, folder=folder, settings=self.settings.shard, holdout=self.settings.prepare.holdout,
                column=column, fresh=self.fresh, progress=tell,
            )  # fmt: skip
        reused = imported is None
        record = record.model_copy(update={"reused": reused})
        self.results.ledger.append(record, status="reused" if reused else "done")
        self.reporter.line(report.line(record))
        if imported is not None and imported.dropped:
            dropped = ", ".join(f"{count:,} {reason}" for reason, count in imported.dropped.items())
            self.reporter.line(f"of {imported.samples:,} samples were dropped: {dropped}")
        return record

    def _do(self, work: Work[Any]) -> Record:
        began = time.monotonic()
        found = None if self.fresh else self._find(work)
        if found is not None:
            record = found.model_copy(update={"reused": True, "seconds": round(time.monotonic() - began, 3)})
            self.results.ledger.append(record, status="reused")
        else:
            record = self._make(work, began=began)
        self.reporter.line(report.line(record))
        return record

    def plan(self, stages: Sequence[str] | None = None) -> dict[str, str]:
        """What `run`, or these stages, would do: `reuse` or `run`, by stage. Nothing is written.

        Spark is asked only for a source of its catalog.
        """
        actions: dict[str, str] = {}
        record: Record | None = None
        for stage in stages or self.stages.names:
            if self.fresh or (actions and "run" in actions.values()):
                actions[stage] = "run"
                continue
            record = self._find(self.stages.work(stage, after=record))
            actions[stage] = "reuse" if record is not None else "run"
        return actions

    def spark(self) -> "SparkSession":
        """The Spark session, started at the first call."""
        for thread in self._early:
            thread.join()
        return spark.session(self.settings.spark, home=self.home)

    def close(self) -> None:
        """Stops the Spark session, if one was started for this pipeline."""
        for thread in self._early:
            thread.join()
        if not self._found_session:
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
        return self.results.ledger.rows()

    def explore(self) -> "MapResult":
        """Writes the map of all training runs, quality against cost, and keeps it in MLflow.

        Raises:
            TrackingError: MLflow cannot be used now.
        """
        from tessera.explore.stage import write_map

        self._replay()
        with self.reporter.stage("explore") as tell:
            return write_map(self.home, tracking=self.settings.tracking, settings=self.settings.explore, tell=tell)

    def status(self) -> "Status":
        """What is stale against the newest source versions, what runs, and what failed last."""
        from tessera import status

        self._repair()
        return status.examine(self.home, settings=self.settings, results=self.results)

    def garbage(self, *, older_than_hours: float = 24.0) -> list[Garbage]:
        """What lies in the home and is needed by nothing: files of shards and tables, checkpoints, caches, spill."""
        from tessera import garbage, publish
        from tessera.shard.garbage import garbage as of_shards
        from tessera.shard.read.petastorm.garbage import garbage as of_petastorm
        from tessera.train.garbage import garbage as of_runs

        before = time.time() - older_than_hours * 3600
        shard = self.settings.shard
        retention = publish.Retention(versions=shard.retain_versions, days=shard.retain_days)
        searches = (of_runs, of_petastorm, garbage.of_tables, garbage.fetched_models, garbage.spill)
        return [
            *of_shards(self.home, before=before, retention=retention),
            *(found for search in searches for found in search(self.home, before=before)),
        ]

    def _repair(self) -> None:
        """Makes the ledger whole after a kill, once, and the indexes of the shard sets whose writers were killed."""
        if self._repaired:
            return
        self._repaired = True
        for record in self.results.repair(self.reporter.line):
            if isinstance(record, ShardRecord) and not record.direct:
                from tessera.shard import manifest

                with suppress(OSError, TesseraError):  # a file is gone: the next `tessera shard` sees to it
                    manifest.write_indexes(self.home, name=record.name, version=record.manifest.version)

    def _replay(self) -> None:
        """Sends MLflow what it lacks of runs that ended while it was away, once."""
        from tessera.train import replay

        if not self._replayed:
            self._replayed = True
            replay.replay(self.home, settings=self.settings.tracking, notice=self.reporter.line)

    def _find(self, work: Work[Any]) -> Record | None:
        recorded = self.results.ledger.find(stage=work.stage, fingerprint=work.fingerprint)
        if recorded is None:
            return None
        record: Record = work.kind.from_json(recorded)
        return record if work.holds(record) else None

    def _make(self, work: Work[Any], *, began: float) -> Record:
        try:
            with self.reporter.stage(work.stage) as tell:
                record: Record = work.make(tell)
        except Exception as error:
            said = str(error) if isinstance(error, TesseraError) else type(error).__name__  # others may hold row text
            seconds = round(time.monotonic() - began, 3)
            failed = Record(stage=work.stage, fingerprint=work.fingerprint, seconds=seconds, error=said)
            with suppress(Exception):
                self.results.ledger.append(failed, status="failed")
            raise
        record = record.model_copy(update={"seconds": round(time.monotonic() - began, 3)})
        self.results.ledger.append(record)
        return record

    def _engine(self, record: Record) -> "Engine":
        from tessera.serve import stage
        from tessera.serve.engine import Engine

        assert isinstance(record, ServeRecord)
        uris = tracking.uris(self.settings.tracking, home=self.home)
        folder = stage.checkpoint_folder(record, home=self.home, **uris)
        return Engine(folder, weights_sha256=record.weights_sha256)

    def _start_early(self, start: Callable[[], object]) -> None:
        """Begins a slow start in a thread, beside work that does not need it yet."""

        def quietly() -> None:
            with suppress(Exception):  # fails again, and is told, where its result is needed
                start()

        thread = threading.Thread(target=quietly, daemon=True)
        thread.start()
        self._early.append(thread)
