"""Repeated runs of words, against the definition counted out one n-gram at a time."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.prepare.quality import repetition
from tessera.prepare.quality.settings import RepetitionSettings

WORDS = st.sampled_from(["a", "bb", "ccc", "naïve", "猫猫", "#", "-1"])
GAPS = st.sampled_from([" ", "\n", " \t ", "\u3000", "\x1c", "\u00a0"])
TEXTS = st.lists(
    st.lists(st.tuples(WORDS, GAPS), max_size=40).map(lambda pairs: " " + "".join(map("".join, pairs))), max_size=8
)

PROSE = (
    "It was late when the ferry came in and nobody on the pier seemed to know whether another one would follow that "
    "night so most of us walked back up the hill past shuttered shops looking for a place to sleep until morning"
)


def runs(words: list[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]


def within(words: list[str], starts: list[int], n: int) -> int:
    """Characters of the words that lie in at least one run that begins at one of these places."""
    inside = {place for start in starts for place in range(start, start + n)}
    return sum(len(words[place]) for place in inside)


def share(text: str, *, name: str) -> float:
    """By the definition, and one at a time."""
    words, n = text.split(), int("".join(filter(str.isdigit, name)))
    found = runs(words, n)
    if name.startswith("top"):
        counts = Counter(found)
        most = max(counts.values(), default=0)
        best = next((run for run in found if counts[run] == most), None)
        starts = [start for start, run in enumerate(found) if run == best and most > 1]
    else:
        starts = [start for start, run in enumerate(found) if run in found[:start]]
    return within(words, starts, n) / max(sum(map(len, words)), 1)


@given(TEXTS)
@settings(max_examples=300, deadline=None)
def test_shares_are_those_of_the_definition(texts: list[str]) -> None:
    measured = repetition.shares(texts)

    assert set(measured) == {f"top_{n}gram" for n in (2, 3, 4)} | {f"duplicate_{n}gram" for n in range(5, 11)}
    for name, found in measured.items():
        assert found.tolist() == pytest.approx([share(text, name=name) for text in texts]), name


@given(TEXTS, st.integers(1, 60))
@settings(max_examples=100, deadline=None)
def test_a_document_is_judged_alone(texts: list[str], slice_chars: int) -> None:
    """Whatever lies beside it in a batch, and however a batch is cut."""
    limits = RepetitionSettings()
    alone = [repetition.reasons([text], settings=limits)[0] for text in texts]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repetition, "SLICE_CHARS", slice_chars)
        assert repetition.reasons(texts, settings=limits) == alone
    assert repetition.reasons(texts, settings=limits) == alone


def test_python_and_arrow_split_words_at_the_same_characters() -> None:
    texts = [f"a{chr(code)}b" for code in range(0x110000) if not 0xD800 <= code < 0xE000]

    words = repetition._words(texts)

    assert np.diff(words.end_D, prepend=0).tolist() == [len(text.split()) for text in texts]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (PROSE, None),
        ("", None),
        (" \n\t ", None),
        ("once", None),
        (f"{PROSE} {PROSE}", "max_duplicate_5gram"),
        ("so it goes " * 30, "max_top_2gram"),
        (" ".join(f"{word} so it goes" for word in PROSE.split()), "max_top_2gram"),
        (" ".join(f"{word} by the way" for word in PROSE.split()[::2]), "max_top_2gram"),
    ],
)  # fmt: skip
def test_what_the_paper_s_thresholds_drop(text: str, expected: str | None) -> None:
    reason = expected and f"quality:repetition:{expected}"

    assert repetition.reasons([text], settings=RepetitionSettings()) == [reason]


@pytest.mark.parametrize("setting", repetition.SETTINGS)
def test_every_rule_drops_alone_and_no_rule_is_on_when_null(setting: str) -> None:
    off = dict.fromkeys(repetition.SETTINGS)
    text = f"{PROSE} {PROSE}"

    assert repetition.reasons([text], settings=RepetitionSettings(**off)) == [None]
    assert repetition.reasons([text], settings=RepetitionSettings(**{**off, setting: 0.0})) == [
        f"quality:repetition:{setting}"
    ]


def test_a_share_at_its_limit_is_kept() -> None:
    """Ten words of one character, of which two are `a b` again: a share of 0.4 in the most frequent pair."""
    text = "a b c d e f a b g h"
    off = dict.fromkeys(repetition.SETTINGS)

    for limit, expected in ((0.4, None), (0.39, "quality:repetition:max_top_2gram")):
        judged = repetition.reasons([text], settings=RepetitionSettings(**{**off, "max_top_2gram": limit}))
        assert judged == [expected]
