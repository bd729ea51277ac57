"""A registered model over a Delta table: the rows it has not answered yet, a slice a commit, each exactly once.

Spark reads the source at its pinned version, and `tables/answers` at the version that will be our parent; what is in
the first and not in the second is pending. Pending rows are cut by hash of their id into slices. A slice is answered by
Spark's Python workers, comes to the driver, and is committed by a commit that succeeds only as the next version of
the one before: retries and speculative twins of a task add nothing, a kill loses at most the slice at work, and the
second of two scorers gets `Conflict` before it has added a row.

Costs: an engine for each Python worker (about ten seconds of imports, then the weights in memory), one sequence at a
time in each; rows are shown to the model in no order; the driver holds one slice of answers. The pending rows' text
lies in the home's spill folder while it runs, for a moment twice: once whole, then as Parquet in a folder a slice,
each gone when its slice is committed. A slice reads its own folder alone, so that time grows with the rows. The driver
imports no torch.
"""

import os
import shutil
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pyarrow as pa
from pyspark import StorageLevel
from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from tessera import erasures, failpoints, lineage, publish, spark_tables, tasks
from tessera.errors import Conflict, PromptError, SourceError, TesseraError, TokenizerError
from tessera.home import Home
from tessera.lineage import ScoreRecord, TableVersion
from tessera.prepare import read
from tessera.prepare.sources import Located
from tessera.progress import Tell, silent
from tessera.publish import Publication
from tessera.serve import answers
from tessera.serve.answers import Model
from tessera.serve.score_settings import ScoreSettings, Template

if TYPE_CHECKING:
    from tessera.serve.engine import Engine

PENDING = "doc_id string, row_key string, prompt string, prompt_sha256 string"
"""A row that is to be answered, as it waits in its slice's folder."""

ANSWERED = (
    "doc_id string, row_key string, prompt_sha256 string, answer string, prompt_tokens long, tokens long, "
    "finish_reason string, seconds double"
)
"""What a worker gives for a pending row."""

UNANSWERED: dict[type[Exception], str] = {PromptError: "prompt_too_long", TokenizerError: "prompt_unfit"}
"""Finish reasons without an answer: no room for a token in the context, or the tokenizer cannot take the text."""

TASKS_PER_CORE = 2
UTC_TIMES = {"timeZone": "UTC", "timestampFormat": "yyyy-MM-dd'T'HH:mm:ss.SSSSSSXXX"}


@dataclass(frozen=True)
class Plan:
    """Everything that decides an answer, as it travels to the workers."""

    checkpoint: str
    weights_sha256: str
    max_tokens: int
    temperature: float
    top_p: float
    stop: tuple[str, ...]
    seed: int

    def options(self, doc_id: str) -> dict[str, Any]:
        """How the engine is asked about one row."""
        return {
            "default_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "stop": self.stop,
            "seed": row_seed(self.seed, doc_id=doc_id),
        }


@dataclass(frozen=True)
class Counts:
    """The rows of the source, each counted once."""

    skipped: dict[str, int]
    """By reason."""
    found: int
    """Answered before by this version, on this request and this prompt."""
    pending: int

    @property
    def rows(self) -> int:
        return sum(self.skipped.values()) + self.found + self.pending

    def wanted(self, *, limit: int | None) -> int:
        """Rows that will be answered now."""
        return min(self.pending, limit or self.pending)


def score(
    spark: SparkSession,
    *,
    source: Located,
    settings: ScoreSettings,
    model: Model,
    home: Home,
    tell: Tell = silent,
) -> ScoreRecord:
    """Answers the pending rows of `source` and appends them to `tables/answers`, a commit a slice.

    Every commit carries the record of the run so far; the returned one is the last of them. A row with a null key or a
    null in a column of the prompt is skipped, and counted by reason; one whose prompt is too long for the model gets a
    row with that reason and no answer, so that it is not tried again.

    Args:
        tell: told how many rows are answered, after each slice.

    Raises:
        SourceError: a row filter that is not SQL, duplicate row keys, or no row that can be asked.
        ModelError: the checkpoint is not what was registered.
        Conflict: another writer committed to `tables/answers` meanwhile; slices committed before it stay.
        TesseraError: a worker failed, or Spark lost rows; committed slices stay.
    """
    began = time.monotonic()
    publication = publish.begin(home.answers, name="answers")
    plan = _plan(model, settings=settings)
    num_tasks = TASKS_PER_CORE * tasks.parallelism(spark)
    with _scratch(home) as folder:
        tell("looking for rows without an answer")
        rows = _rows(spark, source, settings=settings, home=home)
        judged = _with_known(spark, rows, settings=settings, model=model, publication=publication)
        counts = _cut(judged, settings=settings, num_tasks=num_tasks, to=folder)
        record = _first_record(source, settings=settings, model=model, counts=counts, parent=publication.parent)
        wanted = counts.wanted(limit=settings.limit)
        for pending in _slices(folder):
            tell("answering", record.answered, wanted)
            found = _answer(spark, pending, plan=plan, num_tasks=num_tasks)
            data = _table(found, record=record, source=source)
            record = _after(record, data, version=publication.version, seconds=time.monotonic() - began)
            publication = _publish(publication, data, record=record)
    if record.answered != wanted:
        raise TesseraError(f"{wanted} rows were pending, {record.answered} came back answered; run score again")
    return record


