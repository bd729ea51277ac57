"""What happens to private data found in a text.

A value is replaced by its type, `<EMAIL>`, or by type and pseudonym, `<EMAIL:0c4f...>`: the first 12 digits of
HMAC-SHA256 (RFC 2104) of the value in its normal form, so that equal values stay equal in all rows and tables that were
prepared with the same key, and nobody without it can try values out. 48 bits: among a million values, two share a
pseudonym with probability 0.2 %.

All else stays byte for byte. Placeholders are never taken for private data, nor is what they say taken for a word
beside a number; and replacing goes on until nothing is found, as a number may stand free only once its neighbour is
gone. Hence a second run finds nothing.

A chain of values that touch frees one a round. From the second round on only the surroundings of what was replaced are
read again, so that the time is in proportion to the text however many rounds it takes; the whole is read once more at
the end.
"""

import hashlib
import hmac
import ipaddress
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter

import pyarrow as pa

from tessera.prepare.private import detect, national_ids, phones, prefilter
from tessera.prepare.private.settings import TYPES
from tessera.prepare.private.spans import Detector, Span, Text

PSEUDONYM_DIGITS = 12
PLACEHOLDER = re.compile(rb"<(?:%s)(?::[0-9a-f]{%d})?>" % ("|".join(map(str.upper, TYPES)).encode(), PSEUDONYM_DIGITS))
REPLACED = ("mask", "pseudonymise")

PIECE_BYTES = 2**8
"""Of a text with chains of values; an edit costs its piece and what lies around it."""


@dataclass(frozen=True)
class Treated:
    """A text after its private data was acted on."""

    data: bytes | None
    """The new text; None where it stays as it is."""
    counts: Mapping[str, int]
    """Type -> values found; without those that have none."""


@dataclass(frozen=True)
class Treatment:
    """What is done about each type."""

    actions: Mapping[str, str]
    """Of the types that are looked for; see PrivateSettings."""
    key: bytes | None = field(default=None, repr=False)
    """Of the pseudonyms; needed where there are any."""

    def apply(self, data: Text, *, by: Collection[Detector]) -> Treated:
        """Finds private data by the detectors, and replaces it where that is the action.

        The text is read twice where there was something to replace, and once more where that freed something else.
        """
        spans = found(data, by=by)
        counts = Counter(span.type for span in spans)
        replaced: bytes | None = None
        while spans := self._to_replace(spans):
            replaced, _ = self._replace(data, spans=spans)
            data = replaced
            if spans := self._to_replace(found(data, by=by)):
                replaced = data = self._settle(data, spans=spans, by=by, counts=counts)
                spans = self._to_replace(found(data, by=by))
                counts.update(span.type for span in spans)
        return Treated(data=replaced, counts=counts)

    def _to_replace(self, spans: Sequence[Span]) -> list[Span]:
        return [span for span in spans if self.actions[span.type] in REPLACED]

    def _settle(self, data: Text, *, spans: Sequence[Span], by: Collection[Detector], counts: Counter[str]) -> bytes:
        """Replaces spans, and then what that frees around them, until it frees nothing more; adds to `counts`.

        The text is held in pieces, and of each round only the pieces around its placeholders are read in the next.
        """
        counts.update(span.type for span in spans)
        data, places = self._replace(data, spans=spans)
        by = _hopeful(data, by=by)
        reach_bytes = max((detector.reach_bytes for detector in by), default=0)
        pieces = [data[start : start + PIECE_BYTES] for start in range(0, len(data), PIECE_BYTES)]
        changed = {place // PIECE_BYTES for place in places}
        while changed:
            stretches = list(_around(pieces, changed, num_bytes=detect.BEFORE_BYTES + reach_bytes))
            changed = set()
            for first, last in stretches:
                text = b"".join(pieces[first:last])
                start = detect.BEFORE_BYTES if first else 0
                end = len(text) - (reach_bytes if last < len(pieces) else 0)
                spans = [span for span in self._to_replace(found(text, by=by)) if start <= span.start < end]
                if spans:
                    counts.update(span.type for span in spans)
                    text, places = self._replace(text, spans=spans)
                    size = -(-len(text) // (last - first))
                    pieces[first:last] = [text[size * place : size * (place + 1)] for place in range(last - first)]
                    changed.update(first + place // size for place in places)
        return b"".join(pieces)

    def _replace(self, data: Text, *, spans: Sequence[Span]) -> tuple[bytes, list[int]]:
        """The new text, and the first and the last byte of each placeholder in it."""
        view, place, num_bytes = memoryview(data), 0, 0
        pieces: list[Text] = []
        edges: list[int] = []
        for span in spans:
            pieces += [view[place : span.start], self._placeholder(span, bytes(view[span.start : span.end]))]
            num_bytes += span.start - place + len(pieces[-1])
            edges += [num_bytes - len(pieces[-1]), num_bytes - 1]
            place = span.end
        return b"".join([*pieces, view[place:]]), edges

    def _placeholder(self, span: Span, value: bytes) -> bytes:
        name = span.type.upper()
        if self.actions[span.type] == "mask":
            return f"<{name}>".encode()
        assert self.key is not None
        digest = hmac.new(self.key, normal(span.type, value=value), hashlib.sha256).hexdigest()
        return f"<{name}:{digest[:PSEUDONYM_DIGITS]}>".encode()


def found(data: Text, *, by: Collection[Detector]) -> list[Span]:
    """Private data, but for what lies in a placeholder or reaches into one."""
    spans = detect.find(data, by=by)
    if not spans:
        return spans
    edges = [match.span() for match in PLACEHOLDER.finditer(data)]
    return [span for span in spans if not (_within(edges, span.start) or _within(edges, span.end - 1))]


def normal(kind: str, *, value: bytes) -> bytes:
    """The form of a value that all ways of writing it have in common."""
    if kind == "email":
        return value.decode().lower().encode()
    if kind == "phone":
        return phones.normal(value).encode()
    if kind in ("card", "iban", "national_id"):
        return national_ids.normal(value).encode()
    if kind == "ip":
        return ipaddress.ip_address(value.decode()).compressed.encode()
    return value


def _hopeful(data: Text, *, by: Collection[Detector]) -> list[Detector]:
    """The detectors that may find something in the text; of a short one, all."""
    if len(data) < prefilter.BLOCK_BYTES:
        return list(by)
    values = pa.array([bytes(data)], pa.large_binary())
    passed = {id(detector) for detector, places in prefilter.passing(values, by=by) if len(places)}
    return [detector for detector in by if id(detector) in passed]


def _around(pieces: Sequence[bytes], changed: Collection[int], *, num_bytes: int) -> Iterator[tuple[int, int]]:
    """Runs of pieces, (first, behind the last), with so many bytes on both sides of each changed piece; apart."""
    runs = []
    for place in changed:
        first, last = place, place + 1
        room = num_bytes
        while first > 0 and room > 0:
            first -= 1
            room -= len(pieces[first])
        room = num_bytes
        while last < len(pieces) and room > 0:
            room -= len(pieces[last])
            last += 1
        runs.append((first, last))
    return prefilter.merged(runs)


def _within(edges: Sequence[tuple[int, int]], place: int) -> bool:
    """Whether the byte at `place` lies in one of the stretches, which are in order."""
    number = bisect_right(edges, place, key=itemgetter(0))
    return number > 0 and place < edges[number - 1][1]
