"""Evaluates a run: held-out text, tasks, safety, a verdict, and one published row.

Reads the checkpoint, the run's own shards.arrow, and the held-out documents at their pinned version. What the model did
on each task is kept in `tables/scores`, so that only new questions are asked. Costs one forward over the split, one
pass over the tokens seen, and what the tasks ask; the champion is loaded only where it was not asked before.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING

from tessera import lineage
from tessera.evaluate import evaluations, latency, safety, stage
from tessera.evaluate.compare import Comparison, compare
from tessera.evaluate.examination import Examination, ask_here, examine_all
from tessera.evaluate.gate import Facts, judge
from tessera.evaluate.gathering import Gathering, Tasks
from tessera.evaluate.gauntlet import GauntletScore
from tessera.evaluate.heldout import Scores, check_weights, device_of, measure
from tessera.evaluate.pages import write_pages
from tessera.evaluate.rival import Rival
from tessera.evaluate.settings import EvaluateSettings
from tessera.evaluate.sharing import Asked, ModelOnRanks
from tessera.evaluate.subject import Subject, open_subject
from tessera.evaluate.task import Task
from tessera.home import Home
from tessera.lineage import EvaluateRecord, PrepareRecord, ShardRecord, TableVersion, TrainRecord
from tessera.progress import Tell, silent
from tessera.tracking import TrackingSettings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@dataclass(frozen=True)
class Measured:
    """All that was measured of one checkpoint."""

    heldout: Scores
    own: Examination
    gauntlet: GauntletScore | None
    contaminated: Mapping[str, int]
    """Task -> items whose text stands in the training split."""
    comparison: Comparison | None
    """With the champion."""
    safety: Mapping[str, float]
    latency_ms: float | None


def evaluate(
    home: Home,
    *,
    train: TrainRecord,
    shard: ShardRecord,
    prepare: PrepareRecord,
    settings: EvaluateSettings,
    tracking: TrackingSettings,
    spark: "Callable[[], SparkSession]",
    tasks: Gathering | None = None,
    champion: Rival | None = None,
    fresh: bool = False,
    tell: Tell = silent,
) -> EvaluateRecord:
    """Scores the run's checkpoint, judges it, publishes the row and tells MLflow.

    Args:
        spark: gives the session; asked for only where `evaluate.ranks` are several.
        tasks: what it is asked, besides held-out text; None asks nothing.
        champion: whom `gate.not_worse` holds it against; None where there is none.
        fresh: ask again what is known.

    Raises:
        CorruptCheckpoint: the weights are not those of the record.
        CorruptShard: a file of the set differs from its manifest.
        ShardSetError: the held-out documents are not what the shards were made from.
    """
    check_weights(home.resolve(train.checkpoint), expected=train.weights_sha256)
    heldout = measure(home, train=train, shard=shard, prepare=prepare, settings=settings, tell=tell)
    own = Rival("this checkpoint", train.weights_sha256, train.run, checkpoint=lambda: home.resolve(train.checkpoint))
    measured = _measure_rest(
        home, own, prepare=prepare, settings=settings, tasks=tasks, champion=champion, heldout=heldout,
        examiner=Examiner(home, settings=settings, spark=spark, fresh=fresh, tell=tell), tell=tell,
    )  # fmt: skip
    verdict = judge(_facts(measured, champion=champion), settings=settings.gate)
    record = EvaluateRecord(
        fingerprint=stage.fingerprint(
            train, shard=shard, prepare=prepare, settings=settings, tasks=tasks.identity() if tasks else None
        ),
        inputs=(train.shard_set, prepare.table),
        code=lineage.code_version(),
        created=lineage.now(),
        run_id=train.run_id,
        checkpoint=train.checkpoint,
        weights_sha256=train.weights_sha256,
        bits_per_byte=heldout.model.bits_per_byte,
        baselines=heldout.baselines,
        passed=verdict.passed,
        reasons=verdict.reasons,
        scores=measured.own.task_scores(),
        failures={name: failure.why for name, failure in measured.own.failures.items()},
        gauntlet=measured.gauntlet.values if measured.gauntlet else {},
        contaminated=dict(measured.contaminated),
        safety=dict(measured.safety),
        latency_ms=measured.latency_ms,
        met=(champion.weights_sha256 if champion else "") if settings.gate.not_worse else None,
        table=TableVersion(name=evaluations.TABLE, path=home.relative(home.evaluations), version=0),
    )
    record = evaluations.publish_row(home, record=record, train=train, score=heldout.model)
    pages = write_pages(home, record=record, train=train, prepare=prepare, comparison=measured.comparison)
    tell("telling MLflow")
    try:
        evaluations.log_to_mlflow(record, train=train, pages=pages, home=home, tracking=tracking, tell=tell)
    except Exception as error:  # whatever it is, the evaluation is published
        tell(f"MLflow was not told ({type(error).__name__}); the evaluation is in {record.table.path}")
    return record


@dataclass(frozen=True)
class Examiner:
    """Asks models, each loaded once at most: in this process, or shared out over `evaluate.ranks`.

    Args:
        spark: gives the session that TorchDistributor asks for; only where there are several ranks.
    """

    home: Home
    settings: EvaluateSettings
    spark: "Callable[[], SparkSession]"
    fresh: bool = False
    tell: Tell = silent

    def examine(self, model: Rival, *, tasks: Tasks) -> Examination:
        """What a model does on `tasks`; its files are fetched where it was not asked before."""
        return examine_all(
            self.home, tasks=tasks, weights_sha256=model.weights_sha256, run=model.run,
            document_start=self.settings.document_start, ask=partial(self._ask, model), fresh=self.fresh,
        )  # fmt: skip

    def open(self, model: Rival) -> Subject:
        return open_subject(
            model.checkpoint(), expected_sha256=model.weights_sha256, device=device_of(self.settings),
            document_start=self.settings.document_start, batch_tokens=self.settings.batch_tokens,
        )  # fmt: skip

    def _ask(self, model: Rival, tasks: Mapping[str, Task]) -> Asked:
        self.tell(f"asking {model.name}")
        if self.settings.ranks == 1:
            return ask_here(tasks, subject=cache(lambda: self.open(model)), tell=self.tell)
        from tessera.evaluate.launch import ask_on_ranks

        told = ModelOnRanks(
            checkpoint=str(model.checkpoint()), weights_sha256=model.weights_sha256,
            document_start=self.settings.document_start, batch_tokens=self.settings.batch_tokens,
            device=device_of(self.settings).type, ranks=self.settings.ranks,
        )  # fmt: skip
        return ask_on_ranks(tasks, home=self.home, spark=self.spark, model=told, tell=self.tell)


def _measure_rest(
    home: Home, own: Rival, *, prepare: PrepareRecord, settings: EvaluateSettings, tasks: Gathering | None,
    champion: Rival | None, heldout: Scores, examiner: Examiner, tell: Tell,
) -> Measured:  # fmt: skip
    asked: Tasks = tasks.tasks() if tasks else {}
    found = examiner.examine(own, tasks=asked)
    subject = cache(lambda: examiner.open(own))
    comparison = None
    if champion is not None:
        wanted = {one.task for one in settings.gate.not_worse}
        held = {name: task for name, task in found.tasks.items() if name in wanted}
        theirs = examiner.examine(champion, tasks=held)
        comparison = compare(found.side(own.name), theirs.side(champion.name), tasks=held)
    tell("looking for items in the training split")
    return Measured(
        heldout=heldout,
        own=found,
        gauntlet=tasks.gauntlet.summarise(found.results) if tasks and tasks.gauntlet else None,
        contaminated={name: one.found for name, one in tasks.contaminated(asked).items()} if tasks else {},
        comparison=comparison,
        safety=safety.measure(home, subject=subject, documents=prepare.table, settings=settings.safety, tell=tell),
        latency_ms=latency.next_token_ms(subject()) if settings.gate.max_latency_ms is not None else None,
    )


def _facts(measured: Measured, *, champion: Rival | None) -> Facts:
    comparison = measured.comparison
    return Facts(
        bits_per_byte=measured.heldout.model.bits_per_byte,
        baselines=measured.heldout.baselines,
        scores=measured.own.results,
        gauntlet=measured.gauntlet,
        paired={one.task: one.paired for one in comparison.tasks} if comparison else {},
        not_compared=comparison.missing if comparison else {},
        champion=champion.name if champion else None,
        exposure=measured.safety.get(safety.EXPOSURE),
        latency_ms=measured.latency_ms,
    )
