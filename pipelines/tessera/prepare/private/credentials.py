"""Keys, tokens, passwords and private keys.

Four ways to know one, from the surest to the least:

* what its issuer begins it with, so that scanners find it (AWS, GitHub, GitLab, Slack, Stripe, Google, OpenAI,
  Anthropic, Hugging Face, npm, PyPI, SendGrid, Databricks and others), JSON Web Tokens (RFC 7519), PEM private keys
  (RFC 7468);
* the password in a URL (`scheme://user:password@host`);
* the value beside a telling name: `password=`, `api_key: `, `"secret": "..."`, `Authorization: Bearer`, or where a
  command takes a password (`curl -u user:`, `IDENTIFIED BY`). Code and its documentation are full of such names with
  nothing secret beside them, so a value that is a type, a name, a path, a call or a placeholder is none, nor is a
  password of letters alone, which nothing tells from a word;
* base64 of 30 or 64 bytes (AWS, Azure) beside a word such as "key";
* randomness: 32 to 128 letters and digits whose class (small, capital, digit) changes nearly as often as chance has it
  (0.62 of the places for base 62; camel case hardly reaches 0.4), with three digits and a high Shannon entropy. A
  hexadecimal digest is none by itself: commits and checksums are everywhere.

The span is the value alone: names, schemes and hosts stay, but those of a webhook, which is secret as a whole.
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
    r"gl(?:pat|ptt|dt|rt|ft|soat|cbt|agent|oas|imt)-[A-Za-z0-9_-]{20,300}(?:\.[0-9a-z]{2}\.[0-9a-z]{9})?",
    r"xoxe\.xox[bp]-[0-9]-[A-Za-z0-9-]{10,255}",
    r"xox[abceoprs]-[A-Za-z0-9-]{10,255}",
    r"xoxd-[A-Za-z0-9%+/_-]{20,512}={0,2}",
    r"xapp-[A-Za-z0-9-]{10,255}",
    r"(?:https://)?hooks\.slack\.com/services/[A-Za-z0-9/]{20,255}",
    r"(?:https://)?discord(?:app)?\.com/api/webhooks/[0-9]{17,20}/[A-Za-z0-9_-]{60,80}",
    r"[MNO][DTjz][AEIMQUYcgk][A-Za-z0-9_-]{20,25}\.[A-Za-z0-9_-]{6}\.[A-Za-z0-9_-]{27,40}",
    r"[prs]k_(?:live_|test_)?[A-Za-z0-9]{16,255}",
    r"whsec_(?:test_)?[A-Za-z0-9+/]{16,255}={0,2}",
    r"AIza[A-Za-z0-9_-]{35}",
    r"ya29\.[A-Za-z0-9_-]{20,500}",
    r"GOCSPX-[A-Za-z0-9_-]{20,64}",
    r"sk-[A-Za-z0-9_-]{20,300}",
    r"hf_[A-Za-z0-9]{30,64}",
    r"npm_[A-Za-z0-9]{30,64}",
    r"pypi-[A-Za-z0-9_-]{40,500}",
    r"SG\.[A-Za-z0-9_-]{16,64}\.[A-Za-z0-9_-]{16,64}",
    r"dapi[0-9a-f]{32}(?:-[0-9]{1,2})?",
    r"do[opr]_v1_[0-9a-f]{64}",
    r"shp(?:at|ca|pa|ss)_[0-9A-Fa-f]{32}",
    r"sq0[a-z]{3}-[A-Za-z0-9_-]{22,64}",
    r"(?:AC|SK)[0-9a-f]{32}",
    r"key-[0-9a-f]{32}",
    r"[0-9a-f]{32}-us[0-9]{1,2}",
    r"hv[sbr]\.[A-Za-z0-9_-]{24,300}",
    r"AT[AC]TT3[A-Za-z0-9_-]{60,300}(?:=[0-9A-F]{8})?",
    r"NRAK-[A-Z0-9]{27}",
    r"PMAK-[0-9a-f]{24}-[0-9a-f]{34}",
    r"sbp_[0-9a-f]{40}",
    r"pul-[0-9a-f]{40}",
    r"rubygems_[0-9a-f]{48}",
    r"dp\.(?:pt|st|ct|sa|scim|audit)\.(?:[a-z0-9_-]{2,35}\.)?[A-Za-z0-9]{40,44}",
    r"AGE-SECRET-KEY-1[0-9A-Z]{58}",
    r"1//0[A-Za-z0-9_-]{30,200}",
    r"pat[A-Za-z0-9]{14}\.[0-9a-f]{64}",
    r"dt0[a-z][0-9]{2}\.[A-Z0-9]{24}\.[A-Z0-9]{64}",
    r"[A-Za-z0-9]{14}\.atlasv1\.[A-Za-z0-9_-]{60,70}",
    r"api_org_[A-Za-z]{34}",
    r"[A-Za-z0-9]{3}[0-9]Q~[A-Za-z0-9_.~-]{33}[A-Za-z0-9_~-]",
    r"[0-9]{8,10}:AA[A-Za-z0-9_-]{33}",
    r"(?<![_-])eyJ[A-Za-z0-9_-]{8,4096}\.eyJ[A-Za-z0-9_-]{8,8192}\.[A-Za-z0-9_-]{8,2048}",
)
"""What issuers write, as `re` reads it, behind neither letter nor digit."""

PASSWORD_NAMES = (
    "pass(?:word|wort|wd|phrase|code)?|pwd?|kennwort|contraseña|senha|wachtwoord|mot de passe|(?:п|П)ароль|密码|密碼"
)
TOKEN_NAMES = (
    "secret|token|(?:api|access|private|auth|account|signing|encryption|hmac)[_ -]?key|credential|authorization|bearer"
)
"""What passwords, and other credentials, are called."""
STEMS = tuple(
    word.encode()
    for word in (
        "pass", "pw", "kennwort", "contrase", "senha", "wachtwoord", "mot de", "пароль",
        "Пароль", "密码", "密碼", "secret", "token", "credential",
        "bearer", "api", "access", "private", "auth", "account", "signing", "encryption", "hmac",
    )
)  # fmt: skip
"""How those names begin."""
SUFFIXES = (
    "(?:[_ -]?(?:key|value|string|id|base|confirm(?:ation)?|prod(?:uction)?|staging|dev|test|new|old)|[_-]?[0-9]{1,2})"
    "{0,2}s?"
)
"""What may end such a name."""
SIGNS = "(?::=|=>|=|:|>|%3D|是|\N{FULLWIDTH COLON})"
VERBS = r"(?:is now|is|set to|ist|lautet|est|es)\b"
"""What stands between a name and its value."""

_PREFIXED = re.compile(rf"(?<![A-Za-z0-9])(?:{'|'.join(PREFIXED)})(?![A-Za-z0-9_])".encode())
_DUMMY = re.compile(rb"(?i)x{8}|your[_-]|EXAMPLE\Z")
_PEM_BEGIN = re.compile(rb"-----BEGIN ([A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?)-----")
_PEM_BODY = re.compile(rb"(?:\s*+[A-Za-z0-9+/=]{16,}+)++")
_PEM_BOUNDARY = re.compile(rb"-----")
_PEM_BYTES = 65536
"""No private key is longer."""
_USERINFO = re.compile(rb"://[^\s/@:\"'<>]{0,128}:([^\s/\"'<>]{3,256})@(?=[A-Za-z0-9\[{$])")
_ASSIGNED = re.compile(
    (
        rf"(?i)(?:({PASSWORD_NAMES})|{TOKEN_NAMES}){SUFFIXES}(?![a-z0-9])(?:(?<=bearer)[ \t]|"
        r"(?:[\"'`\])\\*]{0,4})(?:"
        rf"[ \t]{{0,32}}+\s{{0,3}}+(?:: ?[a-z]{{3,8}} ?=|={{2,3}}(?=[ \t]?[\"'])|{SIGNS})\*{{0,2}}|\s{{1,3}}{VERBS}"
        r"|(?P<cell>[ \t]{0,32}[|\t]))[ \t]{0,32}+\s{0,3}+(?:bearer |basic |token )?)"
        r"(?:[rbf]?(?P<quote>\\{0,3}[\"'`])|)"
    ).encode()
)
_LONGER_WORD = re.compile(
    rb"(?i)[a-z](?<!db)(?<!user)(?<!usr)(?<!root)(?<!admin)(?<!my)(?<!sql)(?<!pg)(?<!smtp)(?<!mail)(?<!ftp)(?<!ssh)(?<!vpn)"
    rb"(?<!ldap)(?<!redis)(?<!mongo)(?<!wifi)(?<!key)(?<!store)(?<!app)(?<!auth)(?<!http)(?<!proxy)(?<!git)(?<!login)"
    rb"(?<!account)(?<!old)(?<!new)(?<!master)(?<!sudo)(?<!become)(?<!test)\Z"
)
"""Before `pass` and `pw`: the end of a word such as bypass or compass, not of what a password belongs to."""
_FLAG = re.compile(rb"--(?:[a-z]+-)*(?:password|passwd|token|api-key|secret|secret-key|access-key)[ =]{1,2}([\"'])?")
_USER_FLAG = re.compile(rb"\s(?:-u|--user)[ =]?[\"']?[\w.@+-]{1,64}:(?=[^\s:])")
_PASSWORD_FLAG = re.compile(
    rb"\bsshpass\s{1,3}-p\s{0,3}([\"'])?|(?<![\w-])mysql[a-z]{0,5}\s[^\n]{0,64}?\s-p([\"'])?(?=\S)"
)
_STATEMENT = re.compile(
    rb"(?i)\b(?:identified(?: with [\w'\"]{1,40})? (?:by|as)(?: password)?|(?:encrypted|with) password) ([\"'])"
)
_QUOTED = {
    quote: re.compile(rb"(?:[^%s\n\\]|\\[^\n])(?:[^%s\n\\]|\\[^\n]){3,511}+(?=%s)" % ((quote,) * 3))
    for quote in (b'"', b"'", b"`")
}
_ESCAPED = {quote: re.compile(rb"[^%s\n\\]{4,512}+(?=\\{1,3}%s)" % (quote, quote)) for quote in (b'"', b"'", b"`")}
_BARE_PASSWORD = re.compile(rb"[^\s\"'`,;<>\\|]{6,512}")
_BARE_TOKEN = re.compile(rb"[^\s\"'`,;<>(){}\[\]\\|&]{6,512}+(?![(\[])")
_NEXT_PARAMETER = re.compile(rb"&\w+=")
_CALL = re.compile(rb"[A-Za-z_.]+[(\[][\w.=()\[\]]*\Z|\w+(?:\.\w+)+\(|[\w.]+\(.*\)\Z")
_TOKEN = re.compile(rb"[A-Za-z0-9](?<![A-Za-z0-9_/+.-].)[A-Za-z0-9_-]{31,127}+(?![A-Za-z0-9_/+-])")

_PLACEHOLDER = re.compile(
    rb"[<{\[]|\(\{|\\u[0-9a-f]{4}|@[A-Za-z-]+\Z|\$[({]|\$(?:[A-Z_][A-Z0-9_]*|[A-Za-z_]+\d{0,3})(?:/|\Z)|%[A-Za-z_]\w+%|%\(|%[sdrSDR]\Z"
)
_SPOKEN_PLACEHOLDER = re.compile(
    rb"(?i)\*\*|\.\.\.|xxxx"
    rb"|your[-_ ]?(?:own|api|pass|secret|token|key|access|auth|user|db|account|client|private|strong)"
    rb"|(?<![a-z0-9])(?:your|example|placeholder|dummy|insert|sample|redacted|my)(?:[-_ .]|\Z)"
    rb"|change[-_ ]?(?:me|it|this)(?![a-z])|placeholder|redacted|example(?:key)?\Z"
)
_PATH = re.compile(rb"(?:~|\.{1,2})?(?:/[\w.@+-]*)+\Z|[A-Za-z]:\\")
_NUMBER = re.compile(
    rb"[+-]?\d+[.,]\d+%?\Z|(?:\d{4}[-/.]\d\d?[-/.]\d\d?|\d\d?[-/.]\d\d?[-/.]\d{4})(?:[T ][\d:.Z+-]*)?\Z"
)
"""Shares and days."""
_TYPE_NAME = re.compile(
    rb"(?i)(?:u?int|float|str|string|bytes|utf|sha|md|bool|complex|datetime|hs|rs|es|ps|base|bcrypt|argon|pbkdf|oauth|v"
    rb"|n?(?:var)?char2?)[-_]?\d*(?:[\[(].*)?"
)
_CODE = re.compile(rb"[A-Za-z_]\w*(?:(?:\.|::|->)[A-Za-z_]\w*)+\Z|[a-z]+://")
_NUMBERED_NAME = re.compile(rb"[A-Za-z_]+(?:-[A-Za-z_]+)*-?\d{1,3}")
_NO_PASSWORDS = frozenset((b"pass", b"password", b"passwd", b"pwd", b"secret", b"user", b"port", b"key"))
_MIXED = re.compile(rb"[A-Z]\d|\d[A-Z]")
_HEX = re.compile(rb"[0-9A-Fa-f]*")
_DIGEST_BEFORE = re.compile(rb"(?i)(?:sha\d{1,3}|md5)[:=-]\Z")
_PUBLIC = re.compile(rb"(?i:sha\d{3}-)|AAAA[A-Z][A-Za-z0-9]Nza|AAAAE2Vj")
"""How a digest and a public key of SSH begin."""
_BASE64_KEY = re.compile(rb"(?<![A-Za-z0-9+/=_.-])(?:[A-Za-z0-9+/]{86}==|[A-Za-z0-9+/]{40})(?![A-Za-z0-9+/=_-])")
_KEY_WORD = re.compile(rb"(?i)key|secret|token|credential|password")
_LETTER_AND_DIGIT = re.compile(rb"[A-Za-z].*\d|\d.*[A-Za-z]")
_CODE_SIGN = re.compile(rb"[(){}\[\]?=]|&&")
_SHORT_NAMES = frozenset((b"pass", b"pw", b"pwd"))
_MINIFIED = frozenset((b"pw", b"Pw", b"PW"))
"""Also what minified code calls anything."""
_OWN_MARK = b"<SECRET"
"""How our own placeholder begins: no name of what follows it."""
_MIN_TOKEN_BYTES = 8


def issued(data: Text) -> Iterator[Span]:
    """What begins as its issuer begins it."""
    for match in _PREFIXED.finditer(data):
        if not _DUMMY.search(match[0]) and (not match[0].startswith(b"sk-") or _is_key_of_model(match[0][3:])):
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
        if match and _is_name(data, match):
            doubtful = match["cell"] is not None or match[1] in _MINIFIED
            is_password = match[1] is not None
            for span in _value(data, match.end(), quote=match["quote"], is_password=is_password, doubtful=doubtful):
                end = span.end
                yield span
    for match in _FLAG.finditer(data):
        yield from _value(data, match.end(), quote=match[1], is_password=b"pass" in match[0])


def commanded(data: Text) -> Iterator[Span]:
    """Passwords where commands and statements of SQL take them."""
    for match in _USER_FLAG.finditer(data):
        if b"curl" in before(data, match.start(), num_bytes=256).rpartition(b"\n")[2]:
            yield from _value(data, match.end(), quote=None, is_password=True)
    for match in _PASSWORD_FLAG.finditer(data):
        yield from _value(data, match.end(), quote=match[1] or match[2], is_password=True)
    for match in _STATEMENT.finditer(data):
        yield from _value(data, match.end(), quote=match[1], is_password=True)


def base64_keys(data: Text) -> Iterator[Span]:
    """Base64 of as many bytes as AWS and Azure give, behind a word that calls it a key."""
    for match in _BASE64_KEY.finditer(data):
        if (
            _MIXED.search(match[0])
            and len(digits_of(match[0])) >= 3
            and not _HEX.fullmatch(match[0])
            and _is_random(match[0], min_bytes=40, min_entropy=4.0, min_changes=0.42)
            and _KEY_WORD.search(before(data, match.start(), num_bytes=48))
        ):
            yield Span("secret", match.start(), match.end())


def random_tokens(data: Text) -> Iterator[Span]:
    """What no one would write by hand."""
    for match in _TOKEN.finditer(data):
        longest = max(re.split(rb"[_-]", match[0]), key=len)
        if (
            _MIXED.search(match[0])
            and len(digits_of(match[0])) >= 3
            and not _HEX.fullmatch(longest)
            and not _PUBLIC.match(match[0])
            and not _DIGEST_BEFORE.search(before(data, match.start(), num_bytes=7))
            and _is_random(match[0], min_bytes=32, min_entropy=4.0, min_changes=0.42)
        ):
            yield Span("secret", match.start(), match.end())


def _as_re2(pattern: str) -> str:
    """A pattern of UTF-8 as Arrow's RE2 reads it on bytes."""
    return "".join(chr(byte) if byte < 128 else rf"\x{byte:02x}" for byte in pattern.encode())


