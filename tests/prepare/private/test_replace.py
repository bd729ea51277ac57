"""Placeholders and pseudonyms: what changes, what stays, and that a second run finds nothing."""

import hashlib
import hmac
import re
import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.prepare.private import detect, prefilter, replace
from tessera.prepare.private.replace import PLACEHOLDER, Treatment, found
from tessera.prepare.private.settings import TYPES
from tessera.prepare.private.spans import Detector, Span

DETECTORS = detect.detectors()
KEY = b"an example of a key"
MASK = Treatment(actions=dict.fromkeys(TYPES, "mask"))
PSEUDONYMS = Treatment(actions=dict.fromkeys(TYPES, "pseudonymise"), key=KEY)

VALUES = (
    "eva@example.org", "+49 30 123456", "06 12 34 56 78", "555-123-4567", "4111 1111 1111 1111", "4111111111111111",
    "DE89370400440532013000", "192.168.1.17", "2001:db8::1", "54362315K", "219-09-9999", "hunter2!x", "111222333",
    "AKIA" "IOSFODNN7EXAMPLF", "1234567",
)  # fmt: skip
BETWEEN = (
    "password=", "postgres://u:", "@host/db", "tel ", "PHONE ", "BSN ", "<EMAIL>", "<CARD:012345678901>", "<PHONE", ">",
    "-----BEGIN PRIVATE KEY-----", "-----END PRIVATE KEY-----", 'secret: "', " ", "\n", ".", ":", "-",
    "é", "猫", "0", "a",
)  # fmt: skip
PIECES = st.lists(st.sampled_from(VALUES + BETWEEN), max_size=14).map(lambda pieces: "".join(pieces).encode())


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Write to eva@example.org or call +49 30 123456.", "Write to <EMAIL> or call <PHONE>."),
        ("postgres://app:s3cr3t-pw@db.example/app", "postgres://app:<SECRET>@db.example/app"),
        ("mssql://scott:tiger99@mssql2017:1433/a?b=ODBC", "mssql://scott:<SECRET>@mssql2017:1433/a?b=ODBC"),
        ("naïve 猫: 4111 1111 1111 1111\r\n\x00", "naïve 猫: <CARD>\r\n\x00"),
        ("4111 1111 1111 1111 06 12 34 56 78", "<CARD> <PHONE>"),
    ],
)
def test_values_are_masked_and_the_rest_stays(text: str, wanted: str) -> None:
    treated = MASK.apply(text.encode(), by=DETECTORS)

    assert treated.data == wanted.encode()
    assert sum(treated.counts.values()) == wanted.count("<")


def test_counting_changes_nothing() -> None:
    treated = Treatment(actions=dict.fromkeys(TYPES, "count")).apply(b"a@b.org, c@d.org, 192.168.1.17", by=DETECTORS)

    assert treated.data is None
    assert treated.counts == {"email": 2, "ip": 1}


@pytest.mark.parametrize(
    ("kind", "normal", "written"),
    [
        ("email", "eva@example.org", ["eva@example.org", "Eva@Example.ORG"]),
        ("phone", "+4930123456", ["+49 30 123456", "+49 (0)30 123456", "0049 30-123456", "+49 30 123456 ext. 12"]),
        ("card", "4111111111111111", ["4111111111111111", "4111 1111 1111 1111", "4111-1111-1111-1111"]),
        ("iban", "DE89370400440532013000", ["DE89370400440532013000", "de89 3704 0044 0532 0130 00"]),
        ("ip", "2001:db8::1", ["2001:db8::1", "2001:0DB8:0:0:0:0:0:1"]),
        ("national_id", "54362315K", ["54362315K", "54.362.315-K", "54362315-k"]),
    ],
)
def test_equal_values_have_one_pseudonym_however_written(kind: str, normal: str, written: list[str]) -> None:
    digest = hmac.new(KEY, normal.encode(), hashlib.sha256).hexdigest()[:12]

    for value in written:
        assert PSEUDONYMS.apply(value.encode(), by=DETECTORS).data == f"<{kind.upper()}:{digest}>".encode()


def test_a_pseudonym_is_no_number_itself() -> None:
    card = b"501800000009"

    assert MASK.apply(b"no. " + card, by=DETECTORS).data == b"no. <CARD>"
    assert MASK.apply(b"no. <EMAIL:" + card + b">", by=DETECTORS).data is None


