"""What happens to private data found in a text.

A value is replaced by its type, `<EMAIL>`, or by type and pseudonym, `<EMAIL:0c4f...>`: the first 12 digits of
HMAC-SHA256 (RFC 2104) of the value in its normal form, so that equal values stay equal in all rows and tables that were
prepared with the same key, and nobody without it can try values out. 48 bits: among a million values, two share a
pseudonym with probability 0.2 %.

All else stays byte for byte. Placeholders are never taken for private data, nor is what they say taken for a word
beside a number; and replacing goes on until nothing is found, as a number may stand free only once its neighbour is
gone. Hence a second run finds nothing.
"""

import hashlib
import hmac
import ipaddress
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter

from tessera.prepare.private import detect, national_ids, phones
from tessera.prepare.private.settings import TYPES
from tessera.prepare.private.spans import Detector, Span, Text

PSEUDONYM_DIGITS = 12
PLACEHOLDER = re.compile(rb"<(?:%s)(?::[0-9a-f]{%d})?>" % ("|".join(map(str.upper, TYPES)).encode(), PSEUDONYM_DIGITS))
REPLACED = ("mask", "pseudonymise")


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

        The text is copied once a round; a second round is needed where there was something to replace, a third hardly
        ever.
        """
        spans = found(data, by=by)
        counts = Counter(span.type for span in spans)
        replaced: bytes | None = None
        while spans := [span for span in spans if self.actions[span.type] in REPLACED]:
            replaced = data = self._replace(data, spans=spans)
            spans = found(data, by=by)
            counts.update(span.type for span in spans if self.actions[span.type] in REPLACED)
        return Treated(data=replaced, counts=counts)

    def _replace(self, data: Text, *, spans: Sequence[Span]) -> bytes:
        view, place = memoryview(data), 0
        pieces: list[Text] = []
        for span in spans:
            pieces += [view[place : span.start], self._placeholder(span, bytes(view[span.start : span.end]))]
            place = span.end
        return b"".join([*pieces, view[place:]])

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


def _within(edges: Sequence[tuple[int, int]], place: int) -> bool:
    """Whether the byte at `place` lies in one of the stretches, which are in order."""
    number = bisect_right(edges, place, key=itemgetter(0))
    return number > 0 and place < edges[number - 1][1]
