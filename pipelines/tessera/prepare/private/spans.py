"""Where private data lies in a text, and what stands beside it.

All detectors read UTF-8 as bytes: what they look for is ASCII but for a few letters, a text within an Arrow column is
then read where it lies, and no offset has to be turned from characters to bytes. Each costs time in proportion to the
text: they look at no more than a window of fixed size around what they find.
"""

from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

Text = bytes | memoryview
"""UTF-8; a memoryview of a column's values is as good, and copies nothing."""

GAP = rb"(?:[ .\-/]|\xc2\xa0|\xe2\x80[\x90\x91\x93\xaf])"
"""What people put between groups of digits: space, point, hyphen, slash; spaces and hyphens that do not break."""

PIECE_BYTES = 2**20


class Span(NamedTuple):
    """Private data in bytes `start` to `end` of a text."""

    type: str
    start: int
    end: int


class Detector(NamedTuple):
    """One way in which one type of private data is written."""

    type: str
    may: str
    """For Arrow's RE2 on binary columns: every text in which `find` finds something matches it, within 512 bytes of the
    span's begin. No look-around, and no count above 1000; that it lets too much pass costs time only."""
    find: Callable[[Text], Iterator[Span]]
    """The spans in a text; some may lie over others."""
    family: str
    """Detectors of a family are first asked for together, by one pattern: together they must stay small for RE2, whose
    speed falls from 500 to 100 MB/s when the states of an automaton are too many."""
    reach_bytes: int = 2**10
    """How far from its first byte `find` looks: the longest span, and what must stand behind it."""


def before(data: Text, place: int, *, num_bytes: int) -> bytes:
    """At most so many bytes that end at `place`."""
    return bytes(data[max(0, place - num_bytes) : place])


def after(data: Text, place: int, *, num_bytes: int) -> bytes:
    """At most so many bytes from `place` on."""
    return bytes(data[place : place + num_bytes])


def digits_of(found: bytes) -> str:
    """Its ASCII digits alone."""
    return "".join(chr(byte) for byte in found if 48 <= byte <= 57)


def places(data: Text, *, words: Collection[bytes]) -> Iterator[int]:
    """Where any of the lower-case words begins, in any case, in order.

    20 times faster than `re` with IGNORECASE, and never a copy of more than a piece of the text.
    """
    overlap = max(map(len, words)) - 1
    for start in range(0, len(data), PIECE_BYTES):
        piece = bytes(data[start : start + PIECE_BYTES + overlap]).lower()
        found = sorted({place for word in words for place in _occurrences(piece, word)})
        yield from (start + place for place in found if place < PIECE_BYTES)


def _occurrences(piece: bytes, word: bytes) -> Iterator[int]:
    place = piece.find(word)
    while place >= 0:
        yield place
        place = piece.find(word, place + 1)
