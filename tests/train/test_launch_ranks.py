"""TorchDistributor for real: ranks that fail, are resumed, finish, and are found again."""

import json
import sqlite3

import pytest
from tests.train.conftest import TINY

from tessera import publish, tables
from tessera.errors import TrainingFailed
from tessera.lineage import ShardRecord, TableVersion, TokenizerRef
from tessera.shard.manifest import STATS_COLUMNS, manifest_path
from tessera.shard.run_manifest import SetInfo, read_run_manifest
from tessera.tracking import TrackingSettings
from tessera.train import run as runs
from tessera.train.settings import TrainSettings

SOURCES = (TableVersion(name="python_docs", path="tables/python_docs", version=0),)


@pytest.fixture
def published(set_home) -> ShardRecord:
    """The small set, with the manifest that `tessera shard` publishes."""
    table = read_run_manifest(set_home.root / "shards.arrow")
    info = SetInfo.from_metadata(table.schema.metadata)
    path = manifest_path(set_home, name=info.name)
    pinned = TableVersion(name="small/manifest", path=set_home.relative(path), version=0)
    record = ShardRecord(
        fingerprint="a" * 64, name=info.name, manifest=pinned, spans=pinned, seq_len=info.seq_len, tokens=1, shards=1,
        splits={}, fill=1.0, inputs=(TableVersion(name="documents", path="tables/documents", version=0),),
        tokenizer=TokenizerRef(
            path="tokenizers/small", sha256=info.tokenizer, vocab_size=info.vocab_size, end_id=info.end_id
        ),
    )  # fmt: skip
    if not tables.exists(path):
        publication = publish.begin(path, name="shard:small")
        publish.commit(publication, table.replace_schema_metadata(None), record=record, stats_columns=STATS_COLUMNS)
    return record


@pytest.mark.spark
@pytest.mark.distributed
def test_a_failed_run_says_why_and_the_next_command_finishes_it(spark, published, set_home, monkeypatch, capfd):
    from tessera.train.launch import Lineage, train

    settings = TrainSettings.model_validate(TINY)
    fingerprint = runs.fingerprint(settings, shards=published, block_shards=2)
    heard: list[str] = []

    def launch():
        return train(
            spark, shards=published, settings=settings, block_shards=2, fingerprint=fingerprint, home=set_home,
            tracking=TrackingSettings(), lineage=Lineage(config={"train": TINY}, sources=SOURCES), fresh=False,
            tell=lambda text, done=None, total=None: heard.append(text),
        )  # fmt: skip

    monkeypatch.setenv("TESSERA_FAIL", "train.after_step:raise:3")
    with pytest.raises(TrainingFailed, match=r"run small-\w+: rank [01] failed: InjectedFault"):
        launch()
    monkeypatch.delenv("TESSERA_FAIL")
    record = launch()

    assert "resumed after step 2" in heard
    assert any("loss" in text and "tok/s" in text for text in heard)
    assert (record.steps, record.ranks) == (6, 2)
    assert runs.verify(record, home=set_home)
    folder = runs.RunFolder(set_home.resolve(record.run))
    assert folder.read_attempt() == 2
    captured = capfd.readouterr()
    assert "torchrun" not in captured.out + captured.err
    assert "local training with" not in captured.err

    with sqlite3.connect(set_home.mlflow_database) as database:
        steps = database.execute(
            "select step from metrics where key = 'loss' and run_uuid = ? order by step", [record.run_id]
        ).fetchall()
        tags = dict(database.execute("select key, value from tags where run_uuid = ?", [record.run_id]).fetchall())
        status = database.execute("select status from runs").fetchall()
    assert steps == [(1,), (2,), (3,), (4,), (5,), (6,)]
    assert tags["tessera.table.python_docs"] == "tables/python_docs@0"
    assert tags["tessera.weights_sha256"] == record.weights_sha256
    assert status == [("FINISHED",)]

    before = json.loads(folder.record.read_text())
    again = launch()  # finished: no rank is started
    assert again.weights_sha256 == record.weights_sha256
    assert again.run_id == record.run_id
    assert json.loads(folder.record.read_text()) == before
