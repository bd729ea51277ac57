"""National identity, tax and social security numbers.

A form that carries letters, dates or its own punctuation, and a checksum, stands for itself; digits alone count only
beside the number's name, as one in ten or eleven of any digits passes a single check digit. The United States'
number has no check digit: its 3-2-4 groups, the ranges never given out taken off, are what there is. Britain's has
none either, and is known by its letters; in small ones only if they are no hexadecimal digits.

Sources, by country: au ATO, TFN; be Rijksregister (KB of 3 April 1984); br CPF, Receita Federal; ca SIN, CRA (Luhn);
ch AHV-Nummer (EAN-13); cn GB 11643-1999; de Abgabenordnung §139b; dk CPR-kontoret; es Orden INT/2058/2008; fi
Väestörekisterikeskus, HETU and its signs of 2023; fr NIR, INSEE; gb HMRC NIM39110, NHS Data Dictionary (modulus 11); in
UIDAI (Verhoeff); it DM 23 December 1976; kr Resident Registration Act; nl Wet algemene bepalingen burgerservicenummer
(11-proef); no Skatteetaten; pl Ustawa o ewidencji ludności; pt Decreto-Lei 14/2013; se Skatteverket SKV 704; us SSA.
"""

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from tessera.prepare.private import checksums
from tessera.prepare.private.spans import Detector, Span, Text, after, before

_GAP = r"(?: |-|\xc2\xa0|\xe2\x80[\x91\xaf])?"
_CONTEXT_BYTES = 48
_DNI_LETTERS = "TRWAGMYFPDXBNJZSQVHLCKE"
_HETU_CHARACTERS = "0123456789ABCDEFHJKLMNPRSTUVWXY"


@dataclass(frozen=True)
class Form:
    """One way of writing one country's number."""

    country: str
    pattern: str
    """Without look-around: Arrow's RE2 and `re` both read it."""
    is_valid: Callable[[str], bool]
    """Takes its letters and digits, upper case."""
    names: tuple[str, ...] = ()
    """What stands before it; without any it stands for itself."""


def detectors(*, countries: Collection[str]) -> Iterator[Detector]:
    """One for each form of these countries' numbers."""
    for form in FORMS:
        if form.country in countries:
            may = f"(?i:{'|'.join(map(_word, form.names))})" if form.names else rf"\b(?:{form.pattern})\b"
            yield Detector("national_id", may, _finder(form), family="names" if form.names else "ids")


def normal(found: bytes) -> str:
    """Its letters and digits, upper case."""
    return "".join(chr(byte) for byte in found if byte < 128 and chr(byte).isalnum()).upper()


def _es_dni(characters: str) -> bool:
    number = characters[:-1].translate(str.maketrans("XYZ", "012"))
    return characters[-1] == _DNI_LETTERS[int(number) % 23]


def _fr_nir(characters: str) -> bool:
    number = characters[:13].replace("2A", "19").replace("2B", "18")
    month = int(number[3:5])
    return 97 - int(number) % 97 == int(characters[13:]) and (1 <= month <= 12 or 20 <= month <= 42 or month >= 50)


def _nl_bsn(digits: str) -> bool:
    return digits != "000000000" and checksums.weighted(digits, weights=(9, 8, 7, 6, 5, 4, 3, 2, -1), modulus=11)


def _de_tax_id(digits: str) -> bool:
    repeated = max(map(digits[:10].count, digits[:10]))
    return digits[0] != "0" and repeated in (2, 3) and checksums.iso7064_mod11_10(digits)


def _in_aadhaar(digits: str) -> bool:
    return digits[0] not in "01" and checksums.verhoeff(digits)


def _se_personnummer(digits: str) -> bool:
    short = digits[-10:]
    return _is_day(int(short[2:4]), int(short[4:6]) % 60) and checksums.luhn(short)


def _pl_pesel(digits: str) -> bool:
    day = _is_day(int(digits[2:4]) % 20, int(digits[4:6]))
    return day and checksums.weighted(digits, weights=(1, 3, 7, 9, 1, 3, 7, 9, 1, 3, 1), modulus=10)


def _fi_hetu(characters: str) -> bool:
    """The sign of the century may be a letter; a hyphen or plus is gone by now."""
    number = characters[:6] + characters[-4:-1]
    day = _is_day(int(characters[2:4]), int(characters[:2]))
    return day and characters[-1] == _HETU_CHARACTERS[int(number) % 31]


def _be_rijksregister(digits: str) -> bool:
    check = int(digits[9:])
    return any(97 - int(century + digits[:9]) % 97 == check for century in ("", "2"))


def _ch_ahv(digits: str) -> bool:
    return checksums.weighted(digits, weights=(1, 3) * 6 + (1,), modulus=10)


def _cn_resident(characters: str) -> bool:
    return _is_day(int(characters[10:12]), int(characters[12:14])) and checksums.iso7064_mod11_2(characters)


def _us_ssn(digits: str) -> bool:
    """With the range from 900 on, which tax numbers (ITIN) share the form of."""
    return digits[:3] not in ("000", "666") and digits[3:5] != "00" and digits[5:] != "0000"


