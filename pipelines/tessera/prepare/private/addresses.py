"""E-mail and IP addresses.

E-mail: the dot-atom form of RFC 5321 with its limits (64 octets before the @, 254 in all, labels of 63), letters of
RFC 6531 from the scripts of two bytes (Latin, Greek, Cyrillic, Hebrew, Arabic): those put spaces between words, so
that an address in a Chinese sentence does not swallow the sentence. Quoted local parts are not looked for. The user of
a URL and `git@` say where code lies, not where somebody reads mail.

IP: what `ipaddress` accepts. Loopback, unspecified (0.0.0.0/8) and network masks (255.0.0.0/8) point at nobody and are
left alone; private, link-local and documentation ranges are found, as they stand for machines of somebody. Numbers
behind a word such as "version", and four of one digit without a word such as "host", a port or a prefix length beside
them, are a version. In IPv6 the slices of Python (`1::2`) and names of C++ (`add::bad`) look like addresses: the short
form must begin with a group of four digits, end in an IPv4 address, or have four groups.
"""

import ipaddress
import re
from collections.abc import Iterator

from tessera.prepare.private.spans import Detector, Span, Text, after, before

MAX_LOCAL_BYTES, MAX_DOMAIN_BYTES, MAX_ADDRESS_BYTES = 64, 253, 254

_LETTER = rb"[\xc3-\xdf][\x80-\xbf]"
_DOMAIN = re.compile(rb"@((?:[A-Za-z0-9-]|%s)++(?:\.(?:[A-Za-z0-9-]|%s)++)++)" % (_LETTER, _LETTER))
_BEFORE_LOCAL = re.compile(rb"[\xe0-\xff][\x80-\xbf]*|\xc2[\x80-\xbf]|\A[\x80-\xbf]+|[^A-Za-z0-9._%+'~\x80-\xdf-]")
_LABEL = re.compile(rb"(?!-)(?:[A-Za-z0-9-]|%s){1,63}(?<!-)" % _LETTER)
_TOP_LABEL = re.compile(rb"(?:[A-Za-z]|%s){2,24}|[Xx][Nn]--[A-Za-z0-9-]+" % _LETTER)
_USERINFO = re.compile(rb"[A-Za-z0-9]://[^/\s@]*\Z")
_PICTURES = frozenset((b"png", b"jpg", b"jpeg", b"gif", b"svg", b"webp"))
_DENSITY = re.compile(rb"[1-4]x")
"""As in `icon@2x.svg.gz`."""
_ATTRIBUTES = frozenset((
    b"transpose", b"inverse", b"inv", b"conj", b"conjugate", b"flatten", b"ravel", b"reshape", b"squeeze", b"detach",
    b"shape", b"dtype", b"ndim", b"astype", b"numpy", b"todense", b"toarray", b"value", b"values", b"sum", b"mean",
    b"got", b"plt",
))  # fmt: skip
"""What follows the point in code (`a@b.transpose`, `f@plt.got`), and no top-level domain."""

_V4 = re.compile(rb"\d(?<![\w.]\d)\d{0,2}\.\d{1,3}\.\d{1,3}\.\d{1,3}(?![0-9A-Za-z_]|\.\d|-[A-Za-z])")
_V6 = re.compile(rb"[0-9A-Fa-f:](?<![\w.].)[0-9A-Fa-f]{0,3}:[0-9A-Fa-f:.]++")
_GROUP_BEFORE = re.compile(rb"(?<![A-Za-z0-9])[0-9A-Fa-f]{1,4}:\Z|\w::\Z")
_SLICE = re.compile(rb"\d*::?\d*(?::\d*)?")
_SUBSCRIPT = re.compile(rb"[\w)\]]\[\Z")
_VERSION = re.compile(
    rb"(?i)(?:(?:version|release|revision|build|firmware|driver|section|chapter|clause"
    rb"|(?<![A-Za-z])(?:sec|ver|rev|article|art|table|figure|fig|appendix|annex|paragraph))s?\b|\xc2\xa7)"
    rb"[ :=(\"'.>]{0,4}\Z|\b[Vv][. ]{1,2}\Z"
)
_PIN = re.compile(rb"(?:[=<>~!^]= ?|(?<=[A-Za-z])-)\Z")
"""What pins the version of a package (`name==1.2`, `name-1.2`), unless an address is compared or named so."""
_MACHINE = (
    rb"(?:(?:(?<![A-Za-z])(?i:ip|addr|host|server|dns|client|from|ping|ssh|src|dst|source|peer|remote|gateway|subnet"
    rb"|forwarded-for)|(?i:nameserver|address|hostname|ipv4|ipaddr)|(?<=[a-z])(?:Ip|IP|Addr|Host|Server))s?)"
)
_MACHINE_BEFORE = re.compile(_MACHINE + rb" ?\Z")
_EVIDENCE_BEFORE = re.compile(
    rb"(?://|@)\Z|" + _MACHINE + rb"(?:[\"'\])]{0,2}\s?(?:[=<>!]=?|:|-| is| at)?\s?[\"'(\[]?)\Z"
)
_EVIDENCE_AFTER = re.compile(rb":\d{2,5}(?![\w.])|/(?:[89]|[12]\d|3[0-2])(?![\w.])|\s-\s\S{1,32}\s\[")
_CHANGE = re.compile(rb"(?i)version|upgrad|updat|downgrad|migrat|releas|bump")
_PACKED = re.compile(rb"\.(?:tar|t?gz|zip|whl|jar|exe|msi|dmg|deb|rpm|dll|so)\b")
_CONTEXT_BYTES = 40


