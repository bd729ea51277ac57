"""National ids in other cases and with other gaps, and those that need a word near."""

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from tessera.prepare.private import detect, national_ids

COUNTRIES = tuple({form.country for form in national_ids.FORMS})
DETECTORS = detect.detectors(countries=COUNTRIES)

NAMED = [
    ("ca", "SIN ", "046 454 286"), ("ca", '"sin": "', "046454286"), ("ca", "Social Insurance Number: ", "046-454-286"),
    ("gb", "NHS number ", "943 476 5919"), ("gb", "NHS: ", "9434765919"), ("de", "Identifikationsnummer ",
    "86095742719"),
    ("us", "SSN is ", "219-09-9999"), ("us", "SSN is ", "219.09.9999"), ("us", "ssn_", "219-09-9999"),
    ("au", "TFN ", "123 456 782"), ("dk", "CPR ", "211062-5629"), ("no", "fødselsnummer: ", "13097248022"),
    ("pt", "NIF ", "123456789"), ("kr", "주민등록번호 ", "850101-1234567"), ("ch", "AHV ", "7561234567897"),
]  # fmt: skip


def found(text: str) -> list[tuple[str, str]]:
    data = text.encode()
    return [(span.type, data[span.start : span.end].decode()) for span in detect.find(data, by=DETECTORS)]


@pytest.mark.parametrize("value", ["z1234567r", "Z-1234567-R", "jg103759a", "JG-10-37-59-A", "756 1234 5678 97"])
def test_numbers_in_small_letters_and_with_other_gaps(value: str) -> None:
    assert found(f"See {value}, checked.") == [("national_id", value)]


@pytest.mark.parametrize(("country", "name", "value"), NAMED)
def test_a_number_is_found_beside_its_name_and_wins_over_a_phone_number(country: str, name: str, value: str) -> None:
    text = f"- {name}{value}"
    detector = detect.detectors(types=("national_id",), countries=(country,))

    assert found(text) == [("national_id", value)]
    column = pa.array([text.encode()], pa.binary())
    assert any(
        pc.match_substring_regex(column, one.may)[0].as_py() for one in detector if list(one.find(column[0].as_py()))
    )


@pytest.mark.parametrize(
    "text",
    [
        "z1234567s", "ab123456c", "bg103759a", "JG-10-37-59-E", "756 1234 5678 98", "SIN 046 454 287",
        "sin 146 454 284",
        "NHS number 943 476 5918", "Identifikationsnummer 86095742718", "TFN 123 456 783", "CPR 214062-5629",
        "fødselsnummer 13097248023", "NIF 123456788", "RRN 851301-1234567", "123456782", "x_219-09-9999", "9434765919",
    ],
)  # fmt: skip
def test_other_check_digits_days_and_names_are_not(text: str) -> None:
    assert "national_id" not in {kind for kind, _ in found(text)}
