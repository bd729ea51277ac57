"""Erasure: a canary is in every holder before and in none after, by a search of our own; nothing brings it back."""

import gzip
import hashlib
import json
import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from tokenizers import Tokenizer

from tessera import erasures, failpoints, publish, tables
from tessera.errors import ConfigError, Conflict, ForgetFailed, SourceError
from tessera.failpoints import InjectedFault
from tessera.forgetting.forget import Forgotten
from tessera.forgetting.target import Wanted
from tessera.home import Home
from tessera.lineage import ErasureRecord, PrepareRecord, ShardRecord, TableVersion
from tessera.pipeline import Pipeline
from tessera.prepare import decisions
from tessera.serve import answers
from tessera.settings import Settings
from tessera.shard import manifest
from tessera.shard.manifest import read_manifest
from tessera.shard.read.order import Order
from tessera.shard.run_manifest import write_run_manifest
from tessera.train.run import RunFolder, RunSpec, to_json
from tessera.train.settings import TrainSettings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.spark

NUMBER = 7
"""The row that is forgotten."""
CANARY = "The vermilion ocelot of Krakow, called Zbigniew, keeps quarterly ledgers under a juniper barrel."
WORDS = ("array", "axis", "value", "shape", "matrix", "index", "dtype", "error", "number", "result")
STEPS, BATCH = 41, 8


def text_of(number: int) -> str:
    random = np.random.default_rng(number)
    words = " ".join(random.choice(WORDS, 12 + number % 40))
    return f"{CANARY}\n{words} {number}" if number == NUMBER else f"{number} {words}"


def write_source(path: Path, numbers: list[int], *, mode: str = "overwrite") -> None:
    rows = [{"number": number, "kind": "memo", "body": text_of(number)} for number in numbers]
    write_deltalake(path, pa.Table.from_pylist(rows), mode=mode)  # type: ignore[call-overload]


def settings_of(source: Path, **changes: Any) -> Settings:
    return Settings.model_validate(
        {
            "prepare": {"sources": [{"path": str(source), "id": "number", "text": "body", **changes}], "holdout": 0.1},
            "shard": {
                "name": "docs", "seq_len": 64, "shard_bytes": 2**16, "bucket_bytes": 4096,
                "tokenizer": {"vocab_size": 400, "sample_bytes": 2**20},
            },
        }
    )  # fmt: skip


@dataclass(frozen=True)
class Place:
    """A home with a source beside it."""

    home: Home
    source: Path

    def pipeline(self, **changes: Any) -> Pipeline:
        return Pipeline(settings_of(self.source, **changes), home=self.home)

    def make(self, **changes: Any) -> tuple[PrepareRecord, ShardRecord]:
        prepared, sharded = (self.pipeline(**changes).do(stage) for stage in ("prepare", "shard"))
        assert isinstance(prepared, PrepareRecord)
        assert isinstance(sharded, ShardRecord)
        return prepared, sharded

    def forget(self, **wanted: Any) -> Forgotten:
        asked = {"source": "memos", "ids": (str(NUMBER),), "why": "asked for", **wanted}
        dry_run = asked.pop("dry_run", False)
        return self.pipeline().forget(Wanted(**asked), dry_run=dry_run)

    @property
    def doc_id(self) -> str:
        return doc_id_of(NUMBER)


