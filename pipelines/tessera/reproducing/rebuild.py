"""Makes each result of the line again in a home of its own, and holds it against what is recorded.

Rooms do the work, as they do it for the line. Documents, as a set, are compared by Spark; of all else hashes are.
"""

import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from typing import TYPE_CHECKING, Any, Literal

from tessera import audit, erasures, lineage, publish, tables, tracking
from tessera.home import Home
from tessera.lineage import ShardRecord
from tessera.progress import Tell
from tessera.reproducing.record import Judging, NotAsked, Recorded, environment, num_erased, why_gone
from tessera.settings import Settings
from tessera.shard import artefact, manifest
from tessera.shard.settings import ShardSettings
from tessera.shard.stage import NOT_COMPACTED
from tessera.tracking import TrackingSettings
from tessera.train import run as runs
from tessera.train.run import RunFolder
from tessera.train.settings import TrainSettings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

DOCUMENT_COLUMNS = ("doc_id", "source", "kind", "sha256", "group", "split")
"""Of a document, all that sources and settings decide, its text as a hash."""
AS_BEFORE = ("threads", "micro_batch", "compile", "device", "parallel")
"""Of a checkpoint's environment: what a run can be asked for."""
CODE = "code"
"""Of the same: recorded, never compared."""
MLFLOW_SECONDS = 600.0
"""How long the end of the rebuilt run waits for its own MLflow store, which is removed with it."""

Verdict = Literal["same", "differs", "not comparable"]


@dataclass(frozen=True)
class Compared:
    """One kind of result: as recorded, and as it came out now."""

    what: str
    """`documents`, `tokenizer`, `shards` or `weights`."""
    verdict: Verdict
    detail: str
    """Counts, versions and hashes; or why it cannot be compared."""
    recorded: str = ""
    """Its hash in the record; of shards, over the names and hashes of all files."""
    rebuilt: str = ""


@dataclass(frozen=True)
class Work:
    """One rebuild: of what, with what, and where."""

    home: Home
    rebuilt: Home
    recorded: Recorded
    settings: Settings
    """Today's: how the work is carried out."""
    spark: "SparkSession"
    tell: Tell


def compare_documents(work: Work, asked: Judging | NotAsked) -> Compared:
    """Judges all rows of the sources; the text that this wrote is removed at once."""
    if isinstance(asked, NotAsked):
        return Compared("documents", "not comparable", asked.why)
    from tessera.prepare.documents import write_documents
    from tessera.spark_tables import at_version

    record = work.recorded.prepare
    if tables.exists(erasures.path(work.home)):
        shutil.copytree(erasures.path(work.home), erasures.path(work.rebuilt))
    made = write_documents(
        work.spark, sources=asked.sources, settings=asked.settings, fingerprint=record.fingerprint, home=work.rebuilt,
        partitions=work.settings.spark.partitions, tell=work.tell,
    )  # fmt: skip
    audit.append(
        work.home, stage="reproduce", inputs=record.inputs, rows=made.rows, purpose=asked.settings.purpose,
        output=record.table, fingerprint=record.fingerprint,
    )  # fmt: skip
    work.tell("comparing documents")
    kept, again = (
        at_version(work.spark, home.resolve(one.table.path), version=one.table.version)
        for home, one in ((work.home, record), (work.rebuilt, made))
    )
    columns = [name for name in DOCUMENT_COLUMNS if name in kept.columns]
    kept, again = kept.select(*columns), again.select(*columns)
    lacking, added = kept.exceptAll(again).count(), again.exceptAll(kept).count()
    shutil.rmtree(work.rebuilt.documents)
    if lacking == added == 0:
        read = ", ".join(f"{table.name}@{table.version}" for table in record.inputs)
        return Compared("documents", "same", f"{record.documents:,} of {read}")
    counts = f"of {record.documents:,} documents {lacking:,} did not come again, {added:,} are new or other"
    if not asked.as_recorded:
        return Compared("documents", "not comparable", f"{counts}; they were not made by the settings of the run")
    return Compared("documents", "differs", counts)


def compare_tokenizer(work: Work) -> Compared:
    """Trains the set's tokenizer again, where the set trained it."""
    shards = work.recorded.shards
    kept = shards.tokenizer.sha256
    if not shards.settings["tokenizer"]:
        return Compared("tokenizer", "same", f"{kept[:12]}, as it was given", recorded=kept, rebuilt=kept)
    settings = ShardSettings.model_validate(shards.settings)
    pinned = artefact.find_pinned(work.home, settings=settings)
    trained_by = pinned.trained_by if pinned else ""
    path = manifest.manifest_path(work.home, name=shards.name)
    first = next((one for one in publish.records(path) if one.get("fingerprint") == trained_by), None)
    if first is None:
        return Compared("tokenizer", "not comparable", "which documents trained it is not recorded", recorded=kept)
    (documents,) = ShardRecord.model_validate(first).inputs
    named = f"{documents.path}@{documents.version}, which trained it,"
    if why_gone(work.home.resolve(documents.path), version=documents.version):
        return Compared("tokenizer", "not comparable", f"{named} is gone", recorded=kept)
    if num_erased(work.home, documents):
        return Compared("tokenizer", "not comparable", f"{named} holds rows that were erased since", recorded=kept)
    from tessera.shard.write import tokenizers, totals
    from tessera.spark_tables import at_version

    work.tell("training the tokenizer")
    table = at_version(work.spark, work.home.resolve(documents.path), version=documents.version)
    groups = totals.count(work.home, documents)
    made = tokenizers.of_set(table, groups=groups, settings=settings, fingerprint=trained_by, home=work.rebuilt).sha256
    if made == kept:
        trained_on = f"trained on {documents.name}@{documents.version}"
        return Compared("tokenizer", "same", f"{kept[:12]}, {trained_on}", recorded=kept, rebuilt=made)
    return Compared("tokenizer", "differs", f"{kept[:12]} recorded, {made[:12]} now", recorded=kept, rebuilt=made)


