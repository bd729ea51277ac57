"""Cards in groups: beside other groups of four digits, after one another, and not out of a table of numbers."""

import random

import pytest

from tessera.prepare.private import detect
from tessera.prepare.private.spans import Span

DETECTORS = detect.detectors()
VISA, MASTERCARD = "4532 0151 1283 0366", "5425 0000 0000 0014"


def cards(text: str) -> list[str]:
    data = text.encode()
    return [data[span.start : span.end].decode() for span in detect.find(data, by=DETECTORS) if span.type == "card"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (f"exp 2027 {VISA}", [VISA]), (f"qty 1000 {VISA}", [VISA]), (f"2024 {VISA} 1200", [VISA]),
        (f"{VISA} 0526", [VISA]),
        (f"{VISA} {MASTERCARD}", [VISA, MASTERCARD]), (f"{VISA} {MASTERCARD} {VISA}", [VISA, MASTERCARD, VISA]),
        (f"exp 2027 {VISA} 123", [VISA]), ("2027 3782 822463 10005", ["3782 822463 10005"]),
        (f"Nr.{VISA}", [VISA]), ("No.4532015112830366", ["4532015112830366"]), ("card_4532015112830366",
        ["4532015112830366"]),
        ("5018 0000 0009", ["5018 0000 0009"]), ("5018-0000-0009", ["5018-0000-0009"]),
        *((VISA.replace(" ", gap), [VISA.replace(" ", gap)]) for gap in ("-", ".", "  ", "\u2009", "\u2013", "\u00a0")),
    ],
)  # fmt: skip
def test_cards_are_found_beside_other_groups_and_however_they_are_grouped(text: str, wanted: list[str]) -> None:
    assert cards(text) == wanted
    assert cards(f"Paid: {text}, they said.") == wanted


@pytest.mark.parametrize(
    "text",
    [
        "4111 1111 1111 1111 1111 1111", f"1000 2000 {VISA} 3000", f"1000 {VISA} 3000 4000", f"{VISA}a", f"1{VISA}",
        f"1200 {VISA}\n1300 1400 1500 1600 1700", f"1100 1200 1300 1400 1500\n1200 {VISA}", "img_4532015112830366.jpg",
        "0.4532015112830366", ".4532015112830366", f"1.{VISA.replace(' ', '.')}", "4532  0151 1283  0366",
        "4000 1234 5678 9010 1", "1234 5678 9012", "5018 0000 0009 2024 2025",
    ],
)  # fmt: skip
def test_what_is_cut_out_of_other_numbers_is_no_card(text: str) -> None:
    assert cards(text) == []


@pytest.mark.parametrize(("columns", "gap"), [(5, " "), (6, " "), (8, "  "), (12, " ")])
def test_tables_of_numbers_hold_next_to_no_cards(columns: int, gap: str) -> None:
    """Eight columns may be two cards: one row in about 700 is, by chance."""
    rng = random.Random(columns)
    rows = [gap.join(f"{rng.randrange(1000, 9999)}" for _ in range(columns)) for _ in range(2_000)]

    assert len(cards("\n".join(rows))) <= (10 if columns == 8 else 2)
    assert cards(gap.join(f"{year}" for year in range(1900, 2030))) == []


def test_a_run_of_groups_is_read_in_time_proportional_to_it() -> None:
    """Of 40,000 groups, and of as many with a letter behind; a quadratic search would take minutes."""
    groups = b"1234 " * 40_000

    assert detect.find(groups + VISA.encode() + b"x", by=DETECTORS) == []
    assert Span("card", 1, 20) in detect.find(b"\n" + VISA.encode() + b"\n" + groups, by=DETECTORS)
