"""Keys, tokens, passwords and private keys.

Four ways to know one, from the surest to the least:

* what its issuer begins it with, so that scanners find it (AWS, GitHub, GitLab, Slack, Stripe, Google, OpenAI,
  Anthropic, Hugging Face, npm, PyPI, SendGrid, Databricks and others), JSON Web Tokens (RFC 7519), PEM private keys
  (RFC 7468);
* the password in a URL (`scheme://user:password@host`);
* the value beside a telling name: `password=`, `api_key: `, `"secret": "..."`, `Authorization: Bearer`. Code and its
  documentation are full of such names with nothing secret beside them, so a value that is a type, a name, a call or a
  placeholder is none, nor is a password of letters alone, which nothing tells from a word;
* randomness: 32 to 128 letters and digits whose class (small, capital, digit) changes nearly as often as chance has it
  (0.62 of the places for base 62; camel case hardly reaches 0.4), with three digits and a high Shannon entropy. A
  hexadecimal digest is none by itself: commits and checksums are everywhere.

The span is the value alone: names, schemes and hosts stay.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

from tessera.prepare.private.spans import Detector, Span, Text, after, before, digits_of, places

PREFIXED = (
    r"(?:AKIA|ASIA|ABIA|ACCA|AROA|AIDA)[A-Z0-9]{16}",
    r"gh[opsur]_[A-Za-z0-9]{20,255}",
    r"github_pat_[A-Za-z0-9_]{22,255}",
    r"gl(?:pat|ptt|dt|rt|ft|soat|cbt|agent|oas|imt)-[A-Za-z0-9_.-]{20,300}",
    r"xox[abeoprs]-[A-Za-z0-9-]{10,255}",
    r"xapp-[A-Za-z0-9-]{10,255}",
    r"hooks\.slack\.com/services/[A-Za-z0-9/]{20,255}",
    r"(?:[prs]k|whsec)_(?:live_|test_)?[A-Za-z0-9]{16,255}",
    r"AIza[A-Za-z0-9_-]{35}",
    r"ya29\.[A-Za-z0-9_-]{20,500}",
    r"GOCSPX-[A-Za-z0-9_-]{20,64}",
    r"sk-[A-Za-z0-9_-]{20,300}",
    r"hf_[A-Za-z0-9]{30,64}",
    r"npm_[A-Za-z0-9]{30,64}",
    r"pypi-[A-Za-z0-9_-]{40,500}",
    r"SG\.[A-Za-z0-9_-]{16,64}\.[A-Za-z0-9_-]{16,64}",
    r"dapi[0-9a-f]{32}",
    r"do[opr]_v1_[0-9a-f]{64}",
    r"shp(?:at|ca|pa|ss)_[0-9A-Fa-f]{32}",
    r"sq0[a-z]{3}-[A-Za-z0-9_-]{22,64}",
    r"(?:AC|SK)[0-9a-f]{32}",
    r"key-[0-9a-f]{32}",
    r"[0-9]{8,10}:AA[A-Za-z0-9_-]{33}",
    r"eyJ[A-Za-z0-9_-]{8,4096}\.eyJ[A-Za-z0-9_-]{8,8192}\.[A-Za-z0-9_-]{8,2048}",
)
"""What issuers write, each as RE2 and `re` both read it."""

PASSWORD_NAMES = "pass(?:word|wort|wd|phrase|code)?|pwd|kennwort|contraseña|senha|wachtwoord|mot de passe"
TOKEN_NAMES = (
    "secret|token|(?:api|access|private|auth|account|signing|encryption)[_ -]?key|credential|authorization|bearer"
)
"""What passwords, and other credentials, are called, as `re` reads it."""
STEMS = tuple(
    word.encode()
    for word in (
        "pass", "pwd", "kennwort", "contrase", "senha", "wachtwoord", "mot de", "secret", "token", "credential",
        "bearer", "api", "access", "private", "auth", "account", "signing", "encryption",
    )
)  # fmt: skip
"""How those names begin."""

_PREFIXED = re.compile(rf"(?:{'|'.join(PREFIXED)})(?![A-Za-z0-9_])".encode())
_PEM_BEGIN = re.compile(rb"-----BEGIN ([A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?)-----")
_PEM_BODY = re.compile(rb"(?:\s*+[A-Za-z0-9+/=]{16,}+)++")
_PEM_BOUNDARY = re.compile(rb"-----")
_PEM_BYTES = 65536
"""No private key is longer."""
_USERINFO = re.compile(rb"://[^\s/@:\"'<>]{0,128}:([^\s/\"'<>]{3,256})@(?=[A-Za-z0-9\[{$])")
_ASSIGNED = re.compile(
    (
        rf"(?i)(?:({PASSWORD_NAMES})|{TOKEN_NAMES})(?:[_ -]?(?:key|value|string|id))?s?(?![a-z0-9])"
        r"(?:[\"'`\])]{0,2}\s{0,3}(?:: ?[a-z]{3,8} ?=|:=|=>|=|:|>|is\b)\s{0,3}(?:bearer |basic |token )?|(?<=bearer)\s)"
        r"(?:[rbf]?([\"'`])|)"
    ).encode()
)
_FLAG = re.compile(rb"--(?:[a-z]+-)*(?:password|passwd|token|api-key|secret|secret-key|access-key)[ =]{1,2}([\"'])?")
_QUOTED = {quote: re.compile(rb"[^%s\n\\]{4,512}(?=%s)" % (quote, quote)) for quote in (b'"', b"'", b"`")}
_BARE_PASSWORD = re.compile(rb"[^\s\"'`,;<>\\|]{6,512}")
_BARE_TOKEN = re.compile(rb"[^\s\"'`,;<>(){}\[\]\\|&]{6,512}+(?![(\[])")
_NEXT_PARAMETER = re.compile(rb"&\w+=")
_CALL = re.compile(rb"[A-Za-z_.]+[(\[][\w.=()\[\]]*\Z|\w+(?:\.\w+)+\(|[\w.]+\(.*\)\Z")
_TOKEN = re.compile(rb"[A-Za-z0-9](?<![A-Za-z0-9_/+.-].)[A-Za-z0-9_-]{31,127}+(?![A-Za-z0-9_/+-])")

_PLACEHOLDER = re.compile(rb"(?i)[<{\[]|@[a-z-]+\Z|\$[({]|\$[a-z_]+(?:/|\Z)|%[a-z_]{2,}%|%\(|%[sdr]\Z")
_SPOKEN_PLACEHOLDERS = (
    b"**", b"...", b"your", b"example", b"xxxx", b"placeholder", b"change", b"redacted", b"dummy", b"insert", b"sample",
    b"my-", b"my_",
)  # fmt: skip
_TYPE_NAME = re.compile(
    rb"(?i)(?:u?int|float|str|string|bytes|utf|sha|md|bool|complex|datetime|hs|rs|es|ps|base|bcrypt|argon|pbkdf|oauth|v)[-_]?\d*"
    rb"(?:\[.*)?"
)
_CODE = re.compile(rb"[A-Za-z_]\w*(?:(?:\.|::|->)[A-Za-z_]\w*)+\Z|[a-z]+://")
_NUMBERED_NAME = re.compile(rb"[A-Za-z_]+\d{1,3}")
_NO_PASSWORDS = frozenset((b"pass", b"password", b"passwd", b"pwd", b"secret", b"user", b"port"))
_MIXED = re.compile(rb"[A-Z]\d|\d[A-Z]")
_HEX = re.compile(rb"[0-9A-Fa-f]*")
_OWN_MARK = b"<SECRET"
"""How our own placeholder begins: no name of what follows it."""
_MIN_TOKEN_BYTES = 8


def issued(data: Text) -> Iterator[Span]:
    """What begins as its issuer begins it."""
    for match in _PREFIXED.finditer(data):
        if before(data, match.start(), num_bytes=1).isalnum():
            continue
        if not match[0].startswith(b"sk-") or _is_random(match[0][3:], min_bytes=16, min_entropy=3.0, min_changes=0.2):
            yield Span("secret", match.start(), match.end())


def private_keys(data: Text) -> Iterator[Span]:
    """PEM blocks, from BEGIN to END."""
    for match in _PEM_BEGIN.finditer(data):
        yield Span("secret", match.start(), _pem_end(data, match))


def passwords_in_urls(data: Text) -> Iterator[Span]:
    """What stands between a user's name and the host."""
    for match in _USERINFO.finditer(data):
        if not _is_placeholder(match[1]) and match[1].lower() not in _NO_PASSWORDS:
            yield Span("secret", match.start(1), match.end(1))


