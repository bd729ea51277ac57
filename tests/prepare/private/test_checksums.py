"""Check digits: numbers as their issuers and the literature publish them, and the mistakes that each rule must see."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.prepare.private import checksums, national_ids, payments

DIGITS = "0123456789"

PUBLISHED_IDS = [
    ("be", "85073003328"), ("br", "39053344705"), ("ch", "7569217076985"), ("cn", "11010519491231002X"),
    ("cn", "360426199101010071"), ("de", "36574261809"), ("de", "86095742719"), ("de", "47036892816"),
    ("es", "54362315K"), ("es", "X2482300W"), ("fi", "131052308T"), ("fr", "295109912611193"), ("in", "234123412346"),
    ("it", "RSSMRA85T10A562S"), ("it", "RCCMNL83S18D969H"), ("nl", "111222333"), ("pl", "44051401359"),
    ("se", "8112189876"), ("se", "8803200016"),
]  # fmt: skip
"""Examples of the issuers and of python-stdnum, all valid by the latter."""


def valid_somehow(country: str, characters: str) -> bool:
    """By one of the country's forms; a form that cannot read the characters says no by an error."""
    for form in national_ids.FORMS:
        if form.country == country:
            try:
                if form.is_valid(characters):
                    return True
            except (ValueError, IndexError):
                continue
    return False


@pytest.mark.parametrize(("country", "characters"), PUBLISHED_IDS)
def test_published_ids_are_valid_and_nearly_all_with_one_digit_changed_are_not(country: str, characters: str) -> None:
    assert valid_somehow(country, characters)
    changed = [
        characters[:place] + other + characters[place + 1 :]
        for place, digit in enumerate(characters)
        for other in DIGITS
        if digit in DIGITS and other != digit
    ]
    assert sum(valid_somehow(country, one) for one in changed) <= len(changed) // 20


@settings(deadline=None)
@given(st.text(DIGITS, min_size=1, max_size=20), st.data())
def test_luhn_and_verhoeff_see_every_wrong_digit_and_verhoeff_every_swap(number: str, data: st.DataObject) -> None:
    for is_valid in (checksums.luhn, checksums.verhoeff):
        (right,) = (number + check for check in DIGITS if is_valid(number + check))
        place = data.draw(st.integers(0, len(number)))
        other = data.draw(st.sampled_from(DIGITS.replace(right[place], "")))
        assert not is_valid(right[:place] + other + right[place + 1 :])
    place = data.draw(st.integers(0, len(number) - 1))
    swapped = right[:place] + right[place + 1] + right[place] + right[place + 2 :]
    assert checksums.verhoeff(swapped) == (swapped == right)


def test_examples_of_the_standards() -> None:
    assert checksums.verhoeff("2363")  # Verhoeff's own
    assert checksums.luhn("79927398713")  # ISO/IEC 7812-1
    assert checksums.iso7064_mod11_2("07940")  # ISO 7064
    assert checksums.iso7064_mod11_10("794623")  # as python-stdnum gives it
    assert checksums.iso7064_mod97("3214282912345698765432161182")  # the British IBAN with its letters as numbers
    assert payments.is_iban("mt84MALT011000012345MTLCAST001S")


@pytest.mark.parametrize("junk", ["", "x", "12a4", "\uff11\uff12", "٣٤", "--"])
def test_what_is_no_number_is_not_valid(junk: str) -> None:
    assert not checksums.luhn(junk)
    assert not checksums.verhoeff(junk)
    assert not checksums.iso7064_mod97(junk)
    assert not checksums.cpf(junk)
    assert not checksums.codice_fiscale(junk)


@pytest.mark.parametrize(
    ("digits", "expected"),
    [("4111111111111111", True), ("378282246310005", True), ("30569309025904", True), ("6011111111111117", True),
     ("3530111333300000", True), ("4111111111111112", False), ("1234567812345670", False), ("0000000000000000", False),
     ("411111111111111", False)],
)  # fmt: skip
def test_cards_have_a_range_a_length_and_a_check_digit(digits: str, expected: bool) -> None:
    assert payments.is_card(digits) == expected