def row_seed(seed: int, *, doc_id: str) -> int:
    """The seed of one row's draws, 63 bits: a function of the run's seed and the row's id alone."""
    return int.from_bytes(sha256(f"{seed}\n{doc_id}".encode()).digest()[:8], "big") >> 1


def answer_rows(batches: Iterator[pa.RecordBatch], *, plan: Plan) -> Iterator[pa.RecordBatch]:
    """What a Spark worker does: PENDING -> ANSWERED."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # Spark has as many workers as cores
    for batch in batches:
        if batch.num_rows == 0:
            continue
        engine = _engine(plan.checkpoint, plan.weights_sha256)
        found = []
        for doc_id, prompt in zip(batch["doc_id"].to_pylist(), batch["prompt"].to_pylist(), strict=True):
            found.append(_answer_row(engine, prompt, options=plan.options(doc_id), doc_id=doc_id))
            failpoints.hit("score.after_row")
        given = batch.select(["doc_id", "row_key", "prompt_sha256"])
        done = pa.RecordBatch.from_pylist(found, schema=_ANSWER_SCHEMA)
        yield pa.RecordBatch.from_arrays(
            [*given.columns, *done.columns], names=[*given.schema.names, *done.schema.names]
        )


_ANSWER_SCHEMA = pa.schema(
    [answers.SCHEMA.field(name) for name in ("answer", "prompt_tokens", "tokens", "finish_reason", "seconds")]
)


@lru_cache(maxsize=1)
def _engine(checkpoint: str, weights_sha256: str) -> "Engine":
    """The engine of this process: workers are used again from slice to slice."""
    from tessera.serve.engine import Engine

    return Engine(Path(checkpoint), weights_sha256=weights_sha256)


def _answer_row(engine: "Engine", prompt: str, *, options: dict[str, Any], doc_id: str) -> dict[str, Any]:
    try:
        done = engine.complete(prompt, **options)
    except tuple(UNANSWERED) as error:
        reason = UNANSWERED[type(error)]
        return {"answer": None, "prompt_tokens": None, "tokens": 0, "finish_reason": reason, "seconds": 0.0}
    except Exception as error:
        # A foreign message may hold row text: name the kind and the place only.
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(frame.filename).name}:{frame.lineno}"
        raise TesseraError(f"doc_id {doc_id} cannot be answered: {type(error).__name__} at {place}") from None
    return {
        "answer": done.text,
        "prompt_tokens": done.prompt_tokens,
        "tokens": done.completion_tokens,
        "finish_reason": done.finish_reason,
        "seconds": done.seconds,
    }


def _rows(spark: SparkSession, source: Located, *, settings: ScoreSettings, home: Home) -> DataFrame:
    """(doc_id, row_key, prompt, prompt_sha256, reason) of the source; `reason` says why a row cannot be asked."""
    table = read.read_pinned(spark, source, where=settings.where, option=f"score.source {settings.name}: where")
    template = answers.template_of(settings)
    row_key, has_key = read.row_key(settings.key), read.has_key(settings.key)
    prompt = _prompt(template, types=dict(table.dtypes))
    reason = F.when(~has_key, "null_key")
    for name in dict.fromkeys(name for _, name in template if name is not None):
        reason = reason.when(read.column(name).isNull(), f"null_in_{name}")
    erased = sorted(erasures.read(home).doc_ids)
    if erased:
        reason = reason.when(read.doc_id(source.pinned.name, row_key=row_key).isin(erased), erasures.REASON)
    reason = reason.when(~(F.is_valid_utf8(row_key) & F.is_valid_utf8(prompt)), "not_utf8")
    keyed = table.select(
        row_key.alias("row_key"), prompt.alias("prompt"), reason.alias("reason"), has_key.alias("has_key")
    )
    doc_id = read.doc_id(source.pinned.name, row_key=F.col("row_key"))
    return keyed.select(
        F.when(F.col("has_key"), doc_id).alias("doc_id"),
        "row_key",
        "prompt",
        F.sha2(F.col("prompt").cast("binary"), 256).alias("prompt_sha256"),
        "reason",
    )


def _prompt(template: Template, *, types: dict[str, str]) -> Column:
    """The prompt of a row; null when one of its columns is."""
    parts = []
    for literal, name in template:
        parts.append(F.lit(literal))
        if name is not None:
            parts.append(_as_text(read.column(name), kind=types[name]))
    return F.concat(*parts)


def _as_text(column: Column, *, kind: str) -> Column:
    """A value as text; a moment in UTC, whatever the session's time zone."""
    if kind == "timestamp":
        return F.get_json_object(F.to_json(F.struct(column.alias("at")), UTC_TIMES), "$.at")
    return column.cast("string")


