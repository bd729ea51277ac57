"""Instructions, conversations and preferences become documents, judged against plain Python."""

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from deltalake import CommitProperties, write_deltalake
from tests.prepare.test_documents import make_table, prepare, rows_of, texts

from tessera import lineage, tables
from tessera.errors import SourceError
from tessera.home import Home
from tessera.prepare import documents, sources, stage
from tessera.prepare.settings import PrepareSettings, SourceSettings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

MESSAGE = pa.struct([("content", pa.string()), ("role", pa.string()), ("name", pa.string())])
"""Other fields, and another order, than a document has."""


def table_of(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    keyed = [{"id": str(place), **row} for place, row in enumerate(rows)]
    names = sorted({name for row in keyed for name in row} - {"id", "messages"})
    schema = pa.schema([("id", pa.string()), *((name, pa.string()) for name in names), ("messages", pa.list_(MESSAGE))])
    write_deltalake(path, pa.Table.from_pylist(keyed, schema=schema), mode="overwrite")


def turns(*pairs: tuple[str | None, str | None]) -> list[dict[str, str | None]]:
    return [{"role": role, "content": content, "name": "x"} for role, content in pairs]


def asked(number: int, *, system: str | None = None) -> list[dict[str, str | None]]:
    told = [("system", system)] if system is not None else []
    return turns(*told, ("user", f'what is "{number}"? \n naïve 猫'), ("assistant", f"it is the number {number}"))


BROKEN = {
    "null_text": [None],
    "broken_chat:no_messages": [[]],
    "broken_chat:null": [turns(("user", None), ("assistant", "a")), turns((None, "b"), ("assistant", "a"))],
    "broken_chat:unknown_role": [turns(("user", "long enough, but"), ("tool", "1"), ("assistant", "so this is it"))],
    "broken_chat:last_not_assistant": [turns(("user", "nobody answers")), [*asked(1), *turns(("user", "thank you"))]],
    "broken_chat:turns": [
        turns(("assistant", "nobody asked for this long answer")),
        turns(("user", "one and"), ("user", "two questions"), ("assistant", "one answer")),
        [*asked(1), *turns(("system", "too late"), ("user", "why so?"), ("assistant", "for that"))],
        turns(("user", "one"), ("assistant", "an answer"), ("assistant", "and another answer")),
        turns(("system", "be brief about it"), ("assistant", "well then, I am brief")),
    ],
    "blank": [turns(("user", "who is there, if anybody"), ("assistant", " \n\u00a0"))],
    "too_short": [turns(("user", " hi          "), ("assistant", "     hello "))],
}


@pytest.mark.spark
def test_conversations_are_kept_or_dropped_for_a_counted_reason(
    spark: "SparkSession", home: Home, tmp_path: Path
) -> None:
    good = [asked(number, system="be brief" if number % 3 == 0 else None) for number in range(40)]
    good.append([*asked(90), *asked(91), *asked(92)])
    broken = [one for group in BROKEN.values() for one in group]
    table_of(tmp_path / "t", [{"messages": one} for one in [*good, *broken, good[0]]])

    record = prepare(spark, home, source={"path": str(tmp_path / "t"), "kind": "chat"}, partitions=3)

    assert record.dropped == dict(
        sorted({**{name: len(group) for name, group in BROKEN.items()}, "duplicate": 1}.items())
    )
    kept = tables.read(home.documents).to_pylist()
    wanted = {
        lineage.sha256_json({"kind": "chat", "messages": stripped}): stripped
        for stripped in ([{"role": one["role"], "content": one["content"]} for one in messages] for messages in good)
    }
    assert {row["sha256"]: row["messages"] for row in kept} == wanted
    for row in kept:
        assert row["kind"] == "chat"
        assert row["text"] is row["prompt"] is row["chosen"] is row["rejected"] is None
        assert row["num_bytes"] == sum(len(one["content"].encode()) for one in row["messages"])
        assert row["group"] == row["sha256"]
    assert record.num_bytes == sum(row["num_bytes"] for row in kept)
    assert Counter(row["split"] for row in kept) == record.splits


@pytest.mark.spark
def test_instructions_and_preferences_beside_text(spark: "SparkSession", home: Home, tmp_path: Path) -> None:
    make_table(tmp_path / "words", rows_of(texts(20)))
    told = (None, " ", "be kind")
    questions = [f"what is the number {number}?" for number in range(20)]
    table_of(tmp_path / "asked", [
        *({"q": text, "a": f"it is {place}", "s": told[place % 3]} for place, text in enumerate(questions)),
        {"q": None, "a": "an answer to no question at all"}, {"q": "a question with no answer", "a": "  "},
    ])  # fmt: skip
    table_of(tmp_path / "liked", [
        *({"prompt": text, "chosen": "this is it", "rejected": "that is it"} for text in questions),
        {"prompt": questions[0], "chosen": "the same words", "rejected": "the same words"},
        {"prompt": questions[0], "chosen": None, "rejected": "the other words"},
    ])  # fmt: skip
    settings = PrepareSettings.model_validate({"holdout": 0.2, "sources": [
        {"path": str(tmp_path / "words")},
        {"path": str(tmp_path / "asked"), "kind": "instruction", "prompt": "q", "response": "a", "system": "s"},
        {"path": str(tmp_path / "liked"), "kind": "preference"},
    ]})  # fmt: skip
    resolved = [sources.resolve(one, home=home) for one in settings.sources]

    record = documents.write_documents(
        spark,
        sources=resolved,
        settings=settings,
        home=home,
        fingerprint=stage.fingerprint(resolved, settings=settings),
    )

    assert record.dropped == {"blank": 1, "null_text": 2, "same_answers": 1}
    rows = tables.read(home.documents).to_pylist()
    by_kind = {kind: [row for row in rows if row["kind"] == kind] for kind in ("text", "instruction", "preference")}
    assert [len(own) for own in by_kind.values()] == [20, 20, 20]
    assert {row["text"] for row in by_kind["text"]} == set(texts(20))
    for place, text in enumerate(questions):
        turn = [{"role": "user", "content": text}, {"role": "assistant", "content": f"it is {place}"}]
        wanted = ([{"role": "system", "content": "be kind"}] if place % 3 == 2 else []) + turn
        (found,) = [row for row in by_kind["instruction"] if row["messages"][-2]["content"] == text]
        assert found["messages"] == wanted
        assert found["sha256"] == lineage.sha256_json({"kind": "instruction", "messages": wanted})
        (liked,) = [row for row in by_kind["preference"] if row["prompt"] == text]
        triple = {name: liked[name] for name in ("prompt", "chosen", "rejected")}
        assert triple == {"prompt": text, "chosen": "this is it", "rejected": "that is it"}
        assert liked["sha256"] == lineage.sha256_json({"kind": "preference", **triple})
        assert liked["num_bytes"] == sum(len(one.encode()) for one in triple.values())
    log = b"".join(file.read_bytes() for file in (home.documents / "_delta_log").rglob("*") if file.is_file())
    assert b"this is it" not in log
    assert b"what is the number" not in log


@pytest.mark.spark
def test_text_that_is_not_utf8_is_dropped_by_name(spark: "SparkSession", home: Home, tmp_path: Path) -> None:
    good = spark.createDataFrame(
        [(f"k{place}", text) for place, text in enumerate(texts(30))], "id string, text string"
    )
    bad = spark.sql(
        "SELECT 'bad' AS id, CAST(unhex('61FF6261FF6261FF6261FF6261FF6261FF6261FF6261FF62') AS string) AS text"
    )
    good.unionByName(bad).coalesce(1).write.format("delta").save(str(tmp_path / "t"))

    record = prepare(spark, home, source={"path": str(tmp_path / "t")})

    assert record.dropped == {"invalid_utf8": 1}
    assert record.documents == 30


@pytest.mark.spark
def test_documents_of_format_1_are_gone_on_from(spark: "SparkSession", home: Home, tmp_path: Path) -> None:
    """A table without the columns of the other kinds: its rows keep their age, and it can still be read as it was."""
    make_table(tmp_path / "t", rows_of(texts(30)))
    prepare(spark, home, source={"path": str(tmp_path / "t")})
    old = tables.read(home.documents).drop_columns(["messages", "prompt", "chosen", "rejected"])
    history = tables.open_table(home.documents).history(1)[0]["userMetadata"]
    shutil.rmtree(home.documents)
    write_deltalake(home.documents, old, commit_properties=CommitProperties(custom_metadata={"userMetadata": history}))
    make_table(tmp_path / "t", rows_of(texts(34)))

    record = prepare(spark, home, source={"path": str(tmp_path / "t")})

    assert record.table.version == 1
    added = Counter(row["added"] for row in tables.read(home.documents).to_pylist())
    assert added == {0: 30, 1: 4}
    assert "messages" not in tables.read(home.documents, version=0).column_names


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"kind": "chat", "text": "body"}, "a source of kind chat has no text; it has messages"),
        ({"kind": "text", "prompt": "q"}, "a source of kind text has no prompt; it has text"),
        ({"kind": "preference", "system": "s"}, "a source of kind preference has no system"),
    ],
)
def test_columns_of_another_kind_are_refused(values: dict[str, str], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        SourceSettings.model_validate({"path": "/t", **values})


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"kind": "chat", "messages": "talk"}, "no column 'talk' for prepare.sources.messages"),
        ({"kind": "chat", "messages": "q"}, r"messages column 'q' is of type string, wanted array<struct<role string"),
        ({"kind": "instruction", "prompt": "q"}, "no column 'response' for prepare.sources.response"),
        ({"kind": "instruction", "prompt": "q", "response": "messages"}, "response column 'messages' is of type array"),
        ({"kind": "preference", "prompt": "q"}, "no column 'chosen' for prepare.sources.chosen"),
    ],
)
def test_columns_that_do_not_fit_are_named(home: Home, tmp_path: Path, values: dict[str, str], expected: str) -> None:
    table_of(tmp_path / "t", [{"q": "a question", "messages": asked(1)}])

    with pytest.raises(SourceError, match=expected):
        sources.resolve(SourceSettings.model_validate({"path": str(tmp_path / "t"), **values}), home=home)


@pytest.mark.spark
def test_an_array_of_something_else_is_no_conversation(spark: "SparkSession", home: Home, tmp_path: Path) -> None:
    data = pa.table({"id": ["a"], "messages": pa.array([[{"role": "user", "text": "b"}]])})
    write_deltalake(tmp_path / "t", data)

    with pytest.raises(SourceError, match=r"of type array<struct<role:string,text:string>>, wanted array<struct<role:"):
        prepare(spark, home, source={"path": str(tmp_path / "t"), "kind": "chat"})


def test_a_text_sources_fingerprint_knows_nothing_of_other_kinds(home: Home, tmp_path: Path) -> None:
    make_table(tmp_path / "t", rows_of(texts(3)))

    identity = sources.resolve(SourceSettings(path=str(tmp_path / "t")), home=home).identity()

    assert json.dumps(identity, sort_keys=True) == json.dumps(
        {"name": "t", "version": 0, "kind": "text", "id": ["id"], "text": "text", "updated": None, "where": None,
         "purposes": [], "weight": 1.0}, sort_keys=True,
    )  # fmt: skip
