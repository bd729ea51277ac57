"""The comparison of members with their centre, against Python's own sets."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.prepare.duplicates.compare import alike, jaccard, shingle_sets

Row = tuple[str, int, int, str, str]


def batch(rows: Sequence[Row]) -> pa.RecordBatch:
    columns = [pa.array(list(column)) for column in zip(*rows, strict=True)]
    return pa.RecordBatch.from_arrays(columns, names=["centre", "part", "role", "sha256", "text"])


def pairs(batches: Sequence[pa.RecordBatch], *, threshold: float = 0.8) -> list[tuple[str, str]]:
    found = [made.to_pydict() for made in alike(batches, threshold=threshold, words=1)]
    return [pair for one in found for pair in zip(one["sha256"], one["centre"], strict=True)]


hashes = st.sets(st.integers(0, 12))


@given(one=hashes, other=hashes)
def test_jaccard_is_that_of_sets(one: set[int], other: set[int]) -> None:
    found = jaccard(*(np.array(sorted(some), np.uint64) for some in (one, other)))
    assert found == pytest.approx(len(one & other) / len(one | other) if one | other else 0)


@given(texts=st.lists(st.lists(st.sampled_from("abcdefg"), max_size=30), max_size=6), slice_bytes=st.integers(8, 100))
@settings(deadline=None)
def test_every_text_has_its_set_whatever_the_slices(texts: list[list[str]], slice_bytes: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tessera.prepare.duplicates.shingles.SLICE_BYTES", slice_bytes)
        sets = list(shingle_sets(pa.array([" ".join(words) for words in texts], pa.string()), words=1))

    assert [len(some) for some in sets] == [len(set(words)) for words in texts]
    assert all((np.diff(some) > 0).all() for some in sets)


def test_members_reach_the_threshold_exactly() -> None:
    """8 words of 10 are in both: 0.8; then 8 of 11."""
    rows = [
        ("c", 0, 0, "c", "1 2 3 4 5 6 7 8 9"),
        ("c", 0, 1, "d", "1 2 3 4 5 6 7 8 x"),
        ("c", 0, 1, "e", "1 2 3 4 5 6 7 8 x y"),
    ]
    assert pairs([batch(rows)]) == [("d", "c")]
    assert pairs([batch(rows)], threshold=0.7) == [("d", "c"), ("e", "c")]


def test_a_centre_holds_over_batches_and_no_further() -> None:
    rows = [
        ("a", 0, 0, "a", "same words"),
        ("a", 0, 1, "b", "same words"),
        ("a", 0, 1, "c", "Same, words!"),
        ("a", 1, 1, "d", "same words"),  # the text of its centre is absent in this part
        ("b", 0, 1, "e", "same words"),
        ("x", 0, 0, "x", "..."),
        ("x", 0, 1, "y", "!!!"),  # no words are no common words
    ]
    assert pairs([batch([row]) for row in rows]) == [("b", "a"), ("c", "a")]
