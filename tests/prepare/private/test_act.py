"""Private data in Arrow batches and in a DataFrame: the columns, the counts, the reason of a dropped row."""

import random
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest

from tessera.prepare.private import detect
from tessera.prepare.private.act import COUNTS, act_on, applied
from tessera.prepare.private.replace import Treatment
from tessera.prepare.private.settings import TYPES, PrivateSettings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

DETECTORS = detect.detectors()
MASK = Treatment(actions=dict.fromkeys(TYPES, "mask"))
CONTENTS = ("text", "prompt", "chosen", "rejected")
MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
SCHEMA = pa.schema([
    ("doc_id", pa.string()), ("text", pa.string()), ("messages", MESSAGES), ("prompt", pa.string()),
    ("chosen", pa.string()), ("rejected", pa.string()), ("unfit", pa.string()), ("updated", pa.int64()),
])  # fmt: skip
SENTENCES = (
    "nothing to see", "write to eva@example.org", "call +49 30 123456 or 555-123-4567",
    "paid with 4111 1111 1111 1111",
    "from 192.168.1.17", "api_key=9f86d081884c7d659a2feaa0c55ad015", "DE89370400440532013000", "DNI 54362315K", "",
    "naïve 猫 1234",
)  # fmt: skip


def batch_of(rows: list[dict[str, object]]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([dict.fromkeys(SCHEMA.names) | row for row in rows], schema=SCHEMA)


def conversation(*contents: str | None) -> list[dict[str, str | None]]:
    return [{"role": ("user", "assistant")[place % 2], "content": content} for place, content in enumerate(contents)]


def random_rows(number: int) -> list[dict[str, object]]:
    rng = random.Random(7)
    rows: list[dict[str, object]] = []
    for key in range(number):
        row: dict[str, object] = {"doc_id": f"d{key}", "updated": key, "unfit": rng.choice([None, None, None, "blank"])}
        for name in CONTENTS:
            row[name] = rng.choice([None, "\n".join(rng.sample(SENTENCES, 3))])
        row["messages"] = rng.choice([None, [], conversation(*rng.sample([*SENTENCES, None], 4))])
        rows.append(row)
    return rows


def by_hand(row: dict[str, object], *, treatment: Treatment) -> dict[str, object]:
    """What `act_on` must make of a row: every detector on every content, one after the other."""
    counts = dict.fromkeys(TYPES, 0)

    def treated(text: object) -> object:
        if text is None or row["unfit"] is not None:
            return text
        done = treatment.apply(str(text).encode(), by=DETECTORS)
        for name, number in done.counts.items():
            counts[name] += number
        return text if done.data is None else done.data.decode()

    new = {name: treated(row[name]) for name in CONTENTS}
    messages = row["messages"]
    if isinstance(messages, list):
        new["messages"] = [one | {"content": treated(one["content"])} for one in messages]
    return row | new | {"private": None if row["unfit"] is not None else counts}


def test_a_batch_is_what_each_of_its_rows_is_alone() -> None:
    rows = random_rows(200)

    made = act_on(batch_of(rows), treatment=MASK, detectors=DETECTORS)

    assert made.to_pylist() == [by_hand(row, treatment=MASK) for row in rows]
    assert made.schema == SCHEMA.append(pa.field("private", COUNTS))
    made.validate(full=True)
    assert sum(row["private"]["email"] for row in made.to_pylist() if row["private"]) > 50


def test_a_slice_of_a_batch_is_read_where_it_lies() -> None:
    rows = random_rows(60)
    part = batch_of(rows).slice(17, 30)

    made = act_on(part, treatment=MASK, detectors=DETECTORS)

    assert made.to_pylist() == [by_hand(row, treatment=MASK) for row in rows[17:47]]


def test_columns_without_private_data_are_handed_on_as_they_are() -> None:
    batch = batch_of([{"text": "nothing at all", "messages": conversation("hello", "hi there")}] * 3)

    made = act_on(batch, treatment=MASK, detectors=DETECTORS)

    for name in ("text", "messages"):
        column = batch.column(name).flatten().field("content") if name == "messages" else batch.column(name)
        new = made.column(name).flatten().field("content") if name == "messages" else made.column(name)
        assert new.buffers()[2].address == column.buffers()[2].address


def test_large_strings_keep_their_type() -> None:
    batch = batch_of([{"text": "eva@example.org"}])
    batch = batch.set_column(1, "text", batch.column("text").cast(pa.large_string()))

    made = act_on(batch, treatment=MASK, detectors=DETECTORS)

    assert made.column("text").type == pa.large_string()
    assert made.column("text").to_pylist() == ["<EMAIL>"]


def test_a_dropped_row_says_the_first_type_and_unfit_rows_keep_their_reason() -> None:
    actions = {"email": "count", "phone": "drop", "secret": "drop"}
    rows = [
        {"text": "call 555-123-4567, password: hunter2!x"}, {"text": "password: hunter2!x"},
        {"text": "eva@example.org"},
        {"text": "call 555-123-4567", "unfit": "too_short"},
        {"messages": conversation("who?", "call 555-123-4567"), "prompt": "call 555-123-4567"},
    ]  # fmt: skip

    made = act_on(
        batch_of(rows), treatment=Treatment(actions=actions), detectors=detect.detectors(types=actions.keys())
    ).to_pylist()

    assert [row["unfit"] for row in made] == ["private:phone", "private:secret", None, "too_short", "private:phone"]
    assert [row["private"] and row["private"]["phone"] for row in made] == [1, 0, 0, None, 2]
    assert made[2]["private"] == dict.fromkeys(TYPES) | {"email": 1, "phone": 0, "secret": 0}
    assert made[2]["text"] == "eva@example.org"


@pytest.mark.parametrize("rows", [[], [{}], [{"messages": []}], [{"text": ""}]])
def test_batches_with_nothing_in_them(rows: list[dict[str, object]]) -> None:
    made = act_on(batch_of(rows), treatment=MASK, detectors=DETECTORS)

    assert made.drop_columns(["private"]).equals(batch_of(rows))
    assert made.column("private").to_pylist() == [dict.fromkeys(TYPES, 0)] * len(rows)


@pytest.mark.spark
def test_a_dataframe_is_acted_on_the_same_in_any_partitions(spark: "SparkSession") -> None:
    rows = random_rows(90)
    settings = PrivateSettings(**dict.fromkeys(TYPES, "mask") | {"email": "pseudonymise"})
    key = b"an example of a key"
    treatment = Treatment(actions=settings.actions, key=key)
    frame = spark.createDataFrame(
        [tuple(row[name] for name in SCHEMA.names) for row in rows],
        "doc_id string, text string, messages array<struct<role:string,content:string>>, prompt string, chosen string, "
        "rejected string, unfit string, updated long",
    )
    wanted = {row["doc_id"]: by_hand(row, treatment=treatment) for row in rows}

    for partitions in (1, 7):
        made = applied(frame.repartition(partitions), settings=settings, key=key)
        assert {row.doc_id: row.asDict(recursive=True) for row in made.collect()} == wanted
        assert made.columns == [*SCHEMA.names, "private"]