def compare_shards(work: Work) -> tuple[ShardRecord, Compared]:
    """Writes the whole set from the recorded documents version, with the tokenizer that was kept."""
    from tessera.shard.write.shard_set import write_shards

    record, home = work.recorded.shards, work.home
    settings = ShardSettings.model_validate(record.settings)
    folder = str(home.resolve(record.tokenizer.path))
    settings = settings.model_copy(
        update={"tokenizer": settings.tokenizer.model_copy(update={"path": folder}), "mode": "sharded"}
    )
    (documents,) = record.inputs
    made = write_shards(
        work.spark,
        documents=documents.model_copy(update={"path": str(home.resolve(documents.path))}),
        settings=settings,
        fingerprint=record.fingerprint,
        home=work.rebuilt,
        generations=work.recorded.prepare.generations,
        compacted=max((one for one in record.compactions if one <= documents.version), default=NOT_COMPACTED),
        partitions=work.settings.spark.partitions,
        progress=work.tell,
    )
    kept, again = _files(home, record), _files(work.rebuilt, made)
    hashes = {"recorded": lineage.sha256_json(sorted(kept)), "rebuilt": lineage.sha256_json(sorted(again))}
    named = f"{record.name}@{record.manifest.version}"
    if kept == again:
        return made, Compared("shards", "same", f"{len(kept):,} files of {named}", **hashes)
    other = f"{len(kept - again):,} of {len(kept):,} files of {named} are other, such as {min(kept ^ again)[0]}"
    return made, Compared("shards", "differs", other, **hashes)


def _files(home: Home, record: ShardRecord) -> set[tuple[str, str]]:
    """Name and SHA-256 of each file of a set's version."""
    rows = manifest.read_manifest(home, record.name, record.manifest.version)
    return set(zip(rows["file"].to_pylist(), rows["sha256"].to_pylist(), strict=True))


def compare_weights(work: Work, made: ShardRecord, *, shards: Compared) -> Compared:
    """Trains on the rebuilt shards, where that can give the same weights."""
    train = work.recorded.train
    kept = train.weights_sha256
    if reason := _why_not_trained(work, shards=shards):
        return Compared("weights", "not comparable", reason, recorded=kept)
    from tessera.train.launch import Lineage
    from tessera.train.launch import train as launch

    store = TrackingSettings(flush_seconds=MLFLOW_SECONDS)
    tracking.prepare_store(store, home=work.rebuilt)
    again = launch(
        work.spark, shards=made, settings=_train_settings(work), block_shards=work.recorded.spec.block_shards,
        fingerprint=train.fingerprint, home=work.rebuilt, tracking=store, lineage=Lineage(), fresh=True, tell=work.tell,
    )  # fmt: skip
    hashes = {"recorded": kept, "rebuilt": again.weights_sha256}
    if again.weights_sha256 == kept:
        return Compared("weights", "same", f"{kept[:12]} after {train.steps:,} steps", **hashes)
    now = environment(work.rebuilt.resolve(again.checkpoint))
    if reason := _why_other_weights(work, now=now):
        return Compared("weights", "not comparable", reason, **hashes)
    return Compared("weights", "differs", f"{kept[:12]} recorded, {again.weights_sha256[:12]} now", **hashes)


def _train_settings(work: Work) -> TrainSettings:
    """What decides the weights as recorded, the last bits of sums too; how else it is carried out as today."""
    recorded, environment = work.recorded.spec.settings, work.recorded.environment
    decided = {name: getattr(recorded, name) for name in recorded.identity()}
    return work.settings.train.model_copy(update={**decided, **{name: environment[name] for name in AS_BEFORE}})


def _why_not_trained(work: Work, *, shards: Compared) -> str:
    """Why training cannot give the same weights; empty where it can."""
    before = work.recorded.environment
    if shards.verdict != "same":
        return "the shards are other ones"
    if (origin := work.recorded.spec.origin) is not None:
        return f"its run went on from {origin.given}, and only a run from the start is trained anew"
    if not {*AS_BEFORE, "ranks"} <= before.keys():
        return f"{work.recorded.train.checkpoint} is gone, which says on what it was trained"
    now = {
        "ranks": work.settings.train.ranks,
        "torch": installed_version("torch"),
        "transformers": installed_version("transformers"),
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    return _differences(before, now)


def _why_other_weights(work: Work, *, now: Mapping[str, Any]) -> str:
    """Why weights may rightly be other; empty where nothing of that kind is known."""
    recorded = work.recorded
    folder = RunFolder(work.home.resolve(recorded.train.run))
    if found := _differences(recorded.environment, now):
        return found
    if folder.read_attempt() > 1:
        return "the run was resumed, maybe on another machine"
    if (result := folder.read_result()) is not None and result.skipped:
        return "batches were skipped for spikes: how far a run then goes back hangs on when it saved"
    again = runs.fingerprint(recorded.spec.settings, shards=recorded.shards, block_shards=recorded.spec.block_shards)
    return "" if again == recorded.train.fingerprint else "this Tessera's settings of training have another meaning"


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """`torch 2.14.0 -> 2.15.0`; of versions, what comes behind a + does not count."""
    plain = {key: tuple(str(one.get(key)).split("+")[0] for one in (before, now)) for key in now if key != CODE}
    return ", ".join(f"{key} {was} -> {is_now}" for key, (was, is_now) in plain.items() if was != is_now)
