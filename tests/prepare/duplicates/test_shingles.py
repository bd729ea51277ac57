"""Shingles against a slow model that works on Python strings: same words, same equalities, whatever the slices."""

import random
import sysconfig
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.prepare.duplicates import shingles as module
from tessera.prepare.duplicates.shingles import shingles

Shingle = tuple[str, ...]

ALPHABET = "abZ 0,.'\n\x00\tÄßéΩжİȺ漢字かナ한글ไทย—“”\u2019\u00a0\u2003\u3000、。\uff0c\uff21"
ALPHABET += "🐈👍\ufe0f\U00020000\U000e0100"


def words_of(text: str) -> list[str]:
    """The words of a text by its characters, one after another."""
    words, open_word = [], False
    for char in text:
        kind = kind_of(char)
        if kind == "part":
            words[-1:] = [words[-1] + lower(char)] if open_word else [*words[-1:], lower(char)]
        elif kind == "alone":
            words.append(char)
        open_word = kind == "part"
    return words


def lower(char: str) -> str:
    """By single characters, as Arrow does it: the dotted capital i is one letter afterwards."""
    return "i" if char == "İ" else char.lower()


def kind_of(char: str) -> str:
    if char.isascii():
        return "part" if char.isalnum() else "separator"
    name = unicodedata.name(char, "")
    if name.startswith(("CJK UNIFIED", "HIRAGANA", "KATAKANA")):
        return "alone"
    return "part" if unicodedata.category(char)[0] in "LM" and "VARIATION SELECTOR" not in name else "separator"


def model(text: str | None, *, words: int, whole_if_short: bool = True) -> list[Shingle]:
    found = words_of(text or "")
    if len(found) < words:
        return [tuple(found)] if found and whole_if_short else []
    return [tuple(found[i : i + words]) for i in range(len(found) - words + 1)]


def hashed(texts: list[str | None], *, words: int, whole_if_short: bool = True) -> list[list[int]]:
    """The hashes of each text, gathered from however many slices it came in."""
    found: list[list[int]] = [[] for _ in texts]
    for part in shingles(pa.array(texts, pa.string()), words=words, whole_if_short=whole_if_short):
        for row, value in zip(part.rows(), part.hashes, strict=True):
            found[row].append(int(value))
    return found


def check_same_equalities(texts: list[str | None], *, words: int, whole_if_short: bool = True) -> None:
    """One hash for one shingle of the model, and no hash for two."""
    meaning: dict[Shingle, int] = {}
    for text, hashes in zip(texts, hashed(texts, words=words, whole_if_short=whole_if_short), strict=True):
        expected = model(text, words=words, whole_if_short=whole_if_short)
        assert len(hashes) == len(expected)
        for shingle, value in zip(expected, hashes, strict=True):
            assert meaning.setdefault(shingle, value) == value
    assert len(set(meaning.values())) == len(meaning)


documents = st.lists(st.none() | st.text(alphabet=ALPHABET, max_size=40), max_size=8)


@given(texts=documents, words=st.integers(1, 4), whole_if_short=st.booleans())
@settings(max_examples=300, deadline=None)
def test_shingles_are_those_of_the_model(texts: list[str | None], words: int, whole_if_short: bool) -> None:
    check_same_equalities(texts, words=words, whole_if_short=whole_if_short)


@given(texts=documents, words=st.integers(1, 4), slice_bytes=st.integers(24, 200))
@settings(max_examples=200, deadline=None)
def test_slices_change_nothing(texts: list[str | None], words: int, slice_bytes: int) -> None:
    """Long documents are cut between words; every word here is shorter than a slice."""
    short_words = [
        None if text is None else " ".join(text[i : i + 5] for i in range(0, len(text), 5)) for text in texts
    ]
    whole = hashed(short_words, words=words)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SLICE_BYTES", slice_bytes)
        assert hashed(short_words, words=words) == whole


def test_case_punctuation_and_white_space_do_not_matter() -> None:
    plain, *others = hashed(
        ["don t stop at the river", "Don't stop\n\nat the RIVER!", "“Don\u2019t stop — at\u00a0the river…”"], words=3
    )
    assert len(plain) == 4
    assert others == [plain, plain]


def test_documents_do_not_run_into_each_other() -> None:
    first, second, both = hashed(["one two thr", "ee four five", "one two three four five"], words=2)
    assert not set(first) & set(second)
    assert len(set(both) - set(first) - set(second)) == 2  # (two, three) and (three, four)


def test_a_slice_of_an_array_has_the_hashes_of_its_own_texts() -> None:
    texts = pa.array(["left out", None, "the first one", "the second one"])
    (part,) = shingles(texts.slice(2), words=2)
    (alone,) = shingles(pa.array(["the first one", "the second one"], pa.large_string()), words=2)
    assert part.first == 0
    assert part.offsets.tolist() == [0, 2, 4]
    assert part.hashes.tolist() == alone.hashes.tolist()


def test_a_word_longer_than_a_slice_is_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SLICE_BYTES", 64)
    long = "ä" * 1000
    assert hashed([f"a {long} b"], words=1) == hashed([f"a {long} b"], words=1)
    assert hashed([long], words=1) != hashed([long + "ä"], words=1)
    assert hashed([f"x {'漢' * 500}"], words=1)[0][1:] == hashed(["漢"], words=1)[0] * 500


def test_invalid_text_is_refused() -> None:
    with pytest.raises(pa.ArrowInvalid):
        list(shingles(pa.array([b"good", b"b\xffd"]), words=2))


def test_as_many_shingles_as_hashes() -> None:
    """Words of one to three letters, in which a weak hash finds collisions, and of real sources."""
    random.seed(17)
    letters = [" ".join(random.choices(["a", "b", "ab", "ba", "aab", "c"], k=200)) for _ in range(1000)]
    sources = [
        path.read_text(encoding="utf-8", errors="ignore")
        for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:60]
    ]
    expected = {shingle for text in letters + sources for shingle in model(text, words=5)}
    found = {value for hashes in hashed([*letters, *sources], words=5) for value in hashes}
    assert len(expected) > 100_000
    assert len(found) == len(expected)


def test_hashes_are_spread_evenly_in_every_bit() -> None:
    found = np.array(hashed([" ".join(f"w{i}" for i in range(20_000))], words=2)[0], np.uint64)
    ones = [(found >> np.uint64(bit) & np.uint64(1)).mean() for bit in range(64)]
    assert max(abs(np.array(ones) - 0.5)) < 5 * 0.5 / len(found) ** 0.5
