"""The stages of the line: how each recognises its recorded result, and how it makes a new one.

A stage is a `Work`: a fingerprint, a check and a function. Making one needs no JVM, no torch and no MLflow server; only
a source of the Spark catalog asks for the session. Rooms are imported where they are used, so that a wrong
configuration is answered at once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from tessera import tables, tracking
from tessera.errors import TesseraError
from tessera.home import Home
from tessera.lineage import (
    EvaluateRecord,
    PrepareRecord,
    Record,
    SampleRecord,
    ScoreRecord,
    ServeRecord,
    ShardRecord,
    TrainRecord,
)
from tessera.progress import Tell
from tessera.results import Results
from tessera.settings import Settings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from tessera.evaluate.gathering import Gathering
    from tessera.evaluate.rival import Rival
    from tessera.train.run import Origin

STAGES = ("sample", "prepare", "shard", "train", "evaluate", "serve")
"""The line, in its order."""
RecordT = TypeVar("RecordT", bound=Record)


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


class Stages:
    """Makes the works of one home with one configuration.

    Args:
        spark: gives the session, started at the first call.
        start_early: runs a slow start in a thread, beside work that does not need it yet.
        fresh: train in a new run folder although an unfinished one could be gone on with.
    """

    def __init__(
        self, settings: Settings, *, home: Home, results: Results, spark: "Callable[[], SparkSession]",
        start_early: Callable[[Callable[[], object]], None], fresh: bool,
    ) -> None:  # fmt: skip
        self.settings = settings
        self.home = home
        self.results = results
        self.spark = spark
        self.start_early = start_early
        self.fresh = fresh

    @property
    def names(self) -> tuple[str, ...]:
        """The stages of a whole run: the sample is written only for a source that reads it."""
        from tessera.prepare.sample import TABLE

        reads_sample = any(source.table == TABLE for source in self.settings.prepare.sources)
        return STAGES if reads_sample else STAGES[1:]

    def work(self, stage: str, *, after: Record | None = None) -> Work[Any]:
        """The work of `stage` on the record `after`, or without it on the newest result of the stage before.

        Raises:
            UserError: the stage before has no result yet.
        """
        match stage:
            case "sample":
                return self.sample()
            case "prepare":
                return self.prepare()
            case "shard":
                return self.shard(self._before(PrepareRecord, after))
            case "train":
                return self.train(self._before(ShardRecord, after))
            case "evaluate":
                return self.evaluate(self._before(TrainRecord, after))
            case "score":
                return self.score()
        return self.serve(self._before(EvaluateRecord, after))

    def _before(self, kind: type[RecordT], record: Record | None) -> RecordT:
        return record if isinstance(record, kind) else self.results.newest(kind, set_name=self.settings.shard.name)

    def sample(self) -> Work[SampleRecord]:
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

    def prepare(self) -> Work[PrepareRecord]:
        from tessera import erasures
        from tessera.prepare import sources, stage

        settings = self.settings.prepare
        resolved = [sources.resolve(source, home=self.home, spark=self.spark) for source in settings.sources]
        earlier = self.results.tables_read()
        for source in resolved:
            sources.check_not_rolled_back(source, earlier=earlier)
        fingerprint = stage.fingerprint(resolved, settings=settings, erased=erasures.read(self.home).digest)

        def make(tell: Tell) -> PrepareRecord:
            from tessera.prepare.documents import write_documents

            tell("starting Spark")
            record = write_documents(
                self.spark(),
                sources=resolved,
                settings=settings,
                fingerprint=fingerprint,
                home=self.home,
                partitions=self.settings.spark.partitions,
                fresh=self.fresh,
                tell=tell,
            )
            self._report(record, tell=tell)
            return record

        return Work(
            kind=PrepareRecord,
            fingerprint=fingerprint,
            holds=lambda record: stage.verify(record, sources=resolved, home=self.home),
            make=make,
        )

    def _report(self, record: PrepareRecord, *, tell: Tell) -> None:
        """Writes the report of new documents; they are published, so what goes wrong here is only told."""
        from tessera.prepare import outcome
        from tessera.prepare.report import stage as report

        tell("writing the report")
        settings = self.settings.prepare
        try:
            report.write_report(
                self.home, record=record, settings=settings.report, tracking_settings=self.settings.tracking,
                bytes_per_token=self.results.bytes_per_token(), extra_copies=outcome.extra_copies(settings), tell=tell,
            )  # fmt: skip
        except TesseraError as error:
            tell(f"no report: {error}")

    def shard(self, documents: PrepareRecord, *, compact: bool = False) -> Work[ShardRecord]:
        """Args:
        compact: make one generation of all documents.
        """
        from tessera.shard import stage

        settings = self.settings.shard
        if compact:
            settings = settings.model_copy(update={"compact_through": documents.table.version})
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
                generations=documents.generations,
                compacted=stage.compaction(documents, settings=settings, home=self.home),
                partitions=self.settings.spark.partitions,
                fresh=self.fresh,
                progress=tell,
            )

        return Work(
            kind=ShardRecord,
            fingerprint=fingerprint,
            holds=lambda record: stage.verify(record, home=self.home, stored=settings.mode == "sharded"),
            make=make,
        )

    def train(self, shards: ShardRecord) -> Work[TrainRecord]:
        from tessera.prepare import governance
        from tessera.train import run

        settings, block_shards = self.settings.train, self.settings.shard.block_shards
        origin = self._origin(shards)
        fingerprint = run.fingerprint(settings, shards=shards, block_shards=block_shards, origin=origin)
        if settings.purpose is not None:
            for trained_on in (shards, *self._sets_before(origin)):
                if not trained_on.imported:
                    allowed = self.results.prepare_of(trained_on).purposes
                    governance.refuse_purpose(allowed, purpose=settings.purpose, option="train.purpose")

        def make(tell: Tell) -> TrainRecord:
            self.start_early(lambda: tracking.prepare_store(self.settings.tracking, home=self.home))
            from tessera.train.launch import Lineage, train

            tell("starting Spark")
            record = train(
                self.spark(),
                shards=shards,
                settings=settings,
                block_shards=block_shards,
                fingerprint=fingerprint,
                home=self.home,
                tracking=self.settings.tracking,
                lineage=Lineage(config=self.settings.model_dump(mode="json"), sources=self.results.sources_of(shards)),
                fresh=self.fresh,
                tell=tell,
                origin=origin,
            )
            self._note_rows(record, shards=shards, tell=tell)
            return record

        return Work(
            kind=TrainRecord,
            fingerprint=fingerprint,
            holds=lambda record: run.verify(record, home=self.home),
            make=make,
        )

    def _origin(self, shards: ShardRecord) -> "Origin | None":
        """What training starts from; a registered model is fetched, once."""
        from tessera.train import origin

        return origin.resolve(self.settings.train, shards=shards, home=self.home, fetch=self.fetch)

    def fetch(self, uri: str) -> Path:
        """The checkpoint folder of a registered model, on this machine."""
        from tessera.serve import answers

        uris = tracking.uris(self.settings.tracking, home=self.home)
        return answers.find_model(model=uri, home=self.home, **uris).checkpoint

    def _sets_before(self, origin: "Origin | None") -> list[ShardRecord]:
        """The sets that the weights were trained on by then."""
        from tessera.shard import manifest
        from tessera.train import ledger
        from tessera.train.run import RunFolder

        point = origin and (origin.point or origin.before)
        if not point:
            return []
        segments = ledger.segments(RunFolder(self.home.runs / point.run), steps=point.step)
        return [manifest.read_record(self.home, name=one.set_name, version=one.set_version) for one in segments]

    def _note_rows(self, record: TrainRecord, *, shards: ShardRecord, tell: Tell) -> None:
        """Writes which rows the run saw; it is finished, so what goes wrong here is only told."""
        from tessera.train import rows_seen

        tell("noting which rows were seen")
        try:
            rows_seen.write(self.spark(), train=record, shards=shards, home=self.home)
        except TesseraError as error:
            tell(f"rows not noted: {error}")

    def evaluate(self, train: TrainRecord) -> Work[EvaluateRecord]:
        from tessera.evaluate import stage

        settings = self.settings.evaluate
        shard = self.results.shard_of(train)
        prepare = self.results.prepare_of(shard)
        tasks, champion = self.tasks(prepare), self._champion()

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
                spark=self.spark,
                tasks=tasks,
                champion=champion,
                fresh=self.fresh,
                tell=tell,
            )

        return Work(
            kind=EvaluateRecord,
            fingerprint=stage.fingerprint(
                train, shard=shard, prepare=prepare, settings=settings, tasks=tasks.identity()
            ),
            holds=lambda record: stage.verify(record, home=self.home, champion=champion),
            make=make,
        )  # fmt: skip

    def tasks(self, prepare: PrepareRecord) -> "Gathering":
        """What models are asked, over a version of the documents."""
        from tessera.evaluate.gathering import Gathering
        from tessera.evaluate.source_rows import SourceTable
        from tessera.settings import conf_folder

        keys = {source.name: source.key for source in self.settings.prepare.sources}
        sources = [
            SourceTable(one.name, self.home.resolve(one.path), one.version, key=keys[one.name])
            for one in prepare.inputs
            if one.name in keys and tables.exists(self.home.resolve(one.path))
        ]
        return Gathering(
            self.home, settings=self.settings.evaluate, documents=prepare.table, sources=sources, conf=conf_folder()
        )

    def _champion(self) -> "Rival | None":
        """Whom the gate holds a challenger against; nobody is looked for where it does not."""
        from tessera.serve import champion

        if not self.settings.evaluate.gate.not_worse:
            return None
        uris = tracking.uris(self.settings.tracking, home=self.home)
        return champion.find(self.settings.serve.model_name, fetch=self.fetch, **uris)

    def serve(self, evaluate: EvaluateRecord) -> Work[ServeRecord]:
        from tessera.serve import stage

        settings = self.settings.serve
        uris = tracking.uris(self.settings.tracking, home=self.home)

        def make(tell: Tell) -> ServeRecord:
            from tessera.serve.register import register

            train = self.results.train_of(evaluate)
            return register(
                self.home,
                train=train,
                evaluate=evaluate,
                prepare=self.results.prepare_of(self.results.shard_of(train)),
                settings=settings,
                tell=tell,
                **uris,
            )

        return Work(
            kind=ServeRecord,
            fingerprint=stage.fingerprint(evaluate, settings=settings),
            holds=lambda record: stage.verify(record, home=self.home, **uris),
            make=make,
        )

    def score(self) -> Work[ScoreRecord]:
        """Not of the line: asked for by itself, about any table."""
        from tessera.serve import answers

        settings = self.settings.score
        source = answers.find_source(settings, home=self.home, spark=self.spark)
        uris = tracking.uris(self.settings.tracking, home=self.home)
        named = settings.model or f"models:/{self.settings.serve.model_name}@champion"
        version = answers.find_version(model=named, **uris)

        def make(tell: Tell) -> ScoreRecord:
            tell("fetching the model")
            model = answers.fetch_model(version=version, home=self.home, **uris)
            tell("starting Spark")
            session = self.spark()
            from tessera.serve.batch import score

            return score(session, source=source, settings=settings, model=model, home=self.home, tell=tell)

        return Work(
            kind=ScoreRecord,
            fingerprint=answers.fingerprint(source, settings=settings, model=version),
            holds=lambda record: answers.verify(record, source=source, home=self.home),
            make=make,
        )
