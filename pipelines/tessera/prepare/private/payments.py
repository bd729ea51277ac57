"""Payment cards and bank accounts.

A card number has 12 to 19 digits, begins with an issuer's range (ISO/IEC 7812; the ranges are those that the networks
publish), ends with a Luhn digit, and is written in one piece or in the groups of cards: fours, or 4-6-5 and 4-6-4. Of
random digits about one in forty passes; a row of a table of numbers must therefore not be taken apart. A run of fours
is one card, cards and nothing else, or the only card in it with no more than one group, such as a year, on either side.
An IBAN has its country's length (ISO 13616, the registry of SWIFT) and two check digits: one in ten thousand passes.
"""

import re
from collections.abc import Iterator

from tessera.prepare.private import checksums
from tessera.prepare.private.spans import Detector, Span, Text, after, before, digits_of

ISSUERS = (
    ("4", (13, 16, 19)),  # Visa
    ("5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720", (16,)),  # Mastercard
    ("3[47]", (15,)),  # American Express
    ("3(?:0[0-5]|[689])", (14, 16, 19)),  # Diners Club
    ("6(?:011|4[4-9]|5)", (16, 19)),  # Discover
    ("35", (16, 19)),  # JCB
    ("2131|1800", (15,)),  # JCB
    ("62", (16, 17, 18, 19)),  # UnionPay
    ("220[0-4]", (16, 19)),  # Mir
    ("508[5-9]|60|81|82", (16,)),  # RuPay
    ("50|5[678]|0604|6304|6759|676[1-3]", (12, 13, 14, 15, 16, 18, 19)),  # Maestro
)  # fmt: skip

IBAN_CHARACTERS = {
    "NO": 15, "BE": 16, "DK": 18, "FI": 18, "FK": 18, "FO": 18, "GL": 18, "NL": 18, "SD": 18, "MK": 19, "SI": 19,
    "AT": 20, "BA": 20, "EE": 20, "KZ": 20, "LT": 20, "LU": 20, "MN": 20, "XK": 20, "CH": 21, "HR": 21, "LI": 21,
    "LV": 21, "BG": 22, "BH": 22, "CR": 22, "DE": 22, "GB": 22, "GE": 22, "IE": 22, "ME": 22, "RS": 22, "VA": 22,
    "AE": 23, "GI": 23, "IL": 23, "IQ": 23, "OM": 23, "SO": 23, "TL": 23, "AD": 24, "CZ": 24, "ES": 24, "MD": 24,
    "PK": 24, "RO": 24, "SA": 24, "SE": 24, "SK": 24, "TN": 24, "VG": 24, "LY": 25, "PT": 25, "ST": 25, "IS": 26,
    "TR": 26, "BI": 27, "DJ": 27, "FR": 27, "GR": 27, "IT": 27, "MC": 27, "MR": 27, "SM": 27, "AL": 28, "AZ": 28,
    "BY": 28, "CY": 28, "DO": 28, "GT": 28, "HN": 28, "HU": 28, "LB": 28, "NI": 28, "PL": 28, "SV": 28, "BR": 29,
    "EG": 29, "PS": 29, "QA": 29, "UA": 29, "JO": 30, "KW": 30, "MU": 30, "YE": 30, "MT": 31, "SC": 31, "LC": 32,
    "RU": 33,
}  # fmt: skip
"""Country -> characters of its accounts."""

_ISSUERS = tuple((re.compile(prefix), lengths) for prefix, lengths in ISSUERS)
_BREAK = rb"(?: |-|\xc2\xa0|\xe2\x80[\x91\xaf])"
_CARD_BREAK = rb"(?:[ ]{1,2}|[.-]|\xc2\xa0|\xe2\x80[\x89\x91\x93\xaf])"
_CARD_NAME = rb"(?i:(?<=nr\.\d)|(?<=no\.\d)|(?<=card_\d)|(?<=pan_\d)|(?<=number_\d))"
_ONE_PIECE = re.compile(rb"\d(?:(?<![\w.+-]\d)|%s)\d{11,18}+(?![\w]|[.-]\d)" % _CARD_NAME)
_FOURS = re.compile(
    rb"\d(?:(?<![\w.]\d)|%s)\d{3}(%s)\d{4}(?!\d)(?:\1\d{4}(?!\d))++(?:\1\d{1,3}(?!\d))?+" % (_CARD_NAME, _CARD_BREAK)
)
_SIXES = re.compile(rb"3(?:(?<![\w.]3)|%s)\d{3}(%s)\d{6}\1\d{4,5}+(?!\w|\.\d)" % (_CARD_NAME, _CARD_BREAK))
_GOES_ON = re.compile(rb"\w|\.\d")
_DIGITS = re.compile(rb"\d+")
_ROW_ABOVE = re.compile(rb"(?<!\d)\d{4}[^\w\n]{0,2}\n[^\w\n]{0,2}\Z")
_ROW_BELOW = re.compile(rb"[^\w\n]{0,2}\n[^\w\n]{0,2}\d{4}(?!\d)")

