"""Phone numbers: what is written so that it can hardly be anything else, and other digits beside a word for phone.

* International: + or 00 or 011, a country code that the ITU has given out (E.164, at most 15 digits), groups or none.
* National, with gaps: the North American 3-3-4; a trunk 0 and 9 to 12 digits in groups (most of Europe, Japan, Korea,
  Australia); the groups peculiar to Spain, Russia, China and Brazil; mobile numbers of France, Britain and Germany that
  begin with 06, 07 or 01 even without gaps, as integers have no leading 0.
* 7 to 15 digits, with or without gaps, right behind a word such as "phone", "Tel.", "móvil", "call me at".

Dates, times, versions, ISBNs, IP addresses and rows of numbers do not look so, or are recognised and left alone; the
space-separated thousands of `612 345 678` need the word. An extension ("x12", "ext. 12") belongs to the number.
"""

import re
from collections.abc import Iterator
from itertools import pairwise

from tessera.prepare.private.spans import GAP, Detector, Span, Text, after, before, digits_of

MAX_DIGITS = 15
WORDS = (
    "telephone", "tel", "phone", "mobile", "mobil", "cell", "cellphone", "cellular", "fax", "whatsapp", "sms",
    "telefon", "telefono", "telefone", "telefoon", "téléphone", "tél", "teléfono", "móvil", "movil", "celular",
    "cellulare", "handy", "rufnummer", "telefonnummer", "handynummer", "portable", "puhelin", "gsm", "tlf", "ph",
    "phonenumber", "mobilenumber", "call me at", "call me on", "call us at", "call us on", "call him at", "call her at",
    "call them at", "reach me at", "reach us at", "text me at", "contact number", "contact no", "hotline",
    "my number", "телефон", "電話", "电话", "手机", "手机号", "手机号码", "电话号码",
)  # fmt: skip

