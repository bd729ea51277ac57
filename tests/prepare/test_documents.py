"""Documents: every row is kept or dropped for a counted reason, checked against a plain Python judge."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake

from tessera import publish, tables
from tessera.errors import Conflict, SourceError
from tessera.failpoints import InjectedFault
from tessera.home import Home
from tessera.lineage import PrepareRecord
from tessera.prepare import documents, sources, stage, table
from tessera.prepare.settings import PrepareSettings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.spark

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "goes", "home"]


def texts(count: int) -> list[str]:
    return [" ".join(WORDS[(i * 7 + j) % len(WORDS)] for j in range(5 + i % 20)) + f" {i}" for i in range(count)]


ODD = [
    None,
    "",
    "  \n\t",
    "\u00a0\u2003",
    "\x00\x00",
    "short",
    "  padded  x  ",
    "naïve café — 猫🐈 are long enough here",
]


def make_table(path: Path, rows: Sequence[dict[str, Any]], mode: str = "overwrite") -> None:
    data = pa.Table.from_pylist(
        list(rows), schema=pa.schema([("id", pa.string()), ("text", pa.string()), ("n", pa.int64())])
    )
    write_deltalake(path, data, mode=mode)  # type: ignore[call-overload]


def rows_of(all_texts: Sequence[str | None]) -> list[dict[str, Any]]:
    return [{"id": f"k{i}", "text": text, "n": i} for i, text in enumerate(all_texts)]


def prepare(
    spark: "SparkSession", home: Home, *, source: dict[str, Any], partitions: int | None = None, **more: Any
) -> PrepareRecord:
    settings = PrepareSettings.model_validate({"sources": [source], "holdout": 0.2, **more})
    resolved = [sources.resolve(one, home=home, spark=lambda: spark) for one in settings.sources]
    fingerprint = stage.fingerprint(resolved, settings=settings)
    return documents.write_documents(
        spark, sources=resolved, settings=settings, fingerprint=fingerprint, home=home, partitions=partitions
    )


def judge(text: str | None) -> str | None:
    """The same rules, once more and differently."""
    if text is None:
        return "null_text"
    bare = text.strip(" \t\n\r\f\v\x00\u00a0\u2003")
    return "blank" if not bare else "too_short" if len(bare) < 20 else None


def test_every_row_is_kept_or_dropped_for_a_counted_reason(spark: "SparkSession", home: Home, tmp_path: Path) -> None:
    all_texts = [*texts(60), *ODD, *texts(10)]
    make_table(tmp_path / "t", rows_of(all_texts))

    record = prepare(spark, home, source={"path": str(tmp_path / "t")}, partitions=3)

    expected = Counter(reason for text in all_texts if (reason := judge(text)))
    expected["duplicate"] = 10
    assert record.dropped == dict(sorted(expected.items()))
    assert record.rows == len(all_texts) == record.documents + sum(record.dropped.values())
    kept = tables.read(home.documents).to_pylist()
    unique = {text for text in all_texts if text is not None and judge(text) is None}
    assert sorted(row["text"] for row in kept) == sorted(unique)
    for row in kept:
        assert row["sha256"] == row["group"] == hashlib.sha256(row["text"].encode()).hexdigest()
        assert row["num_bytes"] == len(row["text"].encode())
        assert (row["source"], row["source_version"], row["kind"], row["added"]) == ("t", 0, "text", 0)
    assert record.num_bytes == sum(row["num_bytes"] for row in kept)
    assert Counter(row["split"] for row in kept) == record.splits
    assert 0 < record.splits["heldout"] < record.splits["train"]


def test_the_documents_of_a_cell_lie_together(
    spark: "SparkSession", home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One version, generation and split after another, each by doc_id; no two row groups overlap."""
    monkeypatch.setattr(table, "ROW_GROUP_BYTES", 2**16)
    for count in (1500, 2500):
        make_table(
            tmp_path / "t", rows_of([f"{i} {hashlib.sha512(bytes([i % 256])).hexdigest()}" for i in range(count)])
        )
        record = prepare(spark, home, source={"path": str(tmp_path / "t")})

    groups = []
    for name in tables.data_files(home.documents, version=record.table.version):
        with pq.ParquetFile(home.documents / name) as file:
            for number in range(file.num_row_groups):
                rows = file.read_row_group(number, columns=["added", "split", "doc_id"]).to_pylist()
                groups.append([(row["added"], row["split"], row["doc_id"]) for row in rows])
    assert len(groups) > 4
    assert all(group == sorted(group) for group in groups)
    assert [row for group in sorted(groups) for row in group] == sorted(row for group in groups for row in group)
    assert {(added, split) for group in groups for added, split, _ in group} == {
        (added, split) for added in (0, 1) for split in ("heldout", "train")
    }


