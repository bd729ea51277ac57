"""Rows seen: what one Spark job says of a run equals what its batches hold, counted one by one."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.shard.history import History, row_of, texts_of, write_set
from tests.shard.test_increments import SETTINGS

from tessera import erasures, publish, tables
from tessera.home import Home
from tessera.lineage import ShardRecord, TrainRecord
from tessera.shard.manifest import read_manifest
from tessera.shard.read.order import Order
from tessera.shard.run_manifest import write_run_manifest
from tessera.train import rows_seen, seen
from tessera.train.forget import runs_that_saw
from tessera.train.run import Origin, RunFolder, RunPoint, RunResult, RunSpec, to_json
from tessera.train.settings import TrainSettings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.spark
BATCH, SEED = 4, 5


def run_of(
    home: Home, shards: ShardRecord, *, name: str, steps: int, skipped: tuple[int, ...] = (), **spec_of: Any
) -> TrainRecord:
    """A run folder of a finished run, and its record: all that the order needs."""
    folder = RunFolder(home.runs / name)
    folder.root.mkdir(parents=True)
    settings = TrainSettings(batch_size=BATCH, seed=SEED)
    spec = RunSpec(run=name, fingerprint=name, settings=settings, tokenizer="t", block_shards=2, **spec_of)
    folder.spec.write_text(to_json(spec.model_dump(mode="json")))
    write_run_manifest(read_manifest(home, shards.name, shards.manifest.version), folder.manifest)
    folder.metrics.write_text(f'{{"step": {steps}}}\n')
    result = RunResult(
        steps=steps, ranks=1, parameters=1, train_tokens=1, bits_per_byte_before=1.0, bits_per_byte_after=1.0,
        checkpoint="c", weights_sha256="w", seconds=1.0, skipped=skipped,
    )  # fmt: skip
    folder.record.write_text(to_json(result.model_dump(mode="json")))
    return TrainRecord(
        fingerprint=name, run=home.relative(folder.root), run_id=f"mlflow-{name}", shard_set=shards.manifest,
        tokenizer=shards.tokenizer, steps=steps, train_tokens=1, ranks=1, parameters=1, bits_per_byte_before=1.0,
        checkpoint="c", weights_sha256="w",
    )  # fmt: skip


def counted(
    home: Home, shards: ShardRecord, *, steps: int, skipped: tuple[int, ...] = ()
) -> dict[str, tuple[int, int]]:
    """doc_id -> times and first step, by going through every batch."""
    files = [row for row in read_manifest(home, "docs").to_pylist() if row["split"] == "train"]
    order = Order([row["samples"] for row in files], seed=SEED, block_shards=2)
    held: dict[tuple[str, int], set[str]] = {}
    for row in tables.read(home.resolve(shards.spans.path), version=shards.spans.version).to_pylist():
        held.setdefault((row["file"], row["sample"]), set()).add(row["doc_id"])
    times: Counter[str] = Counter()
    first: dict[str, int] = {}
    batches = [number for number in range(steps + len(skipped)) if number not in skipped]
    for step, batch in enumerate(batches):
        shard, sample = order.part(batch, batch_size=BATCH, rank=0, world_size=1)
        for number, place in zip(shard.tolist(), sample.tolist(), strict=True):
            for doc_id in held[files[number]["file"], place]:
                times[doc_id] += 1
                first.setdefault(doc_id, step + 1)
    return {doc_id: (times[doc_id], first[doc_id]) for doc_id in times}


def test_rows_seen_are_what_the_batches_hold(spark: "SparkSession", home: Home) -> None:
    shards = write_set(spark, home, History(home).write(texts_of(range(60))), settings=SETTINGS)
    samples = sum(row["samples"] for row in read_manifest(home, "docs").to_pylist() if row["split"] == "train")
    cases = {"few": 2, "one epoch": -(-samples // BATCH), "several": 3 * samples // BATCH + 1}
    assert cases["few"] * BATCH < samples < cases["several"] * BATCH

    skips = {"skipping": (0, 2, 3, samples // BATCH + 2)}
    cases["skipping"] = 2 * samples // BATCH
    cases["branch"] = cases["skipping"] + 3
    point = RunPoint(run="skipping", step=3, batch=6)
    branch = Origin(given="skipping@3", folder="c", weights={}, point=point)
    skips["branch"] = (0, 2, 3)
    for name, steps in cases.items():
        skipped = skips.get(name, ())
        train = run_of(
            home, shards, name=name, steps=steps, skipped=skipped, origin=branch if name == "branch" else None
        )
        rows_seen.write(spark, train=train, shards=shards, home=home)

        rows = [row for row in tables.read(seen.path(home)).to_pylist() if row["run"] == name]
        expected = counted(home, shards, steps=steps, skipped=skipped)
        assert {row["doc_id"]: (row["times"], row["first_step"]) for row in rows} == expected
        assert {(row["run_id"], row["shard_set"]) for row in rows} == {(f"mlflow-{name}", "docs@0")}
        assert rows_seen.write(spark, train=train, shards=shards, home=home) is None, "it is there"
    assert {row["run"] for row in tables.read(seen.path(home)).to_pylist()} == set(cases)
    assert [record["run"] for record in publish.records(seen.path(home))] == list(reversed(cases))


def test_by_rows_says_what_forget_says(spark: "SparkSession", home: Home, tmp_path: Path) -> None:
    shards = write_set(spark, home, History(home).write(texts_of(range(60))), settings=SETTINGS)
    for name, steps, skipped in (("a", 3, ()), ("b", 40, ()), ("c", 9, (1, 2))):
        train = run_of(home, shards, name=name, steps=steps, skipped=skipped)
        rows_seen.write(spark, train=train, shards=shards, home=home)
    doc_ids = [str(row_of(key, "")["doc_id"]) for key in range(0, 60, 7)]

    found = {
        (row["doc_id"], row["run"]): (row["times"], row["first_step"]) for row in seen.by_rows(home, doc_ids=doc_ids)
    }

    told = runs_that_saw(home, erased=erasures.make([(doc_id, None) for doc_id in doc_ids]))
    assert found == {(row.doc_id, one.run): (row.times, row.first_step) for one in told for row in one.rows}
    assert len(found) > len(doc_ids)
    assert seen.by_rows(home, doc_ids=["0" * 64]) == []
    assert seen.by_rows(Home(tmp_path / "none"), doc_ids=doc_ids) == []
