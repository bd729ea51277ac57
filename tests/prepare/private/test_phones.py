"""Phone numbers beside other numbers and words: what is found whole, what is left, and what they must not swallow."""

import pytest

from tessera.prepare.private import detect

DETECTORS = detect.detectors()


def phones(text: str) -> list[str]:
    data = text.encode()
    return [data[span.start : span.end].decode() for span in detect.find(data, by=DETECTORS) if span.type == "phone"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("0151 2345 6789", ["0151 2345 6789"]), ("0812-3456-7890", ["0812-3456-7890"]),
        ("00442079460958", ["00442079460958"]),
        ("10:00 020 7946 0958", ["020 7946 0958"]), ("2024-05-06 020 7946 0958", ["020 7946 0958"]),
        ("06 12 34 56 78 75001 Paris", ["06 12 34 56 78"]), ("415 555 2671 94105", ["415 555 2671"]),
        ("Apt 5 415 555 2671", ["415 555 2671"]), ("Hauptstr. 12 030 123 4567", ["030 123 4567"]),
        ("415-555-2671/415-555-2672", ["415-555-2671", "415-555-2672"]),
        ("+14155552671+14155552672", ["+14155552671", "+14155552672"]),
        ("+49-30-123456-+49-30-123457", ["+49-30-123456", "+49-30-123457"]),
        ("Call 4155552671 now", ["4155552671"]), ("my number is 4155552671", ["4155552671"]),
        ("Text 4155552671", ["4155552671"]),
        ("手机号13800138000", ["13800138000"]), ("手机号码\uff1a13800138000", ["13800138000"]),
    ],
)  # fmt: skip
def test_a_number_is_found_beside_what_is_no_part_of_it(text: str, wanted: list[str]) -> None:
    assert phones(text) == wanted
    assert phones(f"Ann: {text}, evenings.") == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("+49 30 123456 2024-05-01", "+49 30 123456"), ("+49 30 123456 17.05.2024", "+49 30 123456"),
        ("+1 415 555 2671 #4 in the list", "+1 415 555 2671"), ("415-555-2671, x 12 units", "415-555-2671"),
        ("415-555-2671 x12", "415-555-2671 x12"), ("415-555-2671, ext. 12", "415-555-2671, ext. 12"),
        ("415-555-2671#4", "415-555-2671#4"),
    ],
)  # fmt: skip
def test_dates_and_counts_behind_a_number_stay(text: str, wanted: str) -> None:
    assert phones(text) == [wanted]


@pytest.mark.parametrize(
    "text",
    [
        "2147483648+2147483647", "5+14155552671", "call 1234567890 times", "call 12345678", "recall 4155552671",
        "0012345678", "00012345600012", "0049301234", "138 1234 5678 9999", "1000 415 555 2671", "415 555 2671 1000",
        "1 415 555 2671 2 3", "0123 4567 8901 2345", "10 020 7946 0958 11",
    ],
)  # fmt: skip
def test_sums_counts_and_rows_are_no_numbers(text: str) -> None:
    assert phones(text) in ([], ["1 415 555 2671"][: text.startswith("1 415")])
