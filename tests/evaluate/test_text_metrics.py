"""Comparing answers: numbers keep their signs, prefixes are no matches."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.evaluate.text_metrics import exact_match, f1, last_number, normalise


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("The  Cat.", "cat"),
        ("1,000", "1000"),
        ("1,000.50", "1000.5"),
        ("+5", "5"),
        ("\u22125", "-5"),
        ("\uff27röße", "größe"),
        ("an apple, a pear", "apple pear"),
        ("$18", "18"),
        ("x = -3", "x=-3"),
        ("18.0", "18"),
        ("A", "a"),
        (".5", "0.5"),
        ("-$5", "-5"),
        ("\u20105", "-5"),
        ('"yes"', "Yes!"),
    ],
)
def test_the_same(answer: str, reference: str) -> None:
    assert exact_match(answer, [reference]) == 1
    assert f1(answer, [reference]) == 1


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("1", "12"),
        ("12", "1"),
        ("-5", "5"),
        ("5", "-5"),
        ("1.5", "15"),
        ("0.5", "5"),
        ("", "x"),
        ("", ""),
        ("the", "a"),
        ("cat and dog", "cat"),
        ("cat", "cat and dog"),
        ("1,00", "100"),
        ("2-1", "-1"),
        ("-.5", ".5"),
        (".5", "5"),
        ("x+1", "x-1"),
        ("C++", "C#"),
        ("2\u00b2", "22"),
        ("a==b", "a!=b"),
        ("\u0915\u0940", "\u0915\u093e"),
        ("-$5", "$5"),
        ("007", "7"),
        ("10", "1.0"),
    ],
)
def test_not_the_same(answer: str, reference: str) -> None:
    assert exact_match(answer, [reference]) == 0


def test_any_of_the_references_will_do() -> None:
    assert exact_match("b", ["c", "b"]) == 1
    assert f1("b d", ["c", "b"]) == pytest.approx(2 / 3)
    assert f1("", ["c"]) == 0
    assert f1("c", []) == 0


def test_f1_counts_words_as_often_as_they_stand_there() -> None:
    assert f1("cat cat dog", ["cat dog dog"]) == pytest.approx(2 / 3)


def test_the_last_number_of_a_worked_solution() -> None:
    assert last_number("3 + 4 = 7, so 7 * 2 = 14 eggs", ["14"]) == 1
    assert last_number("It is 1,400 dollars, not 14.", ["14"]) == 1
    assert last_number("It is -14", ["14"]) == 0
    assert last_number("fourteen", ["14"]) == 0


@given(st.text())
def test_blanks_and_case_do_not_matter(text: str) -> None:
    assert normalise(f"  {text}\n") == normalise(text)
    assert normalise(text.casefold()) == normalise(text)


@given(st.integers(-(10**12), 10**12), st.integers(-(10**12), 10**12))
def test_two_numbers_match_when_they_are_equal(one: int, other: int) -> None:
    assert exact_match(f"{one:,}", [str(other)]) == float(one == other)


@given(st.text(), st.text())
def test_f1_is_symmetric_and_between_nothing_and_one(one: str, other: str) -> None:
    assert 0 <= f1(one, [other]) <= 1
    assert f1(one, [other]) == pytest.approx(f1(other, [one]))


def test_a_number_beyond_all_floats_is_none() -> None:
    assert last_number("9" * 400, ["8" * 400]) == 0
