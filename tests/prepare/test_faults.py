"""Faults F2 to F5 and F17 of prepare, and source tables that are damaged: the old documents or the new ones, whole.

F1 is in test_documents.py; faults within an increment are in test_increments.py.
"""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable
from pyspark.sql import DataFrame
from tests.prepare.test_documents import make_table, prepare, rows_of, texts
from tests.prepare.test_increments import NEAR, outcome_of

from tessera import garbage, tables
from tessera.errors import SourceError
from tessera.home import Home
from tessera.lineage import PrepareRecord
from tessera.pipeline import Pipeline
from tessera.prepare import documents, sources, stage, table
from tessera.prepare.settings import PrepareSettings
from tessera.settings import Settings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.spark

DAY = 86_400


def contents_of(home: Home) -> list[tuple[str, str]]:
    return sorted((row["doc_id"], row["text"]) for row in tables.read(home.documents).to_pylist())


@pytest.mark.parametrize(
    ("point", "published"),
    [("prepare.before_commit:kill", False), pytest.param("publish.after_commit:kill:2", True, marks=pytest.mark.slow)],
)
def test_f2_f3_a_killed_driver_leaves_the_old_version_or_the_new(
    spark: "SparkSession", home: Home, tmp_path: Path, point: str, published: bool
) -> None:
    given: dict[str, Any] = {"sources": [{"path": str(tmp_path / "t")}], "holdout": 0.2}
    make_table(tmp_path / "t", rows_of(texts(60)))
    pipeline = Pipeline(Settings.model_validate({"prepare": given}), home=home)
    first = pipeline.do("prepare")
    before = contents_of(home)
    make_table(tmp_path / "t", rows_of(texts(80))[60:], mode="append")
    command = [str(Path(sys.executable).with_name("tessera")), "prepare"]
    command += [f"--set=prepare.{name}={json.dumps(value)}" for name, value in given.items()]
    env = {**os.environ, "TESSERA_HOME": str(home.root), "TESSERA_FAIL": point}
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, start_new_session=True) as child:
        said = child.communicate(timeout=200)
        os.killpg(child.pid, signal.SIGKILL) if child.poll() is None else None
    assert child.returncode == -signal.SIGKILL, said

    assert isinstance(first, PrepareRecord)
    assert DeltaTable(home.documents).version() == first.table.version + published
    assert (contents_of(home) == before) is not published
    record = Pipeline(Settings.model_validate({"prepare": given}), home=home).do("prepare")

    assert isinstance(record, PrepareRecord)
    assert record.reused is published
    assert record.table.version == first.table.version + 1, "nothing is added twice"
    other = Home(tmp_path / "other")
    assert outcome_of(home, record) == outcome_of(other, prepare(spark, other, source=given["sources"][0]))


class Once:
    """Raises in the first task that comes by, whichever process it runs in, when it has seen some rows."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            yield batch
            if batch.num_rows and not Path(self.marker).exists():
                Path(self.marker).touch()
                raise OSError("the machine of this task was taken away")

    def within(self, frame: DataFrame) -> DataFrame:
        return frame.mapInArrow(self, frame.schema)


@pytest.mark.parametrize("place", ["read", "write"])
def test_f4_a_task_that_is_tried_again_changes_nothing(
    spark: "SparkSession", home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    make_table(tmp_path / "t", rows_of([*texts(60), *texts(10)]))
    source, other = {"path": str(tmp_path / "t")}, Home(tmp_path / "other")
    clean = prepare(spark, other, source=source)
    fails = Once(tmp_path / "failed")
    from tessera.prepare import read

    module, name = (read, "read_pinned") if place == "read" else (table, "_in_order")
    original: Callable[..., DataFrame] = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *given, **more: fails.within(original(*given, **more)))

    record = prepare(spark, home, source=source)

    assert (tmp_path / "failed").exists()
    assert outcome_of(home, record) == outcome_of(other, clean)
    assert (record.rows, record.dropped, record.splits) == (clean.rows, clean.dropped, clean.splits)
    assert tables.read(home.documents).num_rows == record.documents


def test_f5_what_a_twin_of_a_task_leaves_is_never_read_and_swept(
    spark: "SparkSession", home: Home, tmp_path: Path
) -> None:
    """Spark's twins write files of names of their own; one of each is named by the commit."""
    make_table(tmp_path / "t", rows_of(texts(60)))
    record = prepare(spark, home, source={"path": str(tmp_path / "t")})
    before = contents_of(home)
    named = sorted(home.documents.glob("*.parquet"))
    twin = named[0].with_name(re.sub("-[0-9a-f]{8}-", "-01234567-", named[0].name))
    twin.write_bytes(named[0].read_bytes())
    assert twin not in named

    assert contents_of(home) == before
    assert spark.read.format("delta").load(str(home.documents)).count() == record.documents
    assert list(garbage.of_tables(home, before=time.time() - DAY)) == []
    for file in home.documents.glob("*.parquet"):
        os.utime(file, times=(time.time() - 2 * DAY,) * 2)
    (found,) = garbage.of_tables(home, before=time.time() - DAY)
    assert found.path == twin
    garbage.remove([found])
    assert sorted(home.documents.glob("*.parquet")) == named


