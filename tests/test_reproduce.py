"""A model of a small line, increment included, is rebuilt from its record; what is gone, or other, is said."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from rich.console import Console

from tessera import audit, erasures, garbage, tables
from tessera.errors import ModelError, ReproductionFailed, SourceError, UserError
from tessera.failpoints import InjectedFault
from tessera.home import Home
from tessera.lineage import ShardRecord, TrainRecord
from tessera.pipeline import Pipeline
from tessera.reproducing import record, report
from tessera.reproducing.reproduce import FOLDER, Reproduced, refuse_differences
from tessera.results import Results
from tessera.settings import load_settings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = [pytest.mark.spark, pytest.mark.distributed, pytest.mark.timeout(900)]

TESSERA = Path(sys.executable).with_name("tessera")
CANARY = "zq-canary-{:04d}-vermilion-ocelot"
SMALL = (
    "prepare.report={page: false}",
    "shard.seq_len=64", "shard.tokenizer.vocab_size=300", "shard.tokenizer.sample_bytes=20000",
    "train.steps=4", "train.batch_size=4", "train.heldout.sequences=4",
    "train.model={layers: 1, width: 32, heads: 2, kv_heads: 2, ffn_width: 64}",
    "evaluate.gate={max_bits_per_byte: 99.0, beat: []}", "serve.model_name=private", "serve.max_tokens=2",
)  # fmt: skip


@dataclass(frozen=True)
class Line:
    """A home with models:/private/1, of documents that came by two prepares of the table."""

    home: Home
    table: Path

    @property
    def assignments(self) -> tuple[str, ...]:
        return (*SMALL, f"prepare.sources=[{{path: {self.table}, id: number, text: body}}]")

    def pipeline(self, *more: str) -> Pipeline:
        return Pipeline(load_settings("local", assignments=(*self.assignments, *more)), home=self.home)

    def reproduce(self, *more: str, from_documents: bool = False) -> Reproduced:
        return self.pipeline(*more).reproduce("models:/private/1", from_documents=from_documents)

    def cli(self) -> "subprocess.CompletedProcess[str]":
        sets = [part for assignment in self.assignments for part in ("--set", assignment)]
        return subprocess.run(
            [str(TESSERA), "reproduce", "models:/private/1", "--json", *sets],
            env={**os.environ, "TESSERA_HOME": str(self.home.root)},
            capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=280,
        )  # fmt: skip

    def files(self) -> set[str]:
        return {str(path.relative_to(self.home.root)) for path in self.home.root.rglob("*") if path.is_file()}


def rows(first: int, last: int) -> pa.Table:
    """Each of other words, with a canary."""
    texts = {i: " ".join(f"word{i * j % 97}" for j in range(60)) for i in range(first, last)}
    return pa.Table.from_pylist([{"number": i, "body": f"{text} {CANARY.format(i)}"} for i, text in texts.items()])


@pytest.fixture(scope="module")
def line(spark: "SparkSession", tmp_path_factory: pytest.TempPathFactory) -> Line:
    folder = tmp_path_factory.mktemp("reproduce")
    made = Line(Home(folder / "home"), folder / "memos")
    write_deltalake(made.table, rows(0, 150))
    for stage in ("prepare", "shard"):
        made.pipeline().do(stage)
    write_deltalake(made.table, rows(150, 200), mode="append")
    DeltaTable(made.table).delete("number % 10 = 3")
    made.pipeline().run()
    return made


@pytest.fixture
def copy(line: Line, tmp_path: Path) -> Line:
    """The same, for tests that change something in it."""
    shutil.copytree(line.home.root, tmp_path / "home")
    return Line(Home(tmp_path / "home"), line.table)


def newest(home: Home, kind: type[ShardRecord] | type[TrainRecord]) -> ShardRecord | TrainRecord:
    return Results(home).newest(kind)


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **values}), encoding="utf-8")


def test_a_model_of_an_increment_comes_out_of_its_record_again(line: Line) -> None:
    shards, train = newest(line.home, ShardRecord), newest(line.home, TrainRecord)
    before = line.files()

    done = line.cli()

    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    compared = {one["what"]: one for one in told["compared"]}
    assert {what: one["verdict"] for what, one in compared.items()} == dict.fromkeys(
        ("documents", "tokenizer", "shards", "weights"), "same"
    )
    assert (told["model"], told["run"], told["reproduced"]) == ("models:/private/1", train.run, True)
    assert compared["weights"]["rebuilt"] == train.weights_sha256
    assert compared["tokenizer"]["rebuilt"] == shards.tokenizer.sha256
    assert compared["documents"]["detail"] == "180 of memos@2"
    assert {one.generation for one in shards.generations} == {0, 1}, "the increment is one of the reasons for this test"
    assert "canary" not in done.stdout + done.stderr
    new = {name for name in line.files() - before if not name.startswith("spark/")}
    assert new, "who read the sources is noted"
    assert all(name.startswith("tables/audit/") for name in new)
    entry = max(tables.read(audit.path(line.home)).to_pylist(), key=lambda one: one["seq"])
    assert (entry["stage"], entry["rows"]) == ("reproduce", 180)


def test_other_ranks_or_versions_make_weights_not_comparable(copy: Line) -> None:
    state = copy.home.resolve(newest(copy.home, TrainRecord).checkpoint) / "state.json"
    environment = json.loads(state.read_text(encoding="utf-8"))["environment"]
    change(state, environment={**environment, "torch": "1.0.0+cpu"})

    found = copy.reproduce("train.ranks=1", from_documents=True)

    documents, tokenizer, shards, weights = found.compared
    assert (documents.verdict, documents.detail) == ("not comparable", "the sources were not asked for")
    assert (tokenizer.verdict, shards.verdict) == ("same", "same")
    assert weights.verdict == "not comparable"
    assert weights.detail == f"ranks 2 -> 1, torch 1.0.0 -> {environment['torch'].split('+')[0]}"
    refuse_differences(found)
    console = Console(width=80)
    with console.capture() as captured:
        console.print(report.render(found))
    assert max(map(len, captured.get().splitlines())) <= 80
    assert "all but documents and weights came out as recorded" in " ".join(captured.get().split())


@pytest.mark.parametrize("known", [True, False])
def test_what_comes_out_otherwise_is_named(copy: Line, known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that lies: of the shards' seed, and of the configuration by which documents were split."""
    about = copy.home.resolve(newest(copy.home, TrainRecord).run) / record.ABOUT
    params = json.loads(about.read_text(encoding="utf-8"))["params"]
    change(about, params={**params, "prepare": {**params["prepare"], "holdout": 0.5}})
    true = Results.shard_of
    monkeypatch.setattr(Results, "shard_of", lambda *args: lying(true(*args)))
    if known:
        fingerprint = Results(copy.home).prepare_of(newest(copy.home, ShardRecord)).fingerprint
        monkeypatch.setattr(record.preparing, "base_fingerprint", lambda *_, **__: fingerprint)

    def lying(shards: ShardRecord) -> ShardRecord:
        return shards.model_copy(update={"settings": {**shards.settings, "seed": 18}})

    found = copy.reproduce()

    documents, _, shards, weights = found.compared
    assert "of 180 documents" in documents.detail
    assert documents.verdict == ("differs" if known else "not comparable")
    assert ("settings of the run" in documents.detail) == (not known)
    assert shards.verdict == "differs"
    assert shards.recorded != shards.rebuilt
    assert (weights.verdict, weights.detail) == ("not comparable", "the shards are other ones")
    with pytest.raises(ReproductionFailed, match="documents, shards differ" if known else ": shards differ"):
        refuse_differences(found)


