"""The check digits of numbers that people and accounts carry.

Each takes ASCII and says whether it is right; none raises on characters that its numbers do not have.
"""

from collections.abc import Sequence

_DOUBLED = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)

# Verhoeff 1969: the dihedral group D5, and the permutation of each place.
_D5 = tuple(
    tuple((a + b) % 5 if a < 5 > b else (a + b) % 5 + 5 if a < 5 else (a - b) % 5 + 5 if b < 5 else (a - b) % 5
          for b in range(10))
    for a in range(10)
)  # fmt: skip
_PERMUTED = [tuple(range(10)), (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)]
while len(_PERMUTED) < 8:
    _PERMUTED.append(tuple(_PERMUTED[1][digit] for digit in _PERMUTED[-1]))

FISCAL_ODD = dict(
    zip(
        "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ",
        (1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16,
         10, 22, 25, 24, 23),
        strict=True,
    )
)  # fmt: skip
"""Decreto ministeriale of 23 December 1976: what a character in an odd place of a codice fiscale counts."""


def luhn(digits: str) -> bool:
    """ISO/IEC 7812-1, annex B: cards, and some national ids."""
    if not _are_digits(digits):
        return False
    from_right = [int(digit) for digit in reversed(digits)]
    return (sum(from_right[::2]) + sum(_DOUBLED[digit] for digit in from_right[1::2])) % 10 == 0


def verhoeff(digits: str) -> bool:
    """Verhoeff, *Error Detecting Decimal Codes* (1969)."""
    if not _are_digits(digits):
        return False
    check = 0
    for place, digit in enumerate(reversed(digits)):
        check = _D5[check][_PERMUTED[place % 8][int(digit)]]
    return bool(check == 0)


def iso7064_mod97(characters: str) -> bool:
    """ISO 7064 MOD 97-10 with letters as 10 to 35; an IBAN's first four characters must have been moved to its end."""
    if not (characters.isascii() and characters.isalnum()):
        return False
    return int("".join(str(int(character, 36)) for character in characters)) % 97 == 1


def iso7064_mod11_10(digits: str) -> bool:
    """ISO 7064 MOD 11,10: the German tax id."""
    if not _are_digits(digits):
        return False
    product = 10
    for digit in digits[:-1]:
        product = ((int(digit) + product - 1) % 10 + 1) * 2 % 11
    return (product + int(digits[-1])) % 10 == 1


def iso7064_mod11_2(characters: str) -> bool:
    """ISO 7064 MOD 11-2, whose last character may be X for 10: the Chinese resident id."""
    if not _are_digits(characters[:-1]) or characters[-1:] not in "0123456789X":
        return False
    values = [*map(int, characters[:-1]), 10 if characters[-1] == "X" else int(characters[-1])]
    return sum(value << place for place, value in enumerate(reversed(values))) % 11 == 1


def weighted(digits: str, *, weights: Sequence[int], modulus: int) -> bool:
    """Whether the digits, each times its weight, add up to a multiple of `modulus`."""
    if not _are_digits(digits) or len(digits) != len(weights):
        return False
    return sum(weight * int(digit) for weight, digit in zip(weights, digits, strict=True)) % modulus == 0


def cpf(digits: str) -> bool:
    """The two check digits of the Brazilian CPF, modulo 11 with 10 as 0; eleven equal digits are none."""
    if not _are_digits(digits) or len(digits) != 11 or len(set(digits)) == 1:
        return False
    for end in (9, 10):
        total = sum((end + 1 - place) * int(digits[place]) for place in range(end))
        if total * 10 % 11 % 10 != int(digits[end]):
            return False
    return True


def codice_fiscale(characters: str) -> bool:
    """The check letter of the Italian fiscal code; characters in odd places count by FISCAL_ODD."""
    if len(characters) != 16 or not set(characters) <= FISCAL_ODD.keys():
        return False
    odd = sum(FISCAL_ODD[character] for character in characters[0:15:2])
    even = sum(int(character) if character.isdigit() else ord(character) - ord("A") for character in characters[1:15:2])
    return chr((odd + even) % 26 + ord("A")) == characters[15]


def _are_digits(digits: str) -> bool:
    return digits.isascii() and digits.isdigit()