def _with_known(
    spark: SparkSession, rows: DataFrame, *, settings: ScoreSettings, model: Model, publication: Publication
) -> DataFrame:
    """Adds `known`: whether the parent version of the answers holds this row's answer to this very prompt."""
    if publication.parent == publish.NO_PARENT:
        return rows.withColumn("known", F.lit(False))
    table = spark_tables.at_version(spark, publication.path, version=publication.parent)
    request = answers.request_of(settings, model=model)
    ours = (F.col("model") == model.name) & (F.col("model_version") == model.version) & (F.col("request") == request)
    before = table.where(ours).select("doc_id", "prompt_sha256").distinct().withColumn("known", F.lit(True))
    joined = rows.join(before, on=["doc_id", "prompt_sha256"], how="left")
    return joined.withColumn("known", F.coalesce("known", F.lit(False)))


def _refuse_duplicates(judged: DataFrame, *, settings: ScoreSettings) -> None:
    keys = judged.where("doc_id IS NOT NULL").groupBy("doc_id").count().where("count > 1")
    found = keys.agg(F.count("*").alias("keys"), F.sum("count").alias("rows")).first()
    if found is not None and found["keys"]:
        raise SourceError(
            f"{settings.name}: {found['keys']} row keys ({', '.join(settings.key)}) occur more than once, in "
            f"{found['rows']} rows; name more columns in --id, or leave rows out with score.where"
        )


def _count(judged: DataFrame) -> Counts:
    found = judged.groupBy("reason", "known").count().collect()
    skipped = {row["reason"]: row["count"] for row in found if row["reason"] is not None}
    unskipped = {row["known"]: row["count"] for row in found if row["reason"] is None}
    return Counts(skipped=dict(sorted(skipped.items())), found=unskipped.get(True, 0), pending=unskipped.get(False, 0))


def _refuse_nothing(counts: Counts, *, settings: ScoreSettings) -> None:
    if counts.rows == 0:
        raise SourceError(f"{settings.name} has no rows to score; look at its version and score.where")
    if counts.found + counts.pending == 0:
        raise SourceError(f"{settings.name}: none of its {counts.rows} rows can be asked: {counts.skipped}")


def _plan(model: Model, *, settings: ScoreSettings) -> Plan:
    return Plan(
        checkpoint=str(model.checkpoint),
        weights_sha256=model.weights_sha256,
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        stop=settings.stop,
        seed=settings.seed,
    )


@contextmanager
def _scratch(home: Home) -> Iterator[Path]:
    """A folder of this run for text, removed in the end. After a kill gc takes it, as it does what Spark leaves."""
    folder = home.spill / f"spark-score-{uuid4().hex}"
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _cut(judged: DataFrame, *, settings: ScoreSettings, num_tasks: int, to: Path) -> Counts:
    """Counts the rows, and writes those to be answered as one Parquet file a slice.

    A row's slice is the last bits of its id; of limited rows, those of smallest id are taken, once for all slices.
    """
    judged = judged.persist(StorageLevel.DISK_ONLY)
    try:
        _refuse_duplicates(judged, settings=settings)
        counts = _count(judged)
        _refuse_nothing(counts, settings=settings)
        if wanted := counts.wanted(limit=settings.limit):
            pending = judged.where("reason IS NULL AND NOT known")
            if wanted < counts.pending:
                pending = pending.orderBy("doc_id").limit(wanted)
            slices = _slice_of("doc_id", number=answers.num_slices(wanted, slice_rows=settings.slice_rows))
            columns = [part.split()[0] for part in PENDING.split(", ")]
            numbered = pending.select(*columns, slices.alias("slice")).repartition(num_tasks, "slice")
            numbered.write.partitionBy("slice").parquet(str(to))
    finally:
        judged.unpersist()
    return counts


