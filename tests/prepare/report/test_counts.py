"""Counts of decisions against the same sums over the rows in plain Python, and the rules that hold between them."""

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, QueryBuilder
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.prepare.report.decisions import DOCUMENTS, TYPES, decision, hashed, write

from tessera.home import Home
from tessera.prepare.report import clusters
from tessera.prepare.report.counts import Count, Counts, count_decisions
from tessera.prepare.report.table import read_counts, write_counts

KINDS = {"wiki": "text", "forum": "chat", "pairs": "preference"}
REASONS = ("duplicate", "near_duplicate", "too_short", "quality:stop_words", "private:card", "contaminated:exam")


@st.composite
def histories(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Decisions in which few contents and groups occur often, so that they form clusters of all sizes."""
    rows = []
    for number in range(draw(st.integers(0, 40))):
        source = draw(st.sampled_from(sorted(KINDS)))
        looked = draw(st.none() | st.fixed_dictionaries({name: st.integers(0, 3) for name in TYPES}))
        reason = draw(st.none() | st.sampled_from(REASONS))
        content = hashed(100 + draw(st.integers(0, 5)) if reason == "duplicate" else number)
        rows.append(
            decision(
                number,
                source=source,
                kind=KINDS[source],
                rows=draw(st.integers(1, 3)),
                private=looked,
                reason=reason,
                sha256=content,
                num_bytes=draw(st.integers(0, 2**34)),
                group=hashed(200 + draw(st.integers(0, 5))),
                contaminated=draw(st.sampled_from([None, None, "exam", "it's"])),
                split=draw(st.sampled_from(["train", "heldout"])),
            )
        )
    return rows


def counted(rows: list[dict[str, Any]]) -> dict[tuple[str | None, str, str], int]:
    """(source, what, name) -> value by one loop over the rows; what is zero is left away."""
    found: Counter[tuple[str | None, str, str]] = Counter()
    contents: dict[str, int] = {}
    near: dict[str, list[int]] = {}
    for row in rows:
        source, times = row["source"], row["rows"]
        found[source, "rows", "read"] += times
        if row["reason"] is None:
            found[source, "documents", row["split"]] += 1
            found[source, "bytes", row["split"]] += row["num_bytes"]
            found[source, "dropped", "duplicate"] += times - 1
            length = row["num_bytes"]
            found[source, "length", str(1 << length.bit_length() >> 1)] += 1
        else:
            found[source, "dropped", row["reason"]] += times
        if row["contaminated"] is not None:
            found[source, "contaminated", row["contaminated"]] += times
        for name, number in (row["private"] or {}).items():
            found[source, "private_values", name] += number * times
            found[source, "private_rows", name] += times * (number > 0)
        found[source, "private_looked_at", "rows"] += times * (row["private"] is not None)
        gone = times if row["reason"] == "duplicate" else times - 1 if row["reason"] is None else 0
        if gone:
            contents[row["sha256"]] = contents.get(row["sha256"], 0) + gone
        if row["reason"] == "near_duplicate":
            near.setdefault(row["group"], []).append(times)
    for gone in contents.values():
        size = 1 << (gone + 1).bit_length() >> 1
        found[None, "exact_clusters", str(size)] += 1
        found[None, "exact_displaced", str(size)] += gone
    for displaced in near.values():
        size = 1 << (len(displaced) + 1).bit_length() >> 1
        found[None, "near_clusters", str(size)] += 1
        found[None, "near_displaced", str(size)] += sum(displaced)
    return {key: value for key, value in found.items() if value}


def as_sums(counts: Counts) -> dict[tuple[str | None, str, str], float]:
    derived = ("tokens", "bytes_per_token", "moved")
    return {(one.source, one.what, one.name): one.value for one in counts.entries if one.what not in derived}


@settings(max_examples=25, deadline=None)
@given(histories(), st.sampled_from([8, 2**21]))
def test_counts_are_those_of_a_loop_in_plain_python(rows, clusters_a_pass):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(clusters, "CLUSTERS_A_PASS", clusters_a_pass)
        home = Home(Path(folder))
        counts = count_decisions(home, decisions=write(home, *rows), documents=DOCUMENTS)

    assert as_sums(counts) == counted(rows)
    assert counts.total("rows") == counts.total("documents") + counts.total("dropped")
    assert counts.total("length") == counts.total("documents")
    assert counts.total("exact_displaced") == counts.total("dropped", name="duplicate")
    assert counts.total("near_displaced") == counts.total("dropped", name="near_duplicate")
    assert all(one.kind == KINDS.get(one.source) for one in counts.entries)


def test_lengths_fall_into_their_class_at_every_power_of_two(home):
    lengths = [0, *(2**power + step for power in range(1, 40) for step in (-1, 0, 1))]
    rows = [decision(number, num_bytes=length) for number, length in enumerate(lengths)]
    counts = count_decisions(home, decisions=write(home, *rows), documents=DOCUMENTS)

    assert counts.by_name("length") == Counter(str(1 << length.bit_length() >> 1) for length in lengths)
    assert list(counts.by_name("length")) == sorted(counts.by_name("length"), key=int)


def test_tokens_are_estimated_from_a_measured_ratio_or_by_assumption(home):
    decisions = write(home, decision(1, num_bytes=1000), decision(2, num_bytes=300, split="heldout"))
    assumed = count_decisions(home, decisions=decisions, documents=DOCUMENTS)
    measured = count_decisions(home, decisions=decisions, documents=DOCUMENTS, bytes_per_token=3.0)

    assert assumed.by_name("tokens") == {"heldout": 75, "train": 250}
    assert assumed.by_name("bytes_per_token") == {"assumed": 4.0}
    assert measured.by_name("tokens") == {"heldout": 100, "train": 333}
    assert measured.by_name("bytes_per_token") == {"measured": 3.0}
    assert (assumed.tokens_are_measured, measured.tokens_are_measured) == (False, True)


def test_copies_of_a_row_may_be_called_otherwise(home):
    decisions = write(home, decision(1, rows=3), decision(2, reason="duplicate", sha256=hashed(1)))
    counts = count_decisions(home, decisions=decisions, documents=DOCUMENTS, extra_copies="superseded")

    assert counts.by_name("dropped") == {"duplicate": 1, "superseded": 2}
    assert counts.by_name("exact_clusters") == {"2": 1}
    assert counts.by_name("exact_displaced") == {"2": 1}


def test_the_pinned_version_is_counted(home):
    first = write(home, decision(1), decision(2))
    write(home, decision(1))

    assert count_decisions(home, decisions=first, documents=DOCUMENTS).total("rows") == 2


def test_the_source_with_most_rows_comes_first(home):
    rows = [decision(1, source="a", kind="chat"), *(decision(number, source="z") for number in range(2, 5))]
    counts = count_decisions(home, decisions=write(home, *rows), documents=DOCUMENTS)

    assert counts.sources == {"z": "text", "a": "chat"}
    assert list(counts.sources) == ["z", "a"]
    assert counts.by_source("documents") == {"z": {"train": 3}, "a": {"train": 1}}
    assert counts.by_source("dropped") == {"z": {}, "a": {}}


def make(version: int, *entries: Count) -> Counts:
    decisions = DOCUMENTS.model_copy(update={"name": "decisions", "path": "tables/decisions", "version": version + 1})
    return Counts(DOCUMENTS.model_copy(update={"version": version}), decisions, entries)


def test_the_table_has_a_version_once_and_keeps_the_others(home):
    rows, moved = Count("wiki", "text", "rows", "read", 3), Count(None, None, "moved", "documents", 0)
    write_counts(home, make(0, moved, rows))
    write_counts(home, make(1, rows))
    written = write_counts(home, make(1, Count("wiki", "text", "rows", "read", 5)))

    assert written.version == 2
    found = pa.table(
        QueryBuilder()
        .register("counts", DeltaTable(home.tables / "prepare_counts"))
        .execute("SELECT version, sum(value) AS value FROM counts WHERE what = 'rows' GROUP BY 1 ORDER BY 1")
    )
    assert found.to_pylist() == [{"version": 0, "value": 3}, {"version": 1, "value": 5}]
    assert read_counts(home, documents=make(0).documents) == make(0, moved, rows)
    assert read_counts(home, documents=make(4).documents) is None


def test_there_are_no_counts_before_the_first(home):
    assert read_counts(home, documents=DOCUMENTS) is None