def _gb_nino(characters: str) -> bool:
    letters = characters[0] not in "DFIQUV" and characters[1] not in "DFIOQUV"
    return letters and characters[:2] not in ("BG", "GB", "KN", "NK", "NT", "TN", "ZZ")


def _gb_nhs(digits: str) -> bool:
    weights = (10, 9, 8, 7, 6, 5, 4, 3, 2, 1)
    return len(set(digits)) > 1 and checksums.weighted(digits, weights=weights, modulus=11)


def _au_tfn(digits: str) -> bool:
    return len(set(digits)) > 1 and checksums.weighted(digits, weights=(1, 4, 3, 7, 5, 8, 6, 9, 10), modulus=11)


def _dk_cpr(digits: str) -> bool:
    """A day and a month; since 2007 the check digit no longer holds for all."""
    return _is_day(int(digits[2:4]), int(digits[:2]))


def _no_fodselsnummer(digits: str) -> bool:
    """A D-number has 40 on its day; 40 on the month marks test persons."""
    first = checksums.weighted(digits[:10], weights=(3, 7, 6, 1, 8, 9, 4, 5, 2, 1), modulus=11)
    second = checksums.weighted(digits, weights=(5, 4, 3, 2, 7, 6, 5, 4, 3, 2, 1), modulus=11)
    return first and second and _is_day(int(digits[2:4]) % 40, int(digits[:2]) % 40)


def _pt_nif(digits: str) -> bool:
    """The check digit is 11 less the remainder, and 0 where that is 10 or 11."""
    total = sum((9 - place) * int(digit) for place, digit in enumerate(digits[:8]))
    return int(digits[8]) == (11 - total % 11) % 11 % 10


def _kr_rrn(digits: str) -> bool:
    """A day and a month; those given out since October 2020 have no check digit."""
    return _is_day(int(digits[2:4]), int(digits[4:6]))


def _is_day(month: int, day: int) -> bool:
    return 1 <= month <= 12 and 1 <= day <= 31


FORMS = (
    Form("be", r"[0-9]{2}\.[01][0-9]\.[0-3][0-9][ -][0-9]{3}[.-][0-9]{2}", _be_rijksregister),
    Form("be", r"[0-9]{6}[ -]?[0-9]{3}[ .-]?[0-9]{2}", _be_rijksregister, names=(
        "rijksregister", "registre national", "numéro national", "niss", "insz", "national number")),
    Form("br", r"[0-9]{3}\.[0-9]{3}\.[0-9]{3}-[0-9]{2}", checksums.cpf),
    Form("br", r"[0-9]{9}-?[0-9]{2}", checksums.cpf, names=("cpf",)),
    Form("ch", r"756(?:[.][0-9]{4}[.][0-9]{4}[.]|[ ][0-9]{4}[ ][0-9]{4}[ ])[0-9]{2}", _ch_ahv),
    Form("au", _GAP.join(("[0-9]{3}", "[0-9]{3}", "[0-9]{3}")), _au_tfn, names=("tfn", "tax file")),
    Form("ca", _GAP.join(("[0-9]{3}", "[0-9]{3}", "[0-9]{3}")), checksums.luhn, names=(
        "SIN", "NAS", "sin:", "sin=", 'sin"', "social insurance", "assurance sociale")),
    Form("ch", r"756[ ]?[0-9]{4}[ ]?[0-9]{4}[ ]?[0-9]{2}", _ch_ahv, names=("ahv", "avs", "sozialversicherungsnummer")),
    Form("cn", r"[1-8][0-9]{5}(?:19|20)[0-9]{2}[01][0-9][0-3][0-9]{4}[0-9Xx]", _cn_resident),
    Form("de", r"[0-9]{2}[ /]?[0-9]{3}[ /]?[0-9]{3}[ /]?[0-9]{3}", _de_tax_id, names=(
        "steuer-id", "steuerid", "steueridentifikationsnummer", "identifikationsnummer", "steuernummer", "idnr",
        "tax id", "tin")),
    Form("es", r"[0-9]{2}\.?[0-9]{3}\.?[0-9]{3}[ -]?[A-HJ-NP-TV-Za-hj-np-tv-z]", _es_dni),
    Form("dk", r"[0-3][0-9][01][0-9]{3}[- ]?[0-9]{4}", _dk_cpr, names=("CPR", "cpr-nummer", "cpr:", "personnummer")),
    Form("es", r"[XYZxyz][ -]?[0-9]{7}[ -]?[A-HJ-NP-TV-Za-hj-np-tv-z]", _es_dni),
    Form("fi", r"[0-3][0-9][01][0-9]{3}[-+A-FU-Y][0-9]{3}[0-9A-FHJ-NPR-Y]", _fi_hetu),
    Form("fr", _GAP.join(("[1-478]", "[0-9]{2}", "[0-9]{2}", "(?:[0-9]{2}|2[AB])", "[0-9]{3}", "[0-9]{3}", "[0-9]{2}")),
         _fr_nir),
    Form("gb", r"[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?[0-9]{2} ?[0-9]{2} ?[0-9]{2} ?[A-D]", _gb_nino),
    Form("gb", r"[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z]-[0-9]{2}-[0-9]{2}-[0-9]{2}-[A-D]", _gb_nino),
    Form("gb", r"(?:[ghj-pr-tw-z][a-ceghj-npr-tw-z]|[abce][ghj-npr-tw-z])[0-9]{6}[a-d]", _gb_nino),
    Form("gb", r"[A-Za-z]{2}[ -]?[0-9]{2}[ -]?[0-9]{2}[ -]?[0-9]{2}[ -]?[A-Da-d]", _gb_nino, names=(
        "nino", "national insurance", "ni number", "ni no")),
    Form("gb", _GAP.join(("[0-9]{3}", "[0-9]{3}", "[0-9]{4}")), _gb_nhs, names=("nhs",)),
    Form("in", _GAP.join(("[2-9][0-9]{3}", "[0-9]{4}", "[0-9]{4}")), _in_aadhaar, names=(
        "aadhaar", "aadhar", "adhaar", "uidai", "आधार")),
    Form("it", r"[A-Za-z]{6}[0-9LMNP-V]{2}[A-EHLMPR-Ta-ehlmpr-t][0-9LMNP-V]{2}[A-Za-z][0-9LMNP-V]{3}[A-Za-z]",
         checksums.codice_fiscale),
    Form("kr", r"[0-9]{2}[01][0-9][0-3][0-9]-?[1-8][0-9]{6}", _kr_rrn, names=(
        "rrn", "resident registration", "주민등록번호", "주민번호")),
    Form("nl", r"[0-9]{4}[ .]?[0-9]{2}[ .]?[0-9]{3}", _nl_bsn, names=(
        "bsn", "burgerservicenummer", "sofinummer", "sofi-nummer")),
    Form("no", r"[0-7][0-9][0-9]{4} ?[0-9]{5}", _no_fodselsnummer, names=(
        "fødselsnummer", "fodselsnummer", "fødselsnr", "fnr", "personnummer", "d-nummer")),
    Form("pl", r"[0-9]{11}", _pl_pesel, names=("pesel",)),
    Form("pt", _GAP.join(("[1-9][0-9]{2}", "[0-9]{3}", "[0-9]{3}")), _pt_nif, names=("nif", "contribuinte")),
    Form("se", r"(?:19|20)?[0-9]{2}[01][0-9][0-9]{2}[+-][0-9]{4}", _se_personnummer),
    Form("se", r"(?:19|20)?[0-9]{6}[0-9]{4}", _se_personnummer, names=(
        "personnummer", "personnr", "pnr", "personal identity number", "samordningsnummer")),
    Form("us", r"[0-9]{3}-[0-9]{2}-[0-9]{4}", _us_ssn),
    Form("us", r"[0-9]{3}[ .-]?[0-9]{2}[ .-]?[0-9]{4}", _us_ssn, names=("ssn", "social security")),
)  # fmt: skip