DETECTORS = (
    Detector(
        "secret",
        r"A[KSBCRI][ICDO][AC][A-Z0-9]{16}|gh[opsur]_[A-Za-z0-9]{20}|github_pat_|gl[a-z]{2,5}-[A-Za-z0-9_.-]{20}|xox[a-z][.-]|xapp-|"
        r"hooks\.slack|/api/webhooks/|\.[A-Za-z0-9_-]{6}\.[A-Za-z0-9_-]{27}|(?:[prs]k|whsec)_[A-Za-z0-9+/_]{16}|AIza|ya29\.|GOCSPX-|sk-[A-Za-z0-9_-]{20}|hf_[A-Za-z0-9]{30}|"
        r"npm_[A-Za-z0-9]{30}|pypi-[A-Za-z0-9_-]{40}|SG\.[A-Za-z0-9_-]{16}|dapi[0-9a-f]{32}|do[opr]_v1_|shp[a-z]{2}_|"
        r"sq0[a-z]{3}-|(?:AC|SK|key-)[0-9a-f]{32}|[0-9]{8}:AA|eyJ[A-Za-z0-9_-]{8}|"
        r"[0-9a-f]{32}-us[0-9]|hv[sbr]\.[A-Za-z0-9_-]{24}|AT[AC]TT3|NRAK-|PMAK-|sbp_[0-9a-f]|pul-[0-9a-f]{40}|rubygems_[0-9a-f]|"
        r"dp\.[a-z]{2,5}\.|AGE-SECRET-KEY-1|1//0[A-Za-z0-9_-]{30}|[A-Za-z0-9]\.[0-9a-f]{64}|dt0[a-z][0-9]{2}\.|"
        r"\.atlasv1\.|api_org_|[0-9]Q~",
        issued,
        "issued",
        reach_bytes=2**14,
    ),
    Detector("secret", r"PRIVATE KEY", private_keys, "issued", reach_bytes=2 * _PEM_BYTES),
    Detector("secret", r"://[^\s/@:\"'<>]*:[^\s/\"'<>]+@", passwords_in_urls, "issued"),
    Detector(
        "secret",
        _as_re2(
            rf"(?i:(?:{PASSWORD_NAMES}|{TOKEN_NAMES}){SUFFIXES}[\"'`\])\\*]*"
            rf"(?:\s*(?:: ?[a-z]{{3,8}} ?=|{SIGNS})|\s{{1,3}}{VERBS}|[ \t]*[|\t]))|(?i:bearer)[ \t]"
            r"|--[a-z-]*(?:password|passwd|token|key|secret)[ =]"
        ),
        assigned,
        "names",
        reach_bytes=2**11,
    ),
    Detector(
        "secret",
        r"\s(?:-u|--user)[ =]?[\"']?[0-9A-Za-z_.@+-]+:|sshpass|mysql[a-z]*\s[^\n]*\s-p|"
        r"(?i:identified (?:with [^ ]+ )?(?:by|as)(?: password)? [\"']|(?:encrypted|with) password [\"'])",
        commanded,
        "names",
        reach_bytes=2**11,
    ),
    Detector(
        "secret",
        r"(?:[A-Z][0-9]|[0-9][A-Z])[A-Za-z0-9+/]{19}|[A-Za-z0-9+/]{19}(?:[A-Z][0-9]|[0-9][A-Z])",
        base64_keys,
        "random",
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


def _is_key_of_model(found: bytes) -> bool:
    """What follows `sk-`, also the begin of many a name: random, and not words between hyphens."""
    longest = max(re.split(rb"[_-]", found), key=len)
    return len(longest) >= 16 and _is_random(found, min_bytes=16, min_entropy=3.0, min_changes=0.2)


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


def _is_name(data: Text, match: re.Match[bytes]) -> bool:
    """Whether what `_ASSIGNED` found calls a value secret: no part of another word, no placeholder of ours."""
    start = match.start()
    if before(data, start + len(_OWN_MARK) - 1, num_bytes=len(_OWN_MARK)) == _OWN_MARK:
        return False
    name = (match[1] or b"").lower()
    if match["cell"] is not None and (not name or name in _SHORT_NAMES):
        return False
    if name not in _SHORT_NAMES or name == b"pwd":
        return True
    ahead = before(data, start, num_bytes=8)
    if match[1][:1].isupper() and ahead[-1:].islower():  # dbPass
        return True
    return not _LONGER_WORD.search(ahead)


def _value(data: Text, start: int, *, quote: bytes | None, is_password: bool, doubtful: bool = False) -> Iterator[Span]:
    """The value that begins at `start`, if it may be a credential; a doubtful one must look the more like one."""
    bare = _BARE_PASSWORD if is_password else _BARE_TOKEN
    quoted = (_QUOTED if quote in _QUOTED else _ESCAPED)[quote[-1:]] if quote else None
    match = (quoted or bare).match(data, start)
    if match is None:
        return
    value = match[0] if quote else _trimmed(match[0])
    if doubtful and (not _LETTER_AND_DIGIT.search(value) or (not quote and _CODE_SIGN.search(value))):
        return
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
    if _NUMBER.match(value) or (_PATH.match(value) and (is_password or changes(value) < 0.4)):
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
    return bool(_PLACEHOLDER.match(value) or _SPOKEN_PLACEHOLDER.search(value))
