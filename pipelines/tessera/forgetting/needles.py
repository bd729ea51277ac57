"""What a search looks for: stretches of the erased texts that no other row has, in every form they may be stored in.

All needles are looked for at once, in time that grows with the bytes and not with the number of needles: the first
eight bytes at each offset are hashed into a table of bits, the few that pass are hashed again over sixteen bytes, and
what is left is compared. 70 to 100 MB a second and core. Needles live in memory only.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

WINDOW_CHARS = 24
"""Delta keeps 32 characters of a minimum or maximum; a stretch of this length fits at its head."""
KEY_BYTES = 16
"""Shorter needles cannot be looked for."""
DISTINCT_CHARS = 7
"""Stretches of fewer characters, such as a ruled line, say nothing."""
CANDIDATES = 256
"""Stretches of a text that are tried."""
KEPT = 32
"""Stretches of a text, of those that no other row has, that are looked for."""
BLOCK = 2**15

_MIX = np.uint64(0x9E3779B97F4A7C15)
_MIX_2 = np.uint64(0xC2B2AE3D27D4EB4F)

Found = set[int]


@dataclass(frozen=True)
class Stretch:
    """A part of the text of one erased row."""

    row: int
    """Which row, by number."""
    text: str
    forms: tuple[bytes, ...]
    """How it may be stored."""


def stretches(row: int, *, text: str) -> list[Stretch]:
    """Windows over a text, its head and its end among them; none of a text that is too short to be told apart."""
    if len(text.encode("utf-8", "replace")) < KEY_BYTES:
        return []
    last = max(len(text) - WINDOW_CHARS, 0)
    starts = sorted({int(start) for start in np.linspace(0, last, min(CANDIDATES, last + 1))})
    parts = (text[start : start + WINDOW_CHARS] for start in starts)
    return [Stretch(row, part, text_forms(part)) for part in parts if _says_something(part)]


def token_stretches(row: int, *, windows: Iterable[tuple[Sequence[int], str]]) -> list[Stretch]:
    """The same of token ids, each with the text that it stands for."""
    return [
        Stretch(row, text, token_forms(ids)) for ids, text in windows if _says_something(text) and "\ufffd" not in text
    ]


def text_forms(text: str) -> tuple[bytes, ...]:
    """UTF-8, UTF-16 of both orders, and as JSON writes it: plain and escaped, once and within JSON."""
    forms = [text.encode("utf-8", "surrogatepass")]
    forms += [text.encode(encoding, "surrogatepass") for encoding in ("utf-16-le", "utf-16-be")]
    for ascii_only in (True, False):
        once = json.dumps(text, ensure_ascii=ascii_only)[1:-1]
        twice = json.dumps(once, ensure_ascii=ascii_only)[1:-1]
        forms += [one.encode("utf-8", "surrogatepass") for one in (once, twice)]
    return tuple(dict.fromkeys(form for form in forms if len(form) >= KEY_BYTES))


def token_forms(ids: Sequence[int]) -> tuple[bytes, ...]:
    """As shards store ids: two or four bytes each, little-endian."""
    kinds = ("<u4", "<u2") if max(ids) < 2**16 else ("<u4",)
    return tuple(data for kind in kinds if len(data := np.array(ids, kind).tobytes()) >= KEY_BYTES)


class Needles:
    """Byte strings that are all looked for at once.

    Args:
        needles: (bytes, number); several may share a number, which is what is found.
    """

    def __init__(self, needles: Iterable[tuple[bytes, int]]) -> None:
        self._by_key: dict[int, list[tuple[bytes, int]]] = {}
        listed = sorted(set(needles))
        self.longest = max((len(needle) for needle, _ in listed), default=0)
        bits = max(16, min(26, len(listed).bit_length() + 6))
        self._shift = np.uint64(64 - bits)
        self._passes = np.zeros(2**bits, bool)
        for needle, number in listed:
            assert len(needle) >= KEY_BYTES, "a needle is too short to be looked for"
            words = np.frombuffer(needle[:KEY_BYTES], "<u8")
            self._passes[(words[:1] * _MIX) >> self._shift] = True
            self._by_key.setdefault(int(_key(words[:1], words[1:])[0]), []).append((needle, number))
        self._keys = np.array(sorted(self._by_key), np.uint64)

    def find(self, data: Any) -> Found:
        """The numbers of the needles within `data`, a buffer of bytes."""
        found: Found = set()
        size = len(data) - KEY_BYTES + 1
        if size <= 0 or not len(self._keys):
            return found
        words: NDArray[np.uint64] = np.ndarray((size + 8,), "<u8", data, strides=(1,))
        for first in range(0, size, BLOCK):
            block = words[first : min(first + BLOCK, size)]
            passed = np.flatnonzero(self._passes[(block * _MIX) >> self._shift]) + first
            if len(passed):
                self._compare(data, passed, words=words, found=found)
        return found

    def _compare(self, data: Any, places: NDArray[np.int64], *, words: NDArray[np.uint64], found: Found) -> None:
        keys = _key(words[places], words[places + 8])
        at = np.searchsorted(self._keys, keys).clip(max=len(self._keys) - 1)
        equal = self._keys[at] == keys
        for place, key in zip(places[equal].tolist(), keys[equal].tolist(), strict=True):
            for needle, number in self._by_key[key]:
                if number not in found and bytes(data[place : place + len(needle)]) == needle:
                    found.add(number)


def own(candidates: Sequence[Stretch], *, other_texts: Iterable[Any]) -> list[Stretch]:
    """The stretches that occur in none of the other rows' texts, given as buffers of UTF-8; KEPT a row and kind."""
    needles = Needles((form, number) for number, one in enumerate(candidates) if len(form := _utf8(one)) >= KEY_BYTES)
    shared: Found = set()
    for data in other_texts:
        shared |= needles.find(data)
    groups: dict[tuple[int, bool], list[Stretch]] = {}
    for number, one in enumerate(candidates):
        if number not in shared and len(_utf8(one)) >= KEY_BYTES:
            groups.setdefault((one.row, one.forms[0] == _utf8(one)), []).append(one)
    return [one for group in groups.values() for one in _spread(group)]


def search_for(kept: Sequence[Stretch]) -> Needles:
    """Needles whose numbers are the rows'."""
    return Needles((form, one.row) for one in kept for form in one.forms)


def _spread(group: list[Stretch]) -> Iterator[Stretch]:
    """At most KEPT of them, the first and the last among them."""
    chosen = sorted({int(place) for place in np.linspace(0, len(group) - 1, min(KEPT, len(group)))})
    return (group[place] for place in chosen)


def _utf8(one: Stretch) -> bytes:
    return one.text.encode("utf-8", "surrogatepass")


def _says_something(text: str) -> bool:
    return len(set(text)) >= DISTINCT_CHARS


def _key(first: NDArray[np.uint64], second: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mixed: NDArray[np.uint64] = (first * _MIX) ^ (second * _MIX_2)
    return mixed