def assigned(data: Text) -> Iterator[Span]:
    """Values beside a name that calls them secret."""
    end = 0
    for place in places(data, words=STEMS):
        match = _ASSIGNED.match(data, place) if place >= end else None
        if match and before(data, place + len(_OWN_MARK) - 1, num_bytes=len(_OWN_MARK)) != _OWN_MARK:
            for span in _value(data, match.end(), quote=match[2], is_password=match[1] is not None):
                end = span.end
                yield span
    for match in _FLAG.finditer(data):
        yield from _value(data, match.end(), quote=match[1], is_password=b"pass" in match[0])


def random_tokens(data: Text) -> Iterator[Span]:
    """What no one would write by hand."""
    for match in _TOKEN.finditer(data):
        longest = max(re.split(rb"[_-]", match[0]), key=len)
        if (
            _MIXED.search(match[0])
            and len(digits_of(match[0])) >= 3
            and not _HEX.fullmatch(longest)
            and _is_random(match[0], min_bytes=32, min_entropy=4.0, min_changes=0.42)
        ):
            yield Span("secret", match.start(), match.end())


DETECTORS = (
    Detector(
        "secret",
        r"A[KSBCRI][ICDO][AC][A-Z0-9]{16}|gh[opsur]_[A-Za-z0-9]{20}|github_pat_|gl[a-z]{2,5}-[A-Za-z0-9_.-]{20}|xox[a-z]-|xapp-|"
        r"hooks\.slack|(?:[prs]k|whsec)_[A-Za-z0-9_]{16}|AIza|ya29\.|GOCSPX-|sk-[A-Za-z0-9_-]{20}|hf_[A-Za-z0-9]{30}|"
        r"npm_[A-Za-z0-9]{30}|pypi-[A-Za-z0-9_-]{40}|SG\.[A-Za-z0-9_-]{16}|dapi[0-9a-f]{32}|do[opr]_v1_|shp[a-z]{2}_|"
        r"sq0[a-z]{3}-|(?:AC|SK|key-)[0-9a-f]{32}|[0-9]{8}:AA|eyJ[A-Za-z0-9_-]{8}",
        issued,
        "issued",
        reach_bytes=2**14,
    ),
    Detector("secret", r"PRIVATE KEY", private_keys, "issued", reach_bytes=2 * _PEM_BYTES),
    Detector("secret", r"://[^\s/@:\"'<>]*:[^\s/\"'<>]+@", passwords_in_urls, "issued"),
    Detector(
        "secret",
        r"(?i:pass[a-z]{0,6}|pwd|kennwort|contrase\xc3\xb1a|senha|wachtwoord|mot de passe|"
        r"secret|token|(?:api|access|private|auth|account|signing|encryption)[_ -]?key|credential|authorization)"
        r"(?:[_ -]?(?:key|value|string|id))?s?[\"'`\])]{0,2}\s{0,3}(?:[:=>]|is\b)|(?i:bearer)[ \t][^ ]*[0-9]"
        r"|--[a-z-]*(?:password|passwd|token|key|secret)[ =]",
        assigned,
        "names",
    ),
    Detector(
        "secret",
        r"(?:[A-Z][0-9]|[0-9][A-Z])[A-Za-z0-9_-]{15}|[A-Za-z0-9_-]{15}(?:[A-Z][0-9]|[0-9][A-Z])",
        random_tokens,
        "random",
    ),
)


