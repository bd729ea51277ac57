"""What `tessera gc` may take: files that no manifest version names, old checkpoints, spill; and what it must leave."""

import fcntl
import os
import time
from pathlib import Path

import pyarrow as pa
import pytest

from tessera import garbage, publish
from tessera.errors import SourceError
from tessera.home import Home
from tessera.lineage import Record, TableVersion, TokenizerRef, TrainRecord
from tessera.shard.garbage import garbage as of_shards
from tessera.shard.manifest import STATS_COLUMNS
from tessera.tables import Ledger
from tessera.train.garbage import ABANDONED_SECONDS
from tessera.train.garbage import garbage as of_runs
from tessera.train.run import RunFolder, RunResult, RunSpec, to_json
from tessera.train.settings import TrainSettings

DAY = 86_400


def write(path: Path, text: str = "x" * 10, *, days: float = 2) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    age(path, days=days)
    return path


def age(path: Path, *, days: float) -> None:
    for entry in (*path.rglob("*"), path):
        os.utime(entry, times=(time.time() - days * DAY,) * 2)


def names(found: list[garbage.Garbage], home: Home) -> set[str]:
    return {home.relative(one.path) for one in found}


def before() -> float:
    return time.time() - DAY


def publish_manifest(home: Home, *files: str) -> None:
    """The next version of a set's manifest, naming these files."""
    path = home.shards / "docs" / "manifest"
    publication = publish.begin(path, name="shard:docs")
    publish.commit(
        publication, pa.table({"file": list(files)}), record=Record(stage="shard", fingerprint="f"),
        stats_columns="file",
    )  # fmt: skip


def test_a_shard_file_is_kept_while_one_version_names_it(home: Home) -> None:
    assert "file" in STATS_COLUMNS
    for name in ("old", "new", "orphan", "fresh"):
        write(home.shards / "docs" / "train" / f"{name}.mds", days=0 if name == "fresh" else 2)
    write(home.shards / "docs" / "train" / "index.json")
    publish_manifest(home, "train/old.mds")
    publish_manifest(home, "train/new.mds")

    found = list(of_shards(home, before=before()))

    assert names(found, home) == {"shards/docs/train/orphan.mds"}
    assert garbage.remove(found) == 10
    assert {path.name for path in (home.shards / "docs" / "train").iterdir()} == {
        "old.mds", "new.mds", "fresh.mds", "index.json"
    }  # fmt: skip
    assert list(of_shards(home, before=before())) == []


def test_a_version_that_was_vacuumed_keeps_no_file_and_the_newest_must_be_read(home: Home) -> None:
    for name in ("old", "new"):
        write(home.shards / "docs" / "train" / f"{name}.mds")
    publish_manifest(home, "train/old.mds")
    (vacuumed,) = (home.shards / "docs" / "manifest").glob("*.parquet")
    publish_manifest(home, "train/new.mds")
    vacuumed.unlink()

    assert names(list(of_shards(home, before=before())), home) == {"shards/docs/train/old.mds"}
    for left in (home.shards / "docs" / "manifest").glob("*.parquet"):
        left.unlink()
    with pytest.raises(SourceError, match="which its newest version names"):
        list(of_shards(home, before=before()))


def make_run(home: Home, name: str, *, steps: tuple[int, ...], finished: bool, days: float = 2) -> RunFolder:
    folder = RunFolder(home.runs / name)
    for step in steps:
        write(folder.checkpoints / f"step-{step:08d}" / "record.json")
    spec = RunSpec(run=name, fingerprint="f", settings=TrainSettings(), tokenizer="t", block_shards=1)
    write(folder.spec, to_json(spec.model_dump(mode="json")))
    write(folder.lock, "")
    if finished:
        result = RunResult(
            steps=steps[-1], ranks=1, parameters=1, train_tokens=1, bits_per_byte_before=2.0, bits_per_byte_after=1.0,
            checkpoint=f"checkpoints/step-{steps[-1]:08d}", weights_sha256="w", seconds=1.0,
        )  # fmt: skip
        write(folder.record, to_json(result.model_dump(mode="json")))
    age(folder.root, days=days)
    return folder


def record_run(home: Home, checkpoint: str) -> None:
    table = TableVersion(name="docs/manifest", path="shards/docs/manifest", version=0)
    record = TrainRecord(
        fingerprint="f", run="runs/a", run_id="r", shard_set=table, steps=1, train_tokens=1, ranks=1, parameters=1,
        tokenizer=TokenizerRef(path="t", sha256="t", vocab_size=1, end_id=0), bits_per_byte_before=2.0,
        checkpoint=checkpoint, weights_sha256="w",
    )  # fmt: skip
    Ledger(home.ledger).append(record)


def test_the_last_checkpoint_recorded_ones_and_unfinished_runs_stay(home: Home) -> None:
    make_run(home, "finished", steps=(2, 4, 6), finished=True)
    record_run(home, "runs/finished/checkpoints/step-00000004")  # the record of an earlier, shorter run
    make_run(home, "interrupted", steps=(2, 4), finished=False)
    make_run(home, "abandoned", steps=(2,), finished=False, days=ABANDONED_SECONDS / DAY + 2)
    running = make_run(home, "running", steps=(2, 4), finished=True)

    with running.lock.open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = list(of_runs(home, before=before()))

    assert names(found, home) == {"runs/finished/checkpoints/step-00000002", "runs/abandoned"}
    garbage.remove(found)
    assert not (home.runs / "abandoned").exists()
    assert len(list((home.runs / "finished" / "checkpoints").iterdir())) == 2
    assert names(list(of_runs(home, before=before())), home) == {"runs/running/checkpoints/step-00000002"}


@pytest.mark.parametrize("days", [0.0, 2.0])
def test_spill_goes_when_nothing_below_it_is_young(home: Home, days: float) -> None:
    write(home.spill / "warehouse" / "table")
    write(home.spill / "spark-1" / "blocks" / "a")
    age(home.spill, days=2)
    age(write(home.spill / "spark-1" / "blocks" / "b").parent, days=days)

    write(home.cache / "prepare-1" / "0" / "part")
    age(home.cache, days=days)

    found = list(garbage.spill(home, before=before()))

    assert names(found, home) == ({"spark/spark-1", "cache/prepare-1"} if days else set())
    assert [one.num_bytes for one in found] == ([20, 10] if days else [])
    with home.spill_lock.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)  # a session that rests
        assert list(garbage.spill(home, before=before())) == []


def test_only_what_is_gone_counts_as_freed(home: Home) -> None:
    file = write(home.spill / "spark-1" / "a")
    taken = garbage.Garbage("spill", file, "", 10)
    kept = garbage.Garbage("spill", Path("/proc/version"), "", 99)  # nobody can remove that

    assert garbage.remove([taken, kept]) == 10
