"""The erasures table: it grows by what is new, and its digest is a function of the pairs alone."""

from tessera import erasures, tables
from tessera.home import Home

A, B, S = "a" * 64, "b" * 64, "5" * 64


def test_it_grows_by_what_is_new_and_nothing_else(home: Home) -> None:
    assert not erasures.read(home)
    assert erasures.read(home).digest == ""

    first = erasures.record(home, pairs=[(A, S), (B, None)], why="asked for")
    again = erasures.record(home, pairs=[(A, S), (A, None), (B, None)], why="asked again")
    more = erasures.record(home, pairs=[(B, S)], why="seen with a text")

    assert first == again
    assert tables.open_table(erasures.path(home)).version() == 1
    assert more.doc_ids == {A, B}
    assert more.contents == {S}
    assert len({first.digest, more.digest, ""}) == 3
    rows = tables.read(erasures.path(home)).to_pylist()
    assert sorted((row["doc_id"], row["sha256"], row["why"]) for row in rows if row["sha256"]) == [
        (A, S, "asked for"), (B, S, "seen with a text")
    ]  # fmt: skip


def test_the_digest_knows_neither_order_nor_time(home: Home) -> None:
    one = erasures.record(home, pairs=[(A, S), (B, None)], why="x")

    assert one.digest == erasures.make([(B, None), (A, S), (A, S)]).digest


def test_a_condition_in_sql_takes_these_rows_alone() -> None:
    assert erasures.make([]).condition() == "false"
    assert erasures.make([(A, S)]).condition() == f"doc_id IN ('{A}') OR sha256 IN ('{S}')"
    assert erasures.make([(A, S)]).condition(contents=False) == f"doc_id IN ('{A}')"