def test_a_document_id_is_the_hash_of_source_name_and_key(spark: "SparkSession", home: Home, tmp_path: Path) -> None:
    make_table(tmp_path / "t", rows_of(texts(20)))

    prepare(spark, home, source={"path": str(tmp_path / "t"), "name": "wiki", "id": ["n", "id"]})

    by_text = {row["text"]: row["doc_id"] for row in tables.read(home.documents).to_pylist()}
    for i, text in enumerate(texts(20)):
        key = json.dumps({"id": f"k{i}", "n": i}, separators=(",", ":"))
        assert by_text[text] == hashlib.sha256(f"wiki\n{key}".encode()).hexdigest()


def test_documents_do_not_depend_on_partitions_or_place(spark: "SparkSession", tmp_path: Path) -> None:
    seen = set()
    for run, partitions in enumerate((1, 7)):
        home = Home(tmp_path / f"home{run}")
        make_table(tmp_path / f"at{run}" / "t", rows_of([*texts(40), *texts(15)]))
        prepare(spark, home, source={"path": str(tmp_path / f"at{run}" / "t")}, partitions=partitions)
        rows = sorted(tables.read(home.documents).to_pylist(), key=lambda row: str(row["doc_id"]))
        seen.add(json.dumps(rows, sort_keys=True))

    assert len(seen) == 1


def test_a_later_version_keeps_the_age_of_what_did_not_change(
    spark: "SparkSession", home: Home, tmp_path: Path
) -> None:
    first, more = rows_of(texts(30)), rows_of(texts(36))[30:]
    make_table(tmp_path / "t", first)
    prepare(spark, home, source={"path": str(tmp_path / "t")})
    changed = {**first[3], "text": "this row was changed and is long enough"}
    make_table(tmp_path / "t", [changed if row["id"] == "k3" else row for row in [*first[:29], *more]])

    record = prepare(spark, home, source={"path": str(tmp_path / "t")})

    assert record.table.version == 1
    added = {row["text"]: row["added"] for row in tables.read(home.documents).to_pylist()}
    assert added.pop("this row was changed and is long enough") == 1
    assert {added[row["text"]] for row in more} == {1}
    assert {age for text, age in added.items() if text not in {row["text"] for row in more}} == {0}
    assert first[29]["text"] not in added
    generations = [(one.added, one.documents) for one in record.generations]
    assert generations == [(0, len(first)), (1, 1 + len(more))], "the first generation is remembered as it was"
    assert [one.all_bytes for one in record.generations] == [record.generations[0].num_bytes, record.num_bytes]
    older = {row["text"] for row in tables.read(home.documents, version=0).to_pylist()}
    assert older == set(texts(30))


def test_pinned_versions_timestamps_and_filters(spark: "SparkSession", home: Home, tmp_path: Path) -> None:
    make_table(tmp_path / "t", rows_of(texts(30)))
    make_table(tmp_path / "t", rows_of(texts(50)))

    pinned = prepare(spark, home, source={"path": str(tmp_path / "t"), "version": 0})
    filtered = prepare(spark, home, source={"path": str(tmp_path / "t"), "where": "n >= 10 AND id <> 'k11'"})

    assert (pinned.rows, pinned.inputs[0].version) == (30, 0)
    assert (filtered.rows, filtered.inputs[0].version) == (39, 1)


def test_a_repeated_key_is_refused_or_decided(spark: "SparkSession", home: Home, tmp_path: Path) -> None:
    rows = [*rows_of(texts(25)), {"id": "k1", "text": "a newer text for the first key", "n": 99}]
    make_table(tmp_path / "t", rows)
    source = {"path": str(tmp_path / "t"), "updated": "n"}

    with pytest.raises(SourceError, match=r"1 row keys occur more than once, in 2 rows.*on_duplicate"):
        prepare(spark, home, source=source)
    assert not tables.exists(home.documents)
    last = prepare(spark, home, source=source, on_duplicate="last")
    kept = {row["text"] for row in tables.read(home.documents).to_pylist()}
    everything = prepare(spark, home, source=source, on_duplicate="all")

    assert last.dropped == {"superseded": 1}
    assert "a newer text for the first key" in kept
    assert texts(25)[1] not in kept
    assert everything.documents == 26


@pytest.mark.parametrize("kind", [pa.int64(), pa.float64(), pa.timestamp("us", tz="UTC"), pa.string()])
def test_the_newest_row_is_newest_by_value_and_not_by_spelling(
    spark: "SparkSession", home: Home, tmp_path: Path, kind: pa.DataType
) -> None:
    late, early = (10, 9) if kind != pa.string() else ("2026-01-10", "2026-01-09")
    data = pa.table({
        "id": [*(f"k{number}" for number in range(30)), "twice", "twice"],
        "text": [*texts(30), "what was written later of the two", "what was written sooner of the two"],
        "n": pa.array([*[early] * 30, late, early]).cast(kind),
    })  # fmt: skip
    write_deltalake(tmp_path / "t", data)

    record = prepare(spark, home, source={"path": str(tmp_path / "t"), "updated": "n"}, on_duplicate="last")

    kept = {row["text"] for row in tables.read(home.documents).to_pylist()}
    assert "what was written later of the two" in kept
    assert "what was written sooner of the two" not in kept
    assert record.dropped == {"superseded": 1}