def _word(name: str) -> str:
    """RE2 for a name where a word begins; the short ones must end there too."""
    escaped = "".join(chr(byte) if byte < 128 else rf"\x{byte:02x}" for byte in name.encode())
    edge = r"(?:\b|[0-9_])"
    return (edge if name[0].isascii() else "") + escaped + (edge if len(name) < 4 else "")


def _finder(form: Form) -> Callable[[Text], Iterator[Span]]:
    pattern = re.compile(rb"(?:\b|(?<=_))(?:%s)" % form.pattern.encode())
    names = _name_before(form.names) if form.names else None

    def find(data: Text) -> Iterator[Span]:
        for match in pattern.finditer(data):
            if names and not names.search(before(data, match.start(), num_bytes=_CONTEXT_BYTES)):
                continue
            is_alone = _stands_alone(data, match.start(), match.end(), is_named=bool(names))
            if is_alone and form.is_valid(normal(match[0])):
                yield Span("national_id", match.start(), match.end())

    return find


def _name_before(names: tuple[str, ...]) -> re.Pattern[bytes]:
    """One of the names as a word, and no other digits between it and the number; in capitals only, if it is so here."""
    alternatives = "|".join(f"(?-i:{name})" if name.isupper() else re.escape(name) for name in names).encode()
    return re.compile(rb"(?i)(?<![A-Za-z<])(?:%s)(?:nummer|nr|number)?(?![A-Za-z])[^0-9\n]*\Z" % alternatives)


_ALONE_BEFORE = re.compile(rb"[\w.+]\Z|[\w.][/-]\Z")
_ALONE_BEHIND_A_NAME = re.compile(rb"[0-9A-Za-z.+]\Z|[\w.][/-]\Z|[^A-Za-z]_\Z")
_ALONE_AFTER = re.compile(rb"[\w]|[./-]\w")


def _stands_alone(data: Text, start: int, end: int, *, is_named: bool) -> bool:
    """Whether no letter or digit touches it, and no point, hyphen or slash joins it to one; ssn_219-09-9999 does."""
    joined = _ALONE_BEHIND_A_NAME if is_named else _ALONE_BEFORE
    return not (joined.search(before(data, start, num_bytes=2)) or _ALONE_AFTER.match(after(data, end, num_bytes=2)))