_WIDE_COLON = "\uff1a"
_WORD = "|".join(sorted(WORDS, key=len, reverse=True))
_END = rb"(?![0-9A-WYZa-wyz_%]|[xX](?!\d)|[.:/-]\d)"
_EXTENSION = re.compile(rb"(?:[ ,]{0,2}(?:[xX]|[eE]xt(?:ension|\.)?[ :.]{0,2})|#)\d{1,6}(?![0-9A-Za-z])")
_INTERNATIONAL = re.compile(
    rb"[+(0](?<![A-Za-z_+.][+(0])(?<!\d[(0])(?<![0-9][:/-][(0])(?:(?<=\+)\(?|(?<=\()\+|(?<=0)0[ ]?|(?<=0)11[ -])"
    rb"[1-9](?:[()]{0,1}%s{0,2}[()]{0,1}\d){6,18}+" % GAP
)
_JOINED = re.compile(rb"\d([:/-]?)\Z")
_COUNTRY_CODE = re.compile(
    "1|7|2(?:[07]|1[123689]|[2346].|5[0-8]|9[01789])|3(?:[0-469]|[57].|8[0-35-79])|4(?:[013-9]|2[013])|5(?:[1-8]|[09].)|"
    "6(?:[0-6]|7[0-9]|8[0-9]|9[0-2])|8(?:[1246]|00|08|5[02356]|70|78|8[0-368])|9(?:[0-58]|6[0-8]|7[0-79]|79|9[2-68])"
)
"""ITU-T, *List of Recommendation E.164 assigned country codes*."""
_NATIONAL = re.compile(
    rb"(?=[(0-9])(?:(?<![\w.+$])|(?<=\d{3}[-. ]\d{4})(?=\())(?:(?<![\w][/-])|(?<=\d{3}[-. ]\d{4}/))(?:"
    rb"(?:[178][-. ]?)?\(\d{3}\)[ .-]{0,2}\d{3}[ .-]\d{4}"
    rb"|(?:1-)?\d{3}-\d{3}-\d{4}|(?:1\.)?[1-9]\d\d\.\d{3}\.\d{4}|(?:1 )?[2-9]\d\d [2-9]\d\d[ -]\d{4}"
    rb"|[2-9]\d\d \d{3}-\d{4}"
    rb"|[6-9]\d\d([ .-])\d\d\1\d\d\1\d\d|9[1-9]([ .-])\d{3}\2\d\d\2\d\d"
    rb"|8[ -]?\(?\d{3}\)?[ -]\d{3}[ -]\d\d[ -]\d\d|1[3-9]\d([ -])\d{4}\3\d{4}"
    rb"|\(\d\d\) ?\d{4,5}-\d{4}|[1-9]\d (?:9\d{4}|(?!20)[2-9]\d{3})-\d{4}|0[67]\d{8}|07\d{9}|01[5-7]\d{8,9}"
    rb")(?:(?=/\d{3}[-. ]\d{3}[-. ]\d{4}(?!\d))|%s)" % _END
)
_TRUNK = re.compile(
    rb"[(0](?<![\w.+$][(0])(?<![\w][/:-][(0])(?:(?<=0)|(?<=\()0)[1-9](?:%s{0,2}\d){0,4}\)?(?:%s{0,2}\d){3,9}+"
    % (GAP, GAP)
    + _END
)
_BESIDE_A_WORD = re.compile(rb"\d(?<![0-9A-Za-z+]\d)(?:[()]?%s{0,2}[()]?\d){5,14}+" % GAP + _END)
_WORD_BEFORE = re.compile(
    (
        rf"(?i)(?:^|[^<a-zA-Z])(?:{_WORD})(?![a-zA-Z])[ _-]?(?:number|no|num|nr|nummer|n°|home|work|mobile)?[.#]?"
        rf"[\"'\])>]{{0,2}}\s{{0,3}}(?:[:=|>]|{_WIDE_COLON}|is|est|ist|es)?\s{{0,3}}[\"'(\[]{{0,2}}(?:tel:)?\Z"
    ).encode()
)
_DATE = re.compile(rb"\(?\d\d([./-])\d\d\1(?:19|20)\d\d(?!\d)|(?:19|20)\d\d([./-])\d\d\2\d\d(?!\d)")
_ROW_BEFORE = re.compile(rb"\d[ ./-]\Z")
_ROW_AFTER = re.compile(rb"[ ]\d")
_CALL_BEFORE = re.compile(rb"(?i)(?:\A|[^<0-9a-z_])(?:call|text|dial|ring)[ ]{1,2}\Z")
_CALLED = re.compile(r"1?[2-9]\d\d[2-9]\d{6}|0[1-9]\d{8,9}")
_TIME_OR_DATE = rb"(?:\d?\d:\d\d(?::\d\d)?|(?:19|20)\d\d-\d\d-\d\d|\d?\d([./])\d?\d\%d(?:19|20)?\d\d)"
_NO_ROW_BEFORE = re.compile(
    rb"(?i)(?:(?:\A|[^\w.:/-])%s|(?:\A|[^a-z])(?:apt|apartment|unit|flat|suite|ste|room|rm|floor|box|no|nr|id|street|st|"
    rb"ave|avenue|road|rd|lane|drive|[a-z]{0,40}(?:str|strasse|stra\xc3\x9fe|weg|platz|allee|gasse))"
    rb"\.?[ ]#?\d{1,4}[a-z]?)[ ]\Z" % (_TIME_OR_DATE % 1)
)
"""Numbers that stand before others without being one of a row: a time, a date, a house."""
_NO_ROW_AFTER = re.compile(rb"[ ](?:\d{5}|%s)(?![\w]|[ .,:/-]\d)" % (_TIME_OR_DATE % 1))
"""The same behind: a ZIP code, a time, a date."""
_ZIP_BEHIND = re.compile(rb"(?<=\d\d)[ ]\d{5}\Z")
_DATE_BEHIND = re.compile(rb"[ ](?:(?:19|20)\d\d-\d\d-\d\d|\d\d([./])\d\d\1(?:19|20)\d\d)(?!\d)")
_HEX_BEFORE, _HEX_AFTER = re.compile(rb"\b[0-9A-Fa-f]{2}[ :-]\Z"), re.compile(rb"[ :-][0-9A-Fa-f]{2}\b")
_CONTEXT_BYTES = 56