def test_documents_that_are_damaged_are_made_anew(spark: "SparkSession", home: Home, tmp_path: Path) -> None:
    make_table(tmp_path / "t", rows_of(texts(30)))
    source = {"path": str(tmp_path / "t")}
    prepare(spark, home, source=source)
    before = sorted(row["text"] for row in tables.read(home.documents).to_pylist())
    next(iter(home.documents.glob("*.parquet"))).unlink()

    record = prepare(spark, home, source=source)

    assert sorted(row["text"] for row in tables.read(home.documents).to_pylist()) == before
    assert record.changes == {}


def test_two_sources_in_one_commit(spark: "SparkSession", home: Home, tmp_path: Path) -> None:
    make_table(tmp_path / "a", rows_of(texts(20)))
    make_table(tmp_path / "b", rows_of(texts(30)))
    settings = PrepareSettings.model_validate(
        {
            "sources": [{"path": str(tmp_path / "a"), "purposes": ["research"]}, {"path": str(tmp_path / "b")}],
            "holdout": 0.2,
        }
    )
    resolved = [sources.resolve(one, home=home) for one in settings.sources]

    record = documents.write_documents(spark, sources=resolved, settings=settings, fingerprint="f", home=home)

    assert (record.rows, record.documents, record.dropped) == (50, 30, {"duplicate": 20})
    assert tables.open_table(home.documents).version() == 0
    assert [table.name for table in record.inputs] == ["a", "b"]
    purposes = {row["source"]: row["purposes"] for row in tables.read(home.documents).to_pylist()}
    assert purposes.get("a", ["research"]) == ["research"]
    assert purposes["b"] == []


@pytest.mark.parametrize(
    ("source", "more", "expected"),
    [
        ({"where": "n > 1000"}, {}, "no rows"),
        ({"where": "no_such = 1"}, {}, "where is not SQL"),
        ({}, {"min_chars": 10_000}, "all 30 rows were dropped"),
        ({}, {"holdout": 0.0001}, "leaves no heldout documents"),
    ],
)
def test_nothing_left_is_an_error_and_nothing_is_published(
    spark: "SparkSession", home: Home, tmp_path: Path, source: dict[str, Any], more: dict[str, Any], expected: str
) -> None:
    make_table(tmp_path / "t", rows_of(texts(30)))

    with pytest.raises(SourceError, match=expected):
        prepare(spark, home, source={"path": str(tmp_path / "t"), **source}, **more)

    assert not tables.exists(home.documents)


def test_text_never_enters_the_delta_log(spark: "SparkSession", home: Home, tmp_path: Path) -> None:
    secret = "aaaa-the-smallest-text-of-all-and-a-secret"
    make_table(tmp_path / "t", rows_of([*texts(30), secret]))

    prepare(spark, home, source={"path": str(tmp_path / "t")})

    log = b"".join(file.read_bytes() for file in (home.documents / "_delta_log").rglob("*") if file.is_file())
    assert secret[:16].encode() not in log
    assert b"minValues" in log
    assert b'deletionVectors":"false' in log.replace(b"enableDeletionVectors", b"deletionVectors")


def test_a_fault_before_the_commit_publishes_nothing(
    spark: "SparkSession", home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_table(tmp_path / "t", rows_of(texts(30)))
    monkeypatch.setenv("TESSERA_FAIL", "prepare.before_commit:raise")

    with pytest.raises(InjectedFault):
        prepare(spark, home, source={"path": str(tmp_path / "t")})
    assert not tables.exists(home.documents)
    monkeypatch.delenv("TESSERA_FAIL")

    assert prepare(spark, home, source={"path": str(tmp_path / "t")}).table.version == 0


def test_of_two_writers_one_publishes(
    spark: "SparkSession", home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_table(tmp_path / "t", rows_of(texts(30)))
    prepare(spark, home, source={"path": str(tmp_path / "t")})
    stale = publish.begin(home.documents, name="documents")
    prepare(spark, home, source={"path": str(tmp_path / "t")})
    monkeypatch.setattr(publish, "begin", lambda *_, **__: stale)

    with pytest.raises(Conflict):
        prepare(spark, home, source={"path": str(tmp_path / "t")})

    assert tables.open_table(home.documents).version() == 1