def entropy(found: bytes) -> float:
    """Shannon's, of the distribution of its bytes, in bits a byte."""
    counts = Counter(found).values()
    return -sum(count / len(found) * math.log2(count / len(found)) for count in counts)


def changes(found: bytes) -> float:
    """In how large a share of its places the class of characters (small, capital, digit, other) changes."""
    classes = [_class_of(byte) for byte in found]
    return sum(first != second for first, second in pairwise(classes)) / max(1, len(found) - 1)


def _is_random(found: bytes, *, min_bytes: int, min_entropy: float, min_changes: float) -> bool:
    classes = {_class_of(byte) for byte in found}
    mixed = len(classes - {3}) > 1
    return len(found) >= min_bytes and mixed and changes(found) >= min_changes and entropy(found) >= min_entropy


def _class_of(byte: int) -> int:
    if 97 <= byte <= 122:
        return 0
    if 65 <= byte <= 90:
        return 1
    return 2 if 48 <= byte <= 57 else 3


def _pem_end(data: Text, begin: re.Match[bytes]) -> int:
    """Where its END line ends; where the text of a key ends, if that line is missing."""
    limit = begin.end() + _PEM_BYTES
    end_line = b"-----END " + begin[1] + b"-----"
    boundary = _PEM_BOUNDARY.search(data, begin.end(), limit)
    if boundary and after(data, boundary.start(), num_bytes=len(end_line)) == end_line:
        return boundary.start() + len(end_line)
    body = _PEM_BODY.match(data, begin.end(), boundary.start() if boundary else limit)
    return body.end() if body else begin.end()