def international(data: Text) -> Iterator[Span]:
    """Numbers that begin with a country code; one that touches another counts too."""
    behind = -1
    for match in _INTERNATIONAL.finditer(data):
        start = match.start()
        joined = _JOINED.search(before(data, start, num_bytes=2))
        if joined and start - len(joined[1]) != behind:
            continue
        end = _international_end(_without_date(data, match))
        if end and not (b"+" not in match[0] and _is_in_a_row(data, start, start + end)):
            span = _span(data, start, start + end)
            behind = span.end
            yield span


def national(data: Text) -> Iterator[Span]:
    """Numbers in the peculiar groups of some countries."""
    for match in _NATIONAL.finditer(data):
        if not _is_in_a_row(data, match.start(), match.end()):
            yield _span(data, match.start(), match.end())


def trunk(data: Text) -> Iterator[Span]:
    """Numbers in groups that begin with the trunk prefix 0."""
    for match in _TRUNK.finditer(data):
        zip_code = _ZIP_BEHIND.search(match[0])
        end = match.start() + (zip_code.start() if zip_code else len(match[0]))
        if _is_trunk_number(bytes(data[match.start() : end])) and not _is_in_a_row(data, match.start(), end):
            yield _span(data, match.start(), end)


def beside_a_word(data: Text) -> Iterator[Span]:
    """Digits that a word beside them calls a phone number."""
    for match in _BESIDE_A_WORD.finditer(data):
        context = before(data, match.start(), num_bytes=_CONTEXT_BYTES)
        is_called = _CALL_BEFORE.search(context) and _CALLED.fullmatch(digits_of(match[0]))
        if (is_called or _WORD_BEFORE.search(context)) and not _DATE.match(match[0]):
            opened = b")" in match[0] and before(data, match.start(), num_bytes=1) == b"("
            yield _span(data, match.start() - opened, match.end())


_RE2_GAP = r"(?:[ ()./-]|\xc2\xa0|\xe2\x80[\x90\x91\x93\xaf])"
_RE2_WORDS = "|".join(
    (
        r"(?i:(?:\b|[0-9_])(?:tel|phone|mobil|cell|fax|sms|handy|rufnummer|movil|celular|portable|puhelin|gsm|tlf|ph\b|"
        r"whatsapp|hotline|t\xc3\xa9l|m\xc3\xb3vil|(?:call|text|dial|ring|reach) |my number|contact n))",
        *("".join(rf"\x{byte:02x}" for byte in word.encode()) for word in WORDS if ord(word[0]) > 0x2FF),
    )
)
DETECTORS = (
    Detector("phone", rf"(?:\+|00|011){_RE2_GAP}{{0,2}}[1-9](?:{_RE2_GAP}{{0,4}}[0-9]){{6}}", international, "numbers"),
    Detector(
        "phone",
        r"(?:\b|\()(?:[0-9]{3}\)?[ .-]{0,2}[0-9]{3}[ .-][0-9]{4}|[0-9]{2,3}[ .-][0-9]{2,3}[ .-][0-9]{2}[ .-][0-9]{2}|"
        r"8?[0-9]{3}\)?[ -][0-9]{3}[ -][0-9]{2}[ -][0-9]{2}|1[0-9]{2}[ -][0-9]{4}[ -][0-9]{4}|"
        r"[0-9]{2}\)? ?[0-9]{4,5}-[0-9]{4}|0[167][0-9]{8})",
        national,
        "numbers",
    ),
    Detector("phone", rf"\b0[1-9]\)?(?:{_RE2_GAP}{{0,2}}[0-9]\)?){{7}}", trunk, "numbers"),
    Detector("phone", rf"(?:{_RE2_WORDS})[^0-9]*[0-9]", beside_a_word, "names"),
)