def run_with(
    spark: "SparkSession", home: Home, path: Path, *, when: str, change: Callable[[], None], **more: Any
) -> PrepareRecord:
    """Prepares, and changes something when this is told."""
    settings = PrepareSettings.model_validate({"sources": [{"path": str(path)}], "holdout": 0.2, **more})
    resolved = [sources.resolve(one, home=home) for one in settings.sources]

    def tell(text: str, *_: object) -> None:
        if text == when:
            change()

    return documents.write_documents(
        spark, sources=resolved, settings=settings, home=home, tell=tell,
        fingerprint=stage.fingerprint(resolved, settings=settings),
    )  # fmt: skip


@pytest.mark.parametrize("when", ["judging rows", "writing documents"])
def test_f17_a_source_that_is_written_again_during_the_run_changes_nothing(
    spark: "SparkSession", home: Home, tmp_path: Path, when: str
) -> None:
    make_table(tmp_path / "t", rows_of(texts(60)))
    other = Home(tmp_path / "other")
    clean = prepare(spark, other, source={"path": str(tmp_path / "t")})

    record = run_with(spark, home, tmp_path / "t", when=when,
                      change=lambda: make_table(tmp_path / "t", rows_of(texts(30))))  # fmt: skip

    assert DeltaTable(tmp_path / "t").version() == 1
    assert outcome_of(home, record) == outcome_of(other, clean)


@pytest.mark.parametrize("damage", ["vacuumed", "cut short", "no Parquet"])
def test_f17_a_source_that_cannot_be_read_any_more_is_told(
    spark: "SparkSession", home: Home, tmp_path: Path, damage: str
) -> None:
    path = tmp_path / "t"
    make_table(path, rows_of(texts(60)))
    (file,) = path.glob("*.parquet")

    def change() -> None:
        if damage == "vacuumed":
            make_table(path, rows_of(texts(30)))
            file.unlink()
        else:
            file.write_bytes(file.read_bytes()[:900] if damage == "cut short" else b"x" * 900)

    expected = "no longer readable" if damage == "vacuumed" else f"{file.name}.* is no whole Parquet file"
    with pytest.raises(SourceError, match=expected):
        run_with(spark, home, path, when="judging rows", change=change)

    assert not tables.exists(home.documents)
    assert list(home.cache.glob("prepare-*")) == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_document_of_200_mb_goes_through_whole(home: Home, tmp_path: Path) -> None:
    """By the command, with the memory that it takes by default."""
    words = [word for word in Path(json.__file__).read_text(encoding="utf-8").split() if "@" not in word]
    lines = (f"{' '.join(words[number % 500 : number % 500 + 60])} {number}" for number in range(500_000))
    text = "\n".join(lines)[: 200 * 2**20] + "\nwrite to jan.kowalski@example.org"
    assert len(text) > 190 * 2**20
    make_table(tmp_path / "t", rows_of([*texts(60), text]))
    given = {"sources": [{"path": str(tmp_path / "t")}], "holdout": 0.2, "private": {"email": "mask"}, **NEAR}
    command = [str(Path(sys.executable).with_name("tessera")), "prepare"]
    command += [f"--set=prepare.{name}={json.dumps(value)}" for name, value in given.items()]

    done = subprocess.run(
        command, env={**os.environ, "TESSERA_HOME": str(home.root)}, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr[-2000:]
    (largest,) = tables.query(
        home.documents, version=0, sql="SELECT text, sha256 FROM rows ORDER BY num_bytes DESC LIMIT 1"
    ).to_pylist()
    assert largest["text"] == text.replace("jan.kowalski@example.org", "<EMAIL>")
    assert hashlib.sha256(largest["text"].encode()).hexdigest() == largest["sha256"]
    assert list(home.root.rglob("prepare-*/*")) == []