def _value(data: Text, start: int, *, quote: bytes | None, is_password: bool) -> Iterator[Span]:
    """The value that begins at `start`, if it may be a credential."""
    bare = _BARE_PASSWORD if is_password else _BARE_TOKEN
    match = (_QUOTED[quote] if quote else bare).match(data, start)
    if match is None:
        return
    value = match[0] if quote else _trimmed(match[0])
    if _may_be_secret(value, quoted=bool(quote), is_password=is_password):
        yield Span("secret", start, start + len(value))


def _trimmed(bare: bytes) -> bytes:
    """Without what may follow a value in no quotes: the next parameter of a URL, a closing bracket, a full stop."""
    value = _NEXT_PARAMETER.split(bare, maxsplit=1)[0]
    for opening, closing in (b"()", b"[]", b"{}"):
        while value[-1:] == bytes([closing]) and value.count(closing) > value.count(opening):
            value = value[:-1]
    return value.rstrip(b".:?")


def _may_be_secret(value: bytes, *, quoted: bool, is_password: bool) -> bool:
    if _is_placeholder(value) or _TYPE_NAME.fullmatch(value) or (b" " in value and not is_password):
        return False
    if not quoted and (
        _CODE.match(value) or _CALL.match(value) or (not is_password and _NUMBERED_NAME.fullmatch(value))
    ):
        return False
    kinds = {_class_of(byte) for byte in value}
    letters, digits = bool(kinds & {0, 1}), 2 in kinds
    if is_password:
        special = bool(re.search(rb"[^\w\s./:-]", value))
        strong = digits or (letters and special)
        return len(value) >= 6 and value.count(b" ") < 4 and strong
    random = len(value) >= 20 and changes(value) >= 0.4
    return len(value) >= _MIN_TOKEN_BYTES and letters and (digits or random) and entropy(value) >= 2.5


def _is_placeholder(value: bytes) -> bool:
    """Whether it stands for a value that is to be put in, as `${NAME}` or `your-key-here`."""
    lower = value.lower()
    return bool(_PLACEHOLDER.match(value)) or any(word in lower for word in _SPOKEN_PLACEHOLDERS)
