"""Homes of earlier formats: they open, are read, are gone on from, and lose nothing; those of later ones are refused.

`golden/format-1/home.tar.gz` was written by the released code of its time (see make.py beside it): two versions of
documents and set, a run of two steps, and the ledger.
"""

import hashlib
import json
import os
import tarfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tessera import garbage, lineage, publish, tables
from tessera.errors import FormatError
from tessera.home import Home
from tessera.lineage import KINDS, PrepareRecord, ShardRecord, TableVersion, TrainRecord
from tessera.pipeline import Pipeline
from tessera.results import Results
from tessera.settings import load_settings
from tessera.shard import artefact, manifest, stage, tokenizer
from tessera.shard.garbage import garbage as of_shards
from tessera.shard.read.batches import open_split
from tessera.shard.run_manifest import index_path
from tessera.train import checkpoint
from tessera.train.run import RunFolder

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

GOLDEN = Path(__file__).parent / "golden"
ASSIGNMENTS = (
    "prepare.sources=[{table: notes}]", "prepare.holdout=0.2", "prepare.min_chars=1", "shard.name=docs",
    "shard.seq_len=32", "shard.shard_bytes=65536", "shard.bucket_bytes=4096", "shard.tokenizer.vocab_size=300",
    "shard.tokenizer.sample_bytes=4096",
)  # fmt: skip
"""What the home was made with: see make.py."""


@pytest.fixture
def old(home: Home) -> Home:
    with tarfile.open(GOLDEN / "format-1" / "home.tar.gz") as tar:
        tar.extractall(home.root, filter="data")
    return home


def record_of(home: Home, version: int | None = None) -> ShardRecord:
    return manifest.read_record(home, name="docs", version=version)


def set_files(home: Home) -> dict[str, str]:
    """Of all versions, as they lie there."""
    folder = manifest.set_folder(home, name="docs")
    return {str(file.relative_to(folder)): lineage.sha256_file(file) for file in folder.glob("*/*.mds")}


def run_of(home: Home) -> RunFolder:
    (folder,) = home.runs.iterdir()
    return RunFolder(folder)


def test_every_record_of_the_old_home_is_read_and_what_it_names_holds(old: Home) -> None:
    rows = tables.Ledger(old.ledger).rows()

    assert [row["stage"] for row in rows] == ["prepare", "shard", "prepare", "shard", "train"]
    records = [KINDS[row["stage"]].from_json(row["record"]) for row in rows]
    assert {record.format for record in records} == {1}
    shards = [record for record in records if isinstance(record, ShardRecord)]
    assert [record_of(old, version) for version in (0, 1)] == [
        record.model_copy(update={"seconds": record_of(old, record.manifest.version).seconds}) for record in shards
    ]
    assert all(stage.verify(record, home=old) for record in shards)
    results = Results(old)
    train = results.newest(TrainRecord)
    assert results.shard_of(train).manifest.version == 1
    assert results.prepare_of(results.shard_of(train)).documents == 36
    results.repair(lambda text: pytest.fail(f"nothing of the old home is missing: {text}"))
    found = artefact.find_pinned(old, settings=load_settings("local", assignments=ASSIGNMENTS).shard)
    assert found is not None
    assert found.ref == shards[0].tokenizer


@pytest.mark.parametrize("version", [0, 1])
def test_a_set_of_the_old_home_gives_a_run_its_manifest_and_every_document(old: Home, version: int) -> None:
    record = record_of(old, version)
    manifest.write_run_manifest(manifest.read_manifest(old, "docs", version), old.root / "shards.arrow")
    loaded = tokenizer.load(old.resolve(record.tokenizer.path))
    documents = tables.read(old.documents, version=record.inputs[0].version).to_pylist()
    for split, total in record.splits.items():
        shards = open_split(old.root / "shards.arrow", split=split, shards_root=old.shards / "docs")
        number = np.repeat(np.arange(len(shards.files)), shards.samples_per_shard)
        place = np.concatenate([np.arange(samples) for samples in shards.samples_per_shard])
        tokens = shards.gather(number, place).tokens_BT
        texts = [row["text"] for row in documents if row["split"] == split]
        wanted = np.sort(np.concatenate([[*ids, loaded.end_id] for ids in loaded.encode_batch(texts)]))
        padding = np.full(total.padding, loaded.end_id)
        assert np.array_equal(np.sort(tokens.ravel()), np.sort(np.concatenate([wanted, padding])))


def test_the_run_and_its_checkpoint_of_the_old_home_are_read(old: Home) -> None:
    run = run_of(old)
    spec, result = run.read_spec(), run.read_result()

    assert result is not None
    assert (spec.format, result.format, result.steps) == (1, 1, 2)
    kept = json.loads(run.spec.read_text())["settings"]
    methods = spec.settings.model_dump()["methods"]
    assert {key: methods["wsd"][key] for key in kept["schedule"]} == kept["schedule"]
    assert (methods["muon"]["lr"], methods["muon"]["momentum"], methods["clipping"]["norm"]) == tuple(
        kept["optimizer"][key] for key in ("matrix_lr", "momentum", "clip_norm")
    )
    opened = checkpoint.open_checkpoint(run.root / result.checkpoint)
    assert opened.weights_sha256 == result.weights_sha256
    assert open_split(run.manifest, split="train", shards_root=old.shards / "docs").num_tokens > 0


