"""Private data in one text: all types at once, without overlaps.

Names of persons are left out on purpose. What finds them in running text is a trained tagger (spaCy, Presidio over it,
GLiNER, Stanza), and each takes its model from a hub or as a wheel of hundreds of megabytes; without a model there are
word lists (`names-dataset`, 3 GB in memory) and parsers of strings already known to be a name (`nameparser`,
`probablepeople`), which take every May, Will and Rose for a person.

Cost: 20 to 100 MB/s a detector, in time proportional to the text whatever it holds; a long text is asked for by
`prefilter` first, as columns of texts are, and nothing of it is copied.
"""

from bisect import bisect_left
from collections.abc import Collection, Iterator

from tessera.prepare.private import addresses, credentials, national_ids, payments, phones, prefilter
from tessera.prepare.private.settings import COUNTRIES, TYPES
from tessera.prepare.private.spans import Detector, Span, Text

PRIORITY = ("secret", "iban", "card", "national_id", "ip", "email", "phone")
"""Which of two that lie on the same bytes counts: the one that says most about what it found."""

LONG_BYTES = 2**16
"""A longer text is read only in the stretches that may hold something."""
BEFORE_BYTES = 2**10
"""Read ahead of such a stretch: more than what any detector looks back."""


def detectors(*, types: Collection[str] = TYPES, countries: Collection[str] = COUNTRIES) -> tuple[Detector, ...]:
    """Those of these types; national ids of these countries."""
    every = (
        *addresses.DETECTORS,
        *phones.DETECTORS,
        *payments.DETECTORS,
        *national_ids.detectors(countries=countries),
        *credentials.DETECTORS,
    )
    return tuple(detector for detector in every if detector.type in types)


def find(data: Text, *, by: Collection[Detector]) -> list[Span]:
    """Private data in UTF-8, in order, none over another.

    Of spans that overlap the longest counts; of equally long ones that which comes first in PRIORITY, then in the text.
    """
    if len(data) <= LONG_BYTES:
        return without_overlaps({span for detector in by for span in detector.find(data)})
    stretches = prefilter.regions(data, by=by)
    return without_overlaps({span for stretch in stretches for span in _find_within(data, *stretch)})


def without_overlaps(spans: Collection[Span]) -> list[Span]:
    """Those that count, in order. O(n log n)."""
    kept: list[Span] = []
    for cluster in _clusters(sorted(spans, key=_start)):
        chosen: list[Span] = []
        for span in sorted(cluster, key=_rank):
            place = bisect_left(chosen, span.start, key=_start)
            after_left = place == 0 or chosen[place - 1].end <= span.start
            if after_left and (place == len(chosen) or span.end <= chosen[place].start):
                chosen.insert(place, span)
        kept += chosen
    return kept


def _find_within(data: Text, detector: Detector, start: int, end: int) -> Iterator[Span]:
    """Spans that begin from `start` to `end`, found in that stretch and what lies around it."""
    first = max(0, start - BEFORE_BYTES)
    for span in detector.find(memoryview(data)[first : end + detector.reach_bytes]):
        if start <= first + span.start < end:
            yield Span(span.type, first + span.start, first + span.end)


def _clusters(spans: list[Span]) -> Iterator[list[Span]]:
    """Runs of spans in which each begins before the furthest end of those before it."""
    cluster: list[Span] = []
    end = 0
    for span in spans:
        if cluster and span.start >= end:
            yield cluster
            cluster = []
        cluster.append(span)
        end = max(end, span.end)
    if cluster:
        yield cluster


def _start(span: Span) -> int:
    return span.start


def _rank(span: Span) -> tuple[int, int, int]:
    return (span.start - span.end, PRIORITY.index(span.type), span.start)