def test_nothing_is_left_of_a_rebuild_that_fails(copy: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESSERA_FAIL", "shard.before_manifest:raise")

    with pytest.raises(InjectedFault):
        copy.reproduce(from_documents=True)

    assert not list(copy.home.cache.iterdir())
    assert fnmatch(FOLDER.format("x"), garbage.OURS), "what a killed one leaves is not found by gc and forget"


def test_a_vacuumed_source_is_named(line: Line, copy: Line, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    shutil.copytree(line.table, kept)
    table = DeltaTable(line.table)
    table.delete("number < 100")
    table.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    try:
        done = copy.cli()
    finally:
        shutil.rmtree(line.table)
        kept.rename(line.table)

    assert (done.returncode, done.stdout) == (2, "")
    *_, last = done.stderr.splitlines()
    assert last.startswith("tessera: models:/private/1 was made from memos@2, which is gone")
    assert "vacuum" in last
    assert "--from-documents" in last
    assert "starting Spark" not in done.stderr


def test_documents_that_are_gone_or_erased_are_named(copy: Line) -> None:
    row = tables.read(copy.home.documents, version=1, columns=["doc_id", "sha256"]).to_pylist()[0]
    erasures.record(copy.home, pairs=[(row["doc_id"], row["sha256"])], why="test")

    with pytest.raises(UserError, match="erased since: 1"):
        copy.reproduce(from_documents=True)
    for file in copy.home.documents.glob("*.parquet"):
        file.unlink()
    with pytest.raises(SourceError, match=r"tables/documents@1, which is gone.*; 1 rows were erased since"):
        copy.reproduce()


def test_a_model_of_another_home_is_refused(copy: Line) -> None:
    shutil.rmtree(copy.home.ledger)

    with pytest.raises(ModelError, match="was not registered from"):
        copy.reproduce()