def test_gc_of_the_old_home_finds_nothing(old: Home) -> None:
    for file in old.root.rglob("*"):
        os.utime(file, times=(1, 1))
    before = time.time()

    assert list(of_shards(old, before=before)) == []
    assert list(garbage.of_tables(old, before=before)) == []


@pytest.mark.spark
def test_the_old_home_is_gone_on_from(old: Home, spark: "SparkSession") -> None:
    """The line as users run it: more rows, then prepare and shard by the code of today, on top of what lies there."""
    before = set_files(old)
    kept = {file: (old.shards / "docs" / file).stat().st_ino for file in before}
    first, second = record_of(old, 0), record_of(old, 1)
    add_notes(old, range(40, 60))
    pipeline = Pipeline(load_settings("local", assignments=ASSIGNMENTS), home=old)
    pipeline.spark = lambda: spark  # type: ignore[method-assign]

    prepared = pipeline.do("prepare")
    record = pipeline.do("shard")

    assert isinstance(prepared, PrepareRecord)
    assert isinstance(record, ShardRecord)
    assert (prepared.documents, record.manifest.version, record.format) == (56, 2, lineage.FORMAT)
    assert record.tokenizer == second.tokenizer
    after = set_files(old)
    assert before.items() <= after.items(), "cells of the old home are written to the very same names"
    assert kept == {file: (old.shards / "docs" / file).stat().st_ino for file in before}
    names = {version: set(manifest.read_manifest(old, "docs", version)["file"].to_pylist()) for version in range(3)}
    assert names[0] < names[1] < names[2]
    assert {name.split("/")[1][:6] for name in names[2] - names[1]} == {"000002"}
    assert all(stage.verify(one, home=old) for one in (first, second, record))
    again = Pipeline(load_settings("local", assignments=ASSIGNMENTS), home=old)
    assert again.do("shard").reused


def add_notes(home: Home, numbers: range) -> None:
    import pyarrow as pa
    from deltalake import write_deltalake

    rows = [{"id": f"note-{number}", "text": f"{number} " + "a new row " * (number % 9 + 3)} for number in numbers]
    write_deltalake(home.tables / "notes", pa.Table.from_pylist(rows), mode="append")


def newer(path: Path, change: Any) -> Path:
    """A JSON file as a later Tessera would have written it."""
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def bump(content: dict[str, Any]) -> None:
    content["format"] = content["format"] + 98


def test_what_a_newer_tessera_wrote_is_refused_by_name(old: Home) -> None:
    run = run_of(old)
    result = run.read_result()
    assert result is not None
    saved = run.root / result.checkpoint
    pinned = record_of(old).tokenizer
    settings = load_settings("local", assignments=ASSIGNMENTS).shard
    refusals = {
        newer(run.spec, bump): run.read_spec,
        newer(run.record, bump): run.read_result,
        newer(saved / "record.json", bump): lambda: checkpoint.newest(run.checkpoints, notice=pytest.fail),
        newer(old.resolve(pinned.path) / "record.json", bump): lambda: artefact.find_pinned(old, settings=settings),
    }

    for path, read in refusals.items():
        with pytest.raises(FormatError, match=r"has format 99, .* written by a newer Tessera") as caught:
            read()
        assert str(path.parent) in str(caught.value), "the error names what it refuses"


def test_a_runs_manifest_of_a_newer_tessera_is_refused_by_name(old: Home) -> None:
    run = run_of(old)

    def reindex(content: dict[str, Any]) -> None:
        bump(content["index"])
        content["index_sha256"] = lineage.sha256_json(content["index"])

    newer(index_path(run.manifest), reindex)
    with pytest.raises(FormatError, match=r"shards\.json has format 99, .* newer Tessera"):
        open_split(run.manifest, split="train", shards_root=old.shards / "docs")


def test_a_set_published_by_a_newer_tessera_is_refused_and_not_written_to(old: Home) -> None:
    path = manifest.manifest_path(old, name="docs")
    rows = tables.read(path)
    later = record_of(old).model_copy(
        update={"format": lineage.FORMAT + 1, "manifest": TableVersion(name="m", path="m", version=2)}
    )
    with pytest.raises(FormatError):
        publish.commit(publish.begin(path, name="shards/docs"), rows, record=later, stats_columns="file")

    for refused in (lambda: record_of(old), lambda: publish.begin(path, name="shards/docs"),
                    lambda: Results(old).repair(pytest.fail), lambda: list(of_shards(old, before=0))):  # fmt: skip
        with pytest.raises(FormatError, match=r"docs/manifest version 2 has format \d+, .* written by a newer Tessera"):
            refused()
    assert record_of(old, 1).manifest.version == 1, "versions from before are read as ever"


def test_the_golden_home_is_small_and_has_not_changed() -> None:
    data = (GOLDEN / "format-1" / "home.tar.gz").read_bytes()

    assert len(data) < 150_000
    assert hashlib.sha256(data).hexdigest() == "17c0b2d59fa34f8e7faec001f4168ae2c670b239ebf7b39264f217a535b1437a"