@pytest.fixture(scope="module")
def made(spark: "SparkSession", tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Two versions of source, documents and set, an answer, a run, and what else may lie about."""
    folder = tmp_path_factory.mktemp("forget")
    place = Place(home=Home(folder / "home"), source=folder / "memos")
    write_source(place.source, list(range(200)))
    place.make()
    write_source(place.source, list(range(200, 230)), mode="append")
    _, sharded = place.make()
    add_answers(place)
    add_run(place, version=sharded.manifest.version)
    add_strays(place)
    return place


@pytest.fixture
def place(made: Place, tmp_path: Path) -> Place:
    shutil.copytree(made.source.parent, tmp_path / "copy", symlinks=True)
    return Place(home=Home(tmp_path / "copy" / "home"), source=tmp_path / "copy" / "memos")


def add_answers(place: Place) -> None:
    rows = [
        {"doc_id": doc_id, "source": "memos", "source_version": 0, "row_key": "{}", "model": "m", "model_version": 1,
         "request": "r", "prompt_sha256": "p", "answer": f"I repeat: {text}", "prompt_tokens": 3, "tokens": 3,
         "finish_reason": "stop", "seconds": 0.1, "at": "2026"}
        for doc_id, text in ((place.doc_id, CANARY), ("0" * 64, text_of(8)))
    ]  # fmt: skip
    publication = publish.begin(place.home.answers, name="answers")
    record = ErasureRecord(
        fingerprint="f", rows=2, table=TableVersion(name="answers", path="tables/answers", version=0)
    )
    publish.commit(
        publication, pa.Table.from_pylist(rows, schema=answers.SCHEMA), record=record,
        stats_columns=answers.STATS_COLUMNS,
    )  # fmt: skip


def add_run(place: Place, *, version: int) -> None:
    """An unfinished run of STEPS steps."""
    folder = RunFolder(place.home.runs / "run-1")
    folder.root.mkdir(parents=True)
    spec = RunSpec(
        run="run-1", fingerprint="f", settings=TrainSettings(batch_size=BATCH, seed=3), tokenizer="t", block_shards=2
    )
    folder.spec.write_text(to_json(spec.model_dump(mode="json")))
    write_run_manifest(read_manifest(place.home, "docs", version), folder.manifest)
    folder.metrics.write_text("".join(json.dumps({"step": step}) + "\n" for step in range(1, STEPS + 1)))


def add_strays(place: Place) -> None:
    """Copies that no table names: a petastorm cache, spill, the orphan of a killed writer."""
    cache = place.home.cache / "petastorm" / "x"
    cache.mkdir(parents=True)
    pq.write_table(pa.table({"text": [text_of(NUMBER)]}), cache / "part.parquet", compression="zstd")
    place.home.spill.mkdir(parents=True, exist_ok=True)
    scratch = place.home.spill / "spark-score-1"
    scratch.mkdir()
    (scratch / "pending.gz").write_bytes(gzip.compress(text_of(NUMBER).encode("utf-16-le")))
    held = next(file for file in (place.home.shards / "docs" / "train").glob("*.mds"))
    shutil.copyfile(held, held.with_name("000000-0000-0123456789abcdef.mds"))


def holders(root: Path) -> Counter[str]:
    """Where the canary lies: found by plain means, none of them of the code under test."""
    forms = [CANARY[at : at + 20] for at in (0, 30, 60)]
    needles = [form.encode(encoding) for form in forms for encoding in ("utf-8", "utf-16-le")]
    for folder in root.rglob("tokenizer.json"):
        ids = Tokenizer.from_file(str(folder)).encode(CANARY).ids
        needles += [np.array(ids[at : at + 10], "<u2").tobytes() for at in (2, 20)]
    found: Counter[str] = Counter()
    for path in sorted(file for file in root.rglob("*") if file.is_file()):
        if any(needle in data for data in contents(path) for needle in needles):
            found["/".join(path.relative_to(root).parts[:3])] += 1
    return found


def contents(path: Path) -> Iterator[bytes]:
    yield path.read_bytes()
    if path.suffix == ".parquet":
        yield repr(pq.read_table(path, partitioning=None).to_pylist()).encode()
    elif path.suffix == ".gz":
        yield gzip.decompress(path.read_bytes())
    elif path.suffix == ".db":
        with closing(sqlite3.connect(path)) as connection:
            yield "\n".join(connection.iterdump()).encode()


def shard_files(home: Home) -> dict[str, str]:
    folder = home.shards / "docs"
    return {
        f"{file.parent.name}/{file.name}": hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.glob("*/*.mds"))
    }


def named_files(home: Home, version: int | None = None) -> dict[str, str]:
    rows = read_manifest(home, "docs", version).to_pylist()
    return {row["file"]: row["sha256"] for row in rows}


def test_the_canary_is_in_every_holder_before_and_in_none_after(place: Place) -> None:
    root = place.source.parent
    wanted = {
        "memos", "home/tables/documents", "home/shards/docs", "home/tables/answers", "home/cache/petastorm",
        "home/spark/spark-score-1",
    }  # fmt: skip
    before = holders(root)
    assert {holder for holder in wanted if any(found.startswith(holder) for found in before)} == wanted

    done = place.forget(delete_source=True)

    assert holders(root) == Counter()
    assert done.doc_ids == (place.doc_id,)
    reported = {one.place: one.before for one in done.holders}
    assert set(reported) == {"source memos", *(holder.removeprefix("home/") for holder in wanted - {"memos"})} - {
        "spark/spark-score-1"
    } | {"spark/spark-score-1"}
    assert all(one.after == 0 and one.before > 0 for one in done.holders)
    assert sum(reported.values()) == sum(before.values())
    assert done.unsearchable == ()
    assert tables.read(place.home.answers).num_rows == 1
    assert NUMBER not in DeltaTable(place.source).to_pyarrow_table()["number"].to_pylist()
    assert DeltaTable(place.source).to_pyarrow_table().num_rows == 229


def test_untouched_cells_stay_and_the_others_are_what_a_rebuild_gives(place: Place) -> None:
    before = named_files(place.home)
    documents_before = tables.read(place.home.documents).num_rows

    place.forget(delete_source=True)

    after = named_files(place.home)
    spans = place.home.shards / "docs" / "documents"
    held = {row["file"] for row in tables.read(spans, version=1).to_pylist() if row["doc_id"] == place.doc_id}
    assert held
    assert held & set(after) == set()
    cell = {name.rsplit("-", 1)[0] for name in held}
    assert {name: sha for name, sha in before.items() if name.rsplit("-", 1)[0] not in cell}.items() <= after.items()
    assert shard_files(place.home) == after
    assert tables.read(place.home.documents).num_rows == documents_before - 1
    record = manifest.read_record(place.home, name="docs")
    settings = place.pipeline().settings
    again = {"name": "again", "tokenizer": {"path": str(place.home.resolve(record.tokenizer.path))}}
    rebuilt = Pipeline(
        settings.model_copy(update={"shard": settings.shard.model_validate({**settings.shard.model_dump(), **again})}),
        home=place.home,
    )
    rebuilt.do("shard")
    assert {row["file"]: row["sha256"] for row in read_manifest(place.home, "again").to_pylist()} == after


def test_the_next_stages_find_what_forget_left(place: Place) -> None:
    DeltaTable(place.source).delete(f"number = {NUMBER}")
    with pytest.raises(ForgetFailed, match="source memos"):
        place.forget()

    prepared, sharded = place.make(version=1)

    assert prepared.reused
    assert sharded.reused
    assert prepared.dropped == {"erased": 1}
    assert prepared.rows == prepared.documents + 1


def test_a_rebuild_at_the_old_version_of_the_source_does_not_bring_it_back(place: Place) -> None:
    """The source's old version is there, text and all; forget says so, and cleans the rest."""
    DeltaTable(place.source).delete(f"number = {NUMBER}")
    with pytest.raises(ForgetFailed) as raised:
        place.forget()
    done = raised.value.result
    assert isinstance(done, Forgotten)
    assert {one.place for one in done.holders if one.after} == {"source memos"}
    assert holders(place.home.root) == Counter()
    with pytest.raises(SourceError, match="no longer readable"):
        tables.read(place.home.documents, version=0)

    prepared, sharded = place.make(version=0)

    assert not prepared.reused
    assert prepared.dropped == {"erased": 1}
    assert sharded.splits["train"].documents + sharded.splits["heldout"].documents == 199
    assert holders(place.home.root) == Counter()
    assert {row["doc_id"] for row in tables.read(erasures.path(place.home)).to_pylist()} == {place.doc_id}


def test_the_same_text_under_another_key_is_kept_out(place: Place) -> None:
    place.forget(delete_source=True)
    row = {"number": 999, "kind": "memo", "body": text_of(NUMBER)}
    write_deltalake(place.source, pa.Table.from_pylist([row]), mode="append")

    prepared = place.pipeline().do("prepare")

    assert isinstance(prepared, PrepareRecord)
    assert prepared.dropped == {"erased": 1}
    assert holders(place.home.root) == Counter()


def test_what_a_warehouse_does_to_our_tables_hides_nothing_from_forget(place: Place) -> None:
    """OPTIMIZE makes versions that carry no record."""
    spans = place.home.shards / "docs" / "documents"
    for path in (place.home.documents, decisions.path(place.home), place.home.answers, spans):
        DeltaTable(path).optimize.compact(target_size=2**30)
    DeltaTable(manifest.manifest_path(place.home, name="docs")).optimize.compact()

    done = place.forget(delete_source=True)

    assert holders(place.source.parent) == Counter()
    assert [type(record) for record in done.records][:2] == [PrepareRecord, ShardRecord]
    prepared, sharded = place.make()
    assert prepared.rows == prepared.documents == 229
    assert sharded.splits["train"].documents + sharded.splits["heldout"].documents == 229


def test_what_an_erased_row_had_displaced_comes_back_and_the_row_does_not(
    spark: "SparkSession", tmp_path: Path
) -> None:
    place = Place(home=Home(tmp_path / "home"), source=tmp_path / "memos")
    common = " ".join(np.random.default_rng(0).choice(WORDS, 300))
    erased = f"{CANARY} {common}"
    others = (f"{common} {number}" for number in range(100))
    displaced = next(text for text in others if sha256_of(text) > sha256_of(erased))
    rows = [{"number": number, "kind": "memo", "body": text_of(number)} for number in range(100, 160)]
    rows += [{"number": n, "kind": "memo", "body": text} for n, text in ((NUMBER, erased), (8, displaced))]
    write_deltalake(place.source, pa.Table.from_pylist(rows))
    given = settings_of(place.source).model_dump(mode="json")
    given["prepare"]["near_duplicates"] = {}

    def made(**changes: Any) -> PrepareRecord:
        given["prepare"]["sources"][0] |= changes
        record = Pipeline(Settings.model_validate(given), home=place.home).do("prepare")
        assert isinstance(record, PrepareRecord)
        return record

    assert made().dropped == {"near_duplicate": 1}
    assert displaced not in {row["text"] for row in tables.read(place.home.documents).to_pylist()}
    before = holders(place.home.root)
    assert any(holder.startswith("tables/documents") for holder in before)

    DeltaTable(place.source).delete(f"number = {NUMBER}")
    with pytest.raises(ForgetFailed, match="source memos"):
        place.forget()

    assert holders(place.home.root) == Counter()
    for version, dropped in ((None, {}), (0, {"erased": 1})):
        assert made(version=version).dropped == dropped
        assert displaced in {row["text"] for row in tables.read(place.home.documents).to_pylist()}
        assert holders(place.home.root) == Counter()
        assert place.doc_id not in {row["doc_id"] for row in tables.read(place.home.documents).to_pylist()}


def test_the_text_of_an_erased_row_goes_though_another_row_stands_for_it(place: Place) -> None:
    """Of equal rows the one with the smallest id is the document, whichever of them is asked to be forgotten."""
    same = [number for number in range(900, 920) if doc_id_of(number) > place.doc_id]
    row = {"number": same[0], "kind": "memo", "body": text_of(NUMBER)}
    write_deltalake(place.source, pa.Table.from_pylist([row]), mode="append")
    first = place.pipeline().do("prepare")
    assert isinstance(first, PrepareRecord)
    assert first.dropped == {"duplicate": 1}

    place.forget(ids=(str(same[0]),), delete_source=True)

    recorded = tables.read(erasures.path(place.home)).to_pylist()
    assert [(one["doc_id"], one["sha256"]) for one in recorded] == [(doc_id_of(same[0]), sha256_of(text_of(NUMBER)))]
    left = {"/".join(holder.split("/")[:2]) for holder in holders(place.home.root)}
    assert left == {"tables/answers"}, "what a model said of the other row stays with it"


def doc_id_of(number: int) -> str:
    return hashlib.sha256(f'memos\n{{"number":{number}}}'.encode()).hexdigest()


def sha256_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(
    "fault", ["forget.after_erasures:raise", "forget.before_remove:raise", "publish.after_commit:raise:2"]
)
def test_a_forget_that_was_stopped_is_gone_on_with(place: Place, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    monkeypatch.setattr(failpoints, "_passed", Counter())
    monkeypatch.setenv("TESSERA_FAIL", fault)
    with pytest.raises(InjectedFault):
        place.forget(delete_source=True)
    assert holders(place.source.parent)
    monkeypatch.delenv("TESSERA_FAIL")

    done = place.forget(delete_source=True)
    versions = {path.name: DeltaTable(path).version() for path in (place.home.documents, erasures.path(place.home))}
    again = place.forget()

    assert holders(place.source.parent) == Counter()
    assert any(one.before for one in done.holders)
    assert all(one.after == 0 for one in done.holders)
    assert (again.holders, again.records, again.unseen) == ((), (), 1)
    assert versions == {"documents": 2, "erasures": 0}
    assert {
        path.name: DeltaTable(path).version() for path in (place.home.documents, erasures.path(place.home))
    } == versions


def test_a_copy_that_forget_may_not_remove_is_named_and_found_again(place: Place) -> None:
    copy = place.home.root / "exports" / "memos.csv"
    copy.parent.mkdir()
    copy.write_text(text_of(NUMBER))
    with pytest.raises(ForgetFailed, match=r"left in exports.* \(1\), such as exports/memos\.csv"):
        place.forget(delete_source=True)
    assert CANARY not in {row["text"] for row in tables.read(place.home.documents).to_pylist()}
    copy.unlink()

    done = place.forget()

    assert any(one.before for one in done.holders)
    assert holders(place.source.parent) == Counter()


def test_runs_that_saw_the_row_are_counted_exactly(place: Place) -> None:
    rows = [row for row in read_manifest(place.home, "docs").to_pylist() if row["split"] == "train"]
    spans = tables.read(place.home.shards / "docs" / "documents", version=1).to_pylist()
    held = {(row["file"], row["sample"]) for row in spans if row["doc_id"] == place.doc_id}
    order = Order([row["samples"] for row in rows], seed=3, block_shards=2)
    shard, sample = order.locate(np.arange(STEPS * BATCH))
    drawn = [(rows[a]["file"], int(b)) in held for a, b in zip(shard.tolist(), sample.tolist(), strict=True)]

    done = place.forget(dry_run=True)

    (run,) = done.runs
    assert (run.run, run.steps, run.known) == ("run-1", STEPS, True)
    assert sum(drawn) > 0, "the run must see the row, or this proves nothing: give it more steps"
    (seen,) = run.rows
    assert (seen.doc_id, seen.times, seen.first_step) == (place.doc_id, sum(drawn), drawn.index(True) // BATCH + 1)


def test_nothing_is_changed_while_the_source_has_the_row(place: Place) -> None:
    before = holders(place.source.parent)

    with pytest.raises(SourceError, match=r"still has 1 of these 1 rows.*--delete-source"):
        place.forget()
    done = place.forget(dry_run=True)

    assert holders(place.source.parent) == before
    assert done.dry_run
    assert {one.place for one in done.holders} >= {"source memos", "tables/documents", "shards/docs", "tables/answers"}
    assert not tables.exists(erasures.path(place.home))


def test_what_is_asked_wrongly_is_answered_with_what_to_give(place: Place) -> None:
    for wanted, said in (
        ({"source": "nobody"}, "it has: memos"),
        ({"ids": ()}, "give one of them"),
        ({"source": None}, "need --source"),
        ({"ids": (), "doc_ids": ("XYZ",)}, "64 lower-case"),
    ):
        with pytest.raises(ConfigError, match=said):
            place.forget(**wanted)
    with pytest.raises(SourceError, match="cannot be read as number bigint") as raised:
        place.forget(ids=("seven",))
    assert "seven" not in str(raised.value)


def test_rows_are_named_by_a_table_of_keys_too(place: Place, tmp_path: Path) -> None:
    write_deltalake(tmp_path / "keys", pa.table({"number": [str(NUMBER), "8"], "more": ["x", "y"]}))

    done = place.forget(ids=(), keys=str(tmp_path / "keys"), dry_run=True)

    assert place.doc_id in done.doc_ids
    assert len(done.doc_ids) == 2


def test_a_prepare_that_an_erasure_overtakes_publishes_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    from tessera.prepare import table

    real = table.changes

    def overtaken(*args: Any, **kwargs: Any) -> Any:
        erasures.record(place.home, pairs=[(place.doc_id, None)], why="meanwhile")
        return real(*args, **kwargs)

    monkeypatch.setattr(table, "changes", overtaken)
    with pytest.raises(Conflict, match="erased while documents were prepared"):
        place.pipeline(where="number < 100").do("prepare")
    assert DeltaTable(place.home.documents).version() == 1


def test_model_versions_of_such_runs_are_tagged(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    from tessera.forgetting import rooms
    from tessera.train.forget import RunSeen, Seen

    home = Home(tmp_path / "home")
    home.root.mkdir()
    client = MlflowClient(*[f"sqlite:///{home.mlflow_database}"] * 2)
    experiment = client.create_experiment("tessera", artifact_location=home.mlflow_artifacts.as_uri())
    saw, other = (client.create_run(experiment).info.run_id for _ in range(2))
    client.create_registered_model("docs")
    for run_id in (saw, other):
        client.create_model_version("docs", source=home.mlflow_artifacts.as_uri(), run_id=run_id)
    runs = [
        RunSeen("run-1", saw, steps=9, rows=(Seen("a" * 64, 2, 3), Seen("b" * 64, 1, 4))),
        RunSeen("run-2", other, steps=9, rows=(), known=False),
    ]

    listed = rooms.models(home, settings=settings_of(tmp_path / "memos"), saw=runs, tag=False)
    before = client.get_model_version("docs", "1").tags
    tagged = rooms.models(home, settings=settings_of(tmp_path / "memos"), saw=runs, tag=True)

    assert listed == tagged == ("models:/docs/1",)
    assert before == {}
    assert client.get_model_version("docs", "1").tags["tessera.erased_rows"] == "2"
    assert client.get_model_version("docs", "1").tags["tessera.erased_at"] > "2026"
    assert client.get_model_version("docs", "2").tags == {}