def _slice_of(doc_id: str, *, number: int) -> Column:
    """The slice of an id, of `number`, a power of two."""
    digits = answers.SLICE_BITS // 4
    return F.conv(F.substring(doc_id, -digits, digits), 16, 10).cast("long").bitwiseAND(F.lit(number - 1))


def _slices(folder: Path) -> Iterator[Path]:
    """The folder of each slice that has rows, in order; it is removed when the next one is asked for."""
    for path in sorted(folder.glob("slice=*"), key=lambda path: int(path.name.partition("=")[2])):
        yield path
        shutil.rmtree(path, ignore_errors=True)


def _answer(spark: SparkSession, pending: Path, *, plan: Plan, num_tasks: int) -> pa.Table:
    """ANSWERED of one slice, spread over all cores."""
    rows = spark_tables.parquet(spark, str(pending), schema=PENDING)
    try:
        return rows.repartition(num_tasks, "doc_id").mapInArrow(partial(answer_rows, plan=plan), ANSWERED).toArrow()
    except PySparkException as error:
        raise _from_worker(error) from None


def _from_worker(error: Exception) -> TesseraError:
    """The error of ours that a worker raised; of another, its kind alone."""
    return tasks.error_of_worker(error) or TesseraError(
        f"Spark could not answer a slice ({type(error).__name__}); its log has the reason. Run again"
    )


def _table(found: pa.Table, *, record: ScoreRecord, source: Located) -> pa.Table:
    """A slice as it is stored, by doc_id."""
    constants = {
        "source": source.pinned.name,
        "source_version": source.pinned.version,
        "model": record.model,
        "model_version": record.version,
        "request": record.request,
        "at": lineage.now(),
    }
    for name, value in constants.items():
        found = found.append_column(name, pa.array([value] * found.num_rows, answers.SCHEMA.field(name).type))
    return found.select(answers.SCHEMA.names).cast(answers.SCHEMA).sort_by("doc_id")


def _first_record(
    source: Located, *, settings: ScoreSettings, model: Model, counts: Counts, parent: int
) -> ScoreRecord:
    """The record before the first slice."""
    return ScoreRecord(
        fingerprint=answers.fingerprint(source, settings=settings, model=model),
        inputs=(source.pinned,),
        code=lineage.code_version(),
        created=lineage.now(),
        model=model.name,
        version=model.version,
        weights_sha256=model.weights_sha256,
        prompt=settings.prompt or "",
        request=answers.request_of(settings, model=model),
        rows=counts.rows,
        skipped=counts.skipped,
        found=counts.found,
        remaining=counts.pending,
        table=TableVersion(name="answers", path="tables/answers", version=parent),
    )


def _after(record: ScoreRecord, data: pa.Table, *, version: int, seconds: float) -> ScoreRecord:
    """The record with one more slice answered."""
    finished = dict(record.finished)
    for reason in data["finish_reason"].to_pylist():
        finished[reason] = finished.get(reason, 0) + 1
    return record.model_copy(
        update={
            "answered": record.answered + data.num_rows,
            "remaining": record.remaining - data.num_rows,
            "finished": dict(sorted(finished.items())),
            "prompt_tokens": record.prompt_tokens + sum(filter(None, data["prompt_tokens"].to_pylist())),
            "tokens": record.tokens + sum(data["tokens"].to_pylist()),
            "slices": record.slices + 1,
            "table": record.table.model_copy(update={"version": version}),
            "seconds": round(seconds, 3),
            "created": lineage.now(),
        }
    )


def _publish(publication: Publication, data: pa.Table, *, record: ScoreRecord) -> Publication:
    """Commits one slice, and gives the right to the version after it: never to a newer one, whose rows the pending rows
    were not compared with."""
    failpoints.hit("score.before_commit")
    try:
        publish.commit(publication, data, record=record, stats_columns=answers.STATS_COLUMNS, mode="append")
    except Conflict:
        raise Conflict(
            f"tables/answers: another writer published version {publication.version} first; this slice of "
            f"{data.num_rows} rows was not added, the {record.slices - 1} before it stay. Run score again: it answers "
            "what is still pending"
        ) from None
    failpoints.hit("score.after_slice")
    return replace(publication, parent=publication.version, publish_id=uuid4().hex)