def test_another_key_gives_other_pseudonyms_and_none_is_shown() -> None:
    other = Treatment(actions=PSEUDONYMS.actions, key=b"another such a key")

    assert other.apply(b"eva@example.org", by=DETECTORS) != PSEUDONYMS.apply(b"eva@example.org", by=DETECTORS)
    assert "example of a key" not in repr(PSEUDONYMS)


@settings(max_examples=500, deadline=None)
@given(PIECES, st.sampled_from([MASK, PSEUDONYMS]))
def test_a_second_run_finds_nothing(text: bytes, treatment: Treatment) -> None:
    once = treatment.apply(text, by=DETECTORS)
    after = text if once.data is None else once.data

    again = treatment.apply(after, by=DETECTORS)

    assert again.data is None
    assert again.counts == {}
    assert found(after, by=DETECTORS) == []


@settings(max_examples=300, deadline=None)
@given(PIECES)
def test_what_is_between_placeholders_is_as_it_was(text: bytes) -> None:
    after = MASK.apply(text, by=DETECTORS).data
    if after is not None:
        kept = map(re.escape, PLACEHOLDER.split(after))
        assert re.fullmatch(b"(?s:.+?)".join(kept), text)


ONE_A_ROUND = Detector(
    "phone",
    r"x[0-9]{6}",
    lambda data: (Span("phone", *match.span()) for match in re.finditer(rb"x(?<!\wx)\d{6}", data)),
    "numbers",
)
"""Of x123456x123456x123456 the first; it frees the next."""


def rescanned(data: bytes, *, treatment: Treatment, by: tuple[Detector, ...] = DETECTORS) -> tuple[bytes, Counter[str]]:
    """Every round reads and replaces in the whole text."""
    counts: Counter[str] = Counter()
    while spans := found(data, by=by):
        counts.update(span.type for span in spans)
        for span in reversed(spans):
            one = treatment._replace(
                data[span.start : span.end], spans=[span._replace(start=0, end=span.end - span.start)]
            )
            data = data[: span.start] + one[0] + data[span.end :]
    return data, counts


CHAINED = (
    "+14155552671", "+7 912 345 67 89", "415-555-2671", "(415) 555-2671", "06 12 34 56 78 ", "0171 1234567 ",
    "4111111111111111-", "4111 1111 1111 1111 ", "219-09-9999-", "811218-9876-", "12345678Z-", "192.168.10.17.",
    "a@b.co", "+49-30-123456-",
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(CHAINED + VALUES + BETWEEN), st.integers(1, 5)), max_size=9),
    st.sampled_from([MASK, PSEUDONYMS]),
)
def test_reading_only_around_what_was_replaced_makes_no_difference(
    units: list[tuple[str, int]], treatment: Treatment
) -> None:
    text = "".join(unit * number for unit, number in units).encode()

    done = treatment.apply(text, by=DETECTORS)

    assert (text if done.data is None else done.data, done.counts) == rescanned(text, treatment=treatment)


def test_nor_does_it_in_texts_of_many_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chains far apart and near one another, in pieces of 16 bytes."""
    monkeypatch.setattr(replace, "PIECE_BYTES", 16)
    text = (
        "(415) 555-2671" * 20 + " filler, nothing in it " * 200 + "4111 1111 1111 1111 06 12 34 56 78 " * 9
    ).encode()
    assert len(text) > prefilter.BLOCK_BYTES

    done = MASK.apply(text * 2, by=DETECTORS)

    assert (done.data, done.counts) == rescanned(text * 2, treatment=MASK)


@pytest.mark.parametrize("unit", CHAINED)
def test_chains_of_values_are_replaced_in_time_proportional_to_them(unit: str) -> None:
    """Of each, a text and one twice as long. Rereading the whole text each round would take four times as long."""
    seconds = []
    for num_bytes in (12_000, 24_000):
        data = (unit * (num_bytes // len(unit))).encode()
        start = time.process_time()
        MASK.apply(data, by=DETECTORS)
        seconds.append(time.process_time() - start)

    assert seconds[1] <= 3 * seconds[0] + 0.2