def normal(found: bytes) -> str:
    """The number as digits, with + where it is international; without "(0)" and extension."""
    plain = _EXTENSION.sub(b"", found.replace(b"(0)", b""))
    digits = digits_of(plain)
    if b"+" in plain:
        return "+" + digits
    for prefix in ("00", "011"):
        if digits.startswith(prefix) and len(digits) > 10:
            return "+" + digits.removeprefix(prefix)
    return digits


def _span(data: Text, start: int, end: int) -> Span:
    extension = _EXTENSION.match(after(data, end, num_bytes=24))
    return Span("phone", start, end + (extension.end() if extension else 0))


def _without_date(data: Text, match: re.Match[bytes]) -> bytes:
    """What was found up to a date behind it, where that leaves a number."""
    date = _DATE_BEHIND.search(after(data, match.start(), num_bytes=len(match[0]) + 12))
    if date and date.start() < len(match[0]) and _is_international(match[0][: date.start()]):
        return match[0][: date.start()]
    return match[0]


def _international_end(found: bytes) -> int:
    """How much of it is one number: whole groups, as many as make a valid length; 0 where none do."""
    ends = [match.end() for match in re.finditer(rb"\d+", found)]
    for end in reversed(ends):
        if _is_international(found[:end]):
            return end
    return 0


def _is_international(found: bytes) -> bool:
    digits = normal(found).removeprefix("+")
    groups = [len(group) for group in re.findall(rb"\d+", found.replace(b"(0)", b" "))]
    code = _COUNTRY_CODE.match(digits)
    if code is None or not 8 <= len(digits) <= MAX_DIGITS or (code[0] in ("1", "7") and len(digits) != 11):
        return False
    if b"+" not in found and len(groups) < 3 and not (len(groups) == 1 and found[:2] == b"00" and len(digits) > 10):
        return False
    if len(groups) == 1:
        return len(digits) >= 9
    point = b"." in found and b" " not in found and b"-" not in found
    return not (point and len(groups) < 3) and all(size > 1 for size in groups[2:])


def _is_trunk_number(found: bytes) -> bool:
    """Whether digits behind a trunk 0 are grouped as those of a phone number, not as a date or a decimal fraction."""
    sizes = [len(group) for group in re.findall(rb"\d+", found)]
    if len(sizes) < 2 or b" (" in found or _DATE.match(found) or found.count(b"/") > 1:
        return False
    if sizes == [5, 4]:  # a ZIP+4 of New England
        return False
    if (
        not 2 <= sizes[0] <= 5
        or not 9 <= sum(sizes) <= (12 if sizes[0] > 3 and len(sizes) < 4 else 11)
        or any(size < 2 for size in sizes[2:])
        or max(sizes) > 8
        or (len(sizes) == 2 and b"." in found)
    ):
        return False
    if set(sizes) == {2}:
        pairs = [int(group) for group in re.findall(rb"\d+", found)]
        return any(second - first != 1 for first, second in pairwise(pairs))
    return True


def _is_in_a_row(data: Text, start: int, end: int) -> bool:
    """Whether it is cut out of a row of numbers, or out of a dump of bytes."""
    left, right = before(data, start, num_bytes=_CONTEXT_BYTES), after(data, end, num_bytes=24)
    number = bytes(data[start:end])
    spaced = b" " in number and b"-" not in number and b"(" not in number
    if spaced and _ROW_BEFORE.search(left) and not _NO_ROW_BEFORE.search(left):
        return True
    if spaced and _ROW_AFTER.match(right) and not _NO_ROW_AFTER.match(right):
        return True
    return bool(_HEX_BEFORE.search(left) and _HEX_AFTER.match(right))