def emails(data: Text) -> Iterator[Span]:
    """E-mail addresses, in order."""
    for match in _DOMAIN.finditer(data):
        domain = match[1].rstrip(b"-")
        local = _local_part(before(data, match.start(), num_bytes=MAX_LOCAL_BYTES + 1))
        start, end = match.start() - len(local), match.start(1) + len(domain)
        if (
            0 < len(local) <= MAX_LOCAL_BYTES
            and end - start <= MAX_ADDRESS_BYTES
            and _is_domain(domain)
            and not _is_place_of_code(data, start, end, local=local)
        ):
            yield Span("email", start, end)


def ipv4_addresses(data: Text) -> Iterator[Span]:
    """IPv4 addresses of hosts and networks, in order."""
    for match in _V4.finditer(data):
        if _is_host(match[0]) and not _is_version(data, match.start(), match.end(), found=match[0]):
            yield Span("ip", match.start(), match.end())


def ipv6_addresses(data: Text) -> Iterator[Span]:
    """IPv6 addresses of hosts and networks, in order."""
    for match in _V6.finditer(data):
        found = _without_punctuation(match[0])
        behind = after(data, match.start() + len(found), num_bytes=1)
        if (
            _is_v6(found, is_network=behind == b"/")
            and not behind.isalnum()
            and not _is_part_of_code(found, before(data, match.start(), num_bytes=6))
        ):
            yield Span("ip", match.start(), match.start() + len(found))


DETECTORS = (
    Detector("email", r"@[A-Za-z0-9\x80-\xff][A-Za-z0-9\x80-\xff.-]*\.[A-Za-z\x80-\xff]", emails, "numbers"),
    Detector("ip", r"[0-9]\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]", ipv4_addresses, "numbers"),
    Detector(
        "ip",
        r"\b[0-9A-Fa-f]{4}:(?:[0-9A-Fa-f]{1,4}:){0,6}:|(?:[0-9A-Fa-f]{1,4}::?){3}[0-9A-Fa-f]|::[0-9A-Fa-f]{4}[:/]",
        ipv6_addresses,
        "numbers",
    ),
)


def _local_part(window: bytes) -> bytes:
    """What stands before an @ as one word; empty where it is none."""
    local = _BEFORE_LOCAL.split(window)[-1]
    return b"" if local.endswith(b".") else local.rpartition(b"..")[2].lstrip(b".'-%+~")


def _is_domain(domain: bytes) -> bool:
    labels = domain.split(b".")
    if len(domain) > MAX_DOMAIN_BYTES or not all(map(_LABEL.fullmatch, labels)):
        return False
    if not _TOP_LABEL.fullmatch(labels[-1]) or labels[-1].lower() in _PICTURES:
        return False
    if labels[-1].lower() in _ATTRIBUTES or (_DENSITY.fullmatch(labels[0]) and labels[1].lower() in _PICTURES):
        return False
    return not (len(labels) > 2 and labels[0].isdigit() and labels[1].isdigit())  # package@1.0.0-beta.rc


def _is_place_of_code(data: Text, start: int, end: int, *, local: bytes) -> bool:
    if _USERINFO.search(before(data, start, num_bytes=2 * MAX_ADDRESS_BYTES)):
        return True
    behind = after(data, end, num_bytes=1)
    return behind == b"(" or (local == b"git" and behind in (b":", b"/"))


def _is_host(found: bytes) -> bool:
    """Whether this IPv4 address points at somebody."""
    try:
        address = ipaddress.IPv4Address(found.decode())
    except ipaddress.AddressValueError:
        return False
    return address.packed[0] not in (0, 127, 255)


def _is_version(data: Text, start: int, end: int, *, found: bytes) -> bool:
    context = before(data, start, num_bytes=_CONTEXT_BYTES)
    pin = _PIN.search(context)
    if pin and not _MACHINE_BEFORE.search(context[: pin.start()]):
        return True
    if _VERSION.search(context) or _PACKED.match(after(data, end, num_bytes=5)):
        return True
    return len(found) == len("1.2.3.4") and not _is_of_machine(context, after(data, end, num_bytes=_CONTEXT_BYTES))


def _is_of_machine(ahead: bytes, behind: bytes) -> bool:
    """Whether what stands around four digits says that they are an address."""
    if _EVIDENCE_AFTER.match(behind):
        return True
    return bool(_EVIDENCE_BEFORE.search(ahead)) and not _CHANGE.search(ahead.rpartition(b"\n")[2])


def _is_part_of_code(found: bytes, ahead: bytes) -> bool:
    """Whether it is a slice, `x[1000::2]`, or begins within a longer row of groups."""
    return bool(_GROUP_BEFORE.search(ahead) or (_SUBSCRIPT.search(ahead) and _SLICE.fullmatch(found)))


def _without_punctuation(found: bytes) -> bytes:
    """The end of a sentence or a colon after an address is not part of it."""
    found = found.rstrip(b".")
    return found[:-1] if found.endswith(b":") and not found.endswith(b"::") else found


def _is_v6(found: bytes, *, is_network: bool) -> bool:
    if not 6 <= len(found) <= 45:
        return False
    groups = [group for group in found.split(b":") if group]
    if not groups:
        return False
    if b"::" in found:
        likely = len(groups) > 3 or (len(groups[0]) == 4 and (len(groups) > 1 or is_network))
        likely = likely or (len(groups) > 1 and b"." in groups[-1])
    else:
        likely = any(len(group) > 2 for group in groups)  # eight pairs are a fingerprint
    if not likely or not any(48 <= byte <= 57 for byte in found):
        return False
    try:
        address = ipaddress.IPv6Address(found.decode())
    except ipaddress.AddressValueError:
        return False
    inner = address.ipv4_mapped or address
    return not (inner.is_loopback or inner.is_unspecified)