_IBAN_HEAD = re.compile(rb"[A-Za-z](?<![0-9A-Za-z_][A-Za-z])[A-Za-z]\d{2}(?=%s?[0-9A-Za-z])" % _BREAK)
_IBANS = {
    length: re.compile(rb"(?:[0-9A-Za-z]%s?){%d}[0-9A-Za-z](?![0-9A-Za-z])" % (_BREAK, length - 1))
    for length in set(IBAN_CHARACTERS.values())
}
"""Of so many letters and digits, a single gap between any two."""


def cards(data: Text) -> Iterator[Span]:
    """Payment card numbers: those in one piece, then those in groups, each in order."""
    for match in _ONE_PIECE.finditer(data):
        if is_card(match[0].decode()):
            yield Span("card", match.start(), match.end())
    for match in _FOURS.finditer(data):
        yield from _cards_in_fours(data, match)
    for match in _SIXES.finditer(data):
        if is_card(digits_of(match[0])):
            yield Span("card", match.start(), match.end())


def ibans(data: Text) -> Iterator[Span]:
    """International bank account numbers, in order."""
    for head in _IBAN_HEAD.finditer(data):
        length = IBAN_CHARACTERS.get(head[0][:2].decode().upper())
        match = _IBANS[length].match(data, head.start()) if length else None
        if match and is_iban("".join(chr(byte) for byte in match[0] if byte < 128 and chr(byte).isalnum())):
            yield Span("iban", match.start(), match.end())


_RE2_BREAK = r"(?:[ -]|\xc2\xa0|\xe2\x80[\x91\xaf])"
_RE2_CARD_BREAK = r"(?:  ?|[.-]|\xc2\xa0|\xe2\x80[\x89\x91\x93\xaf])"
DETECTORS = (
    Detector(
        "card",
        rf"(?:^|[^0-9A-Za-z_.+-]|(?i:n[ro]\.|(?:card|pan|number)_))[0-68][0-9]{{11}}|"
        rf"(?:\b|_)[0-68][0-9]{{3}}{_RE2_CARD_BREAK}(?:[0-9]{{4}}|[0-9]{{6}}){_RE2_CARD_BREAK}[0-9]{{4}}",
        cards,
        "numbers",
    ),
    Detector("iban", rf"\b[A-Za-z]{{2}}[0-9]{{2}}(?:{_RE2_BREAK}?[0-9A-Za-z]){{11}}", ibans, "numbers"),
)


def is_card(digits: str) -> bool:
    """Whether an issuer has given out numbers of this beginning and length, and the check digit is right."""
    ranges = any(len(digits) in lengths and prefix.match(digits) for prefix, lengths in _ISSUERS)
    return ranges and checksums.luhn(digits)


def is_iban(characters: str) -> bool:
    """Whether it has the country's length and right check digits, in any case."""
    upper = characters.upper()
    return len(upper) == IBAN_CHARACTERS.get(upper[:2]) and checksums.iso7064_mod97(upper[4:] + upper[:4])


def _cards_in_fours(data: Text, match: re.Match[bytes]) -> Iterator[Span]:
    """The cards in a run of groups of four digits, the last of which may be shorter."""
    if _GOES_ON.match(after(data, match.end(), num_bytes=2)):
        return
    groups = [(match.start() + group.start(), match.start() + group.end()) for group in _DIGITS.finditer(match[0])]
    number = len(groups)
    digits = [digits_of(bytes(data[start:end])) for start, end in groups]
    valid = [
        (first, last)
        for first in range(number - 2)
        for last in range(min(first + 5, number), first + 2, -1)
        if (last - first > 3 or number == 3) and is_card("".join(digits[first:last]))
    ]
    chosen = _covering(valid, number=number)
    if not chosen and len(valid) == 1:
        first, last = valid[0]
        alone = first == 0 and (last == number or len(digits[last]) < 4)
        if first < 2 > number - last and (alone or not _is_row_of_a_table(data, match.start(), match.end())):
            chosen = valid
    for first, last in chosen:
        yield Span("card", groups[first][0], groups[last - 1][1])


def _covering(windows: list[tuple[int, int]], *, number: int) -> list[tuple[int, int]]:
    """Windows that make up all groups from 0 to `number`, none over another; empty where none do."""
    last_to: dict[int, tuple[int, int]] = {}
    for first, last in windows:
        if first == 0 or first in last_to:
            last_to.setdefault(last, (first, last))
    chosen: list[tuple[int, int]] = []
    while number in last_to:
        chosen.append(last_to[number])
        number = last_to[number][0]
    return chosen[::-1]


def _is_row_of_a_table(data: Text, start: int, end: int) -> bool:
    """Whether a group of four digits ends the line before, or begins the next."""
    return bool(
        _ROW_ABOVE.search(before(data, start, num_bytes=12)) or _ROW_BELOW.match(after(data, end, num_bytes=12))
    )
