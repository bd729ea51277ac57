"""What sources may be used for, and under which licences: refused before a row is read. No Spark, no cost.

A source that declares no purposes may be used for any: declaring is how an owner limits. A source that declares no
licence is refused where licences are limited: nobody knows what it allows.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

from tessera.errors import SourceError
from tessera.prepare.settings import SourceSettings

TOKEN = re.compile(r"[()]|[^\s()]+")
ID = re.compile(r"(?:DocumentRef-[A-Za-z0-9.-]+:)?[A-Za-z0-9.-]+\+?")
OPERATORS = {"AND": "and", "OR": "or", "WITH": "with", "and": "and", "or": "or", "with": "with"}
"""In capitals or in small letters, never mixed."""


def check(sources: Iterable[SourceSettings], *, purpose: str | None, licenses: Sequence[str] | None) -> None:
    """Refuses sources that do not allow what is wanted.

    Args:
        purpose: what the documents are prepared for; None asks for none, and is never refused.
        licenses: SPDX ids that are allowed, each with its exception where it has one; None allows any.

    Raises:
        SourceError: naming every source that is in the way, what it allows, and what was wanted.
    """
    listed = list(sources)
    refuse_purpose({one.name: one.purposes for one in listed}, purpose=purpose, option="prepare.purpose")
    if licenses is not None:
        _refuse_licenses(listed, licenses=licenses)


def refuse_purpose(allowed: Mapping[str, Sequence[str]], *, purpose: str | None, option: str) -> None:
    """Refuses a purpose that a source does not allow. Purposes are compared as they are written.

    Args:
        allowed: source -> its purposes, as the conf declares them or as a set's record holds them; empty: any.
        purpose: None is never refused.
        option: the setting that names the purpose, such as `train.purpose`.

    Raises:
        SourceError: naming every source that is in the way, what it allows, and what was wanted.
    """
    if purpose is None:
        return
    against = {name: purposes for name, purposes in sorted(allowed.items()) if purposes and purpose not in purposes}
    if not against:
        return
    said = "; ".join(f"{name} allows {', '.join(sorted(purposes))}" for name, purposes in against.items())
    raise SourceError(
        f"{option} is {purpose}, which not every source allows: {said}. Leave these sources out of prepare.sources, or "
        "have their owner allow it: purposes"
    )


def satisfied(expression: str, *, licenses: Iterable[str]) -> bool:
    """Whether an SPDX expression is met by allowed licences: of `A OR B` one of them, of `A AND B` both.

    Ids are compared whole and without regard to case; `A WITH exception` and `A+` are licences of their own, since an
    exception that was not looked at is not allowed. Whether an id is on SPDX's list is not asked. Grammar and
    precedence: SPDX 3.0.1, annex "SPDX license expressions".

    Raises:
        ValueError: it is no such expression, saying why.
    """
    tokens = TOKEN.findall(expression)[::-1]
    met = _either(tokens, allowed=frozenset(_same_case(one) for one in licenses))
    if tokens:
        raise ValueError(f"{tokens[-1]!r} is not expected there")
    return met


def _refuse_licenses(sources: Sequence[SourceSettings], *, licenses: Sequence[str]) -> None:
    _check_ids(licenses)
    against = [said for one in sources if (said := _against(one, licenses=licenses))]
    if against:
        raise SourceError(
            f"prepare.licenses allows {', '.join(licenses) or 'none'}: {'; '.join(against)}. Leave these sources out "
            "of prepare.sources, declare the license they are under, or allow it"
        )


def _against(source: SourceSettings, *, licenses: Sequence[str]) -> str:
    """What is in the way of a source; empty when nothing is."""
    if not source.license:
        return f"{source.name} declares no license"
    try:
        met = satisfied(source.license, licenses=licenses)
    except (ValueError, RecursionError) as error:
        return f"{source.name} declares {source.license[:200]!r}, which is no SPDX expression ({error})"
    return "" if met else f"{source.name} is under {source.license}"


def _check_ids(licenses: Sequence[str]) -> None:
    """Refuses what is no single licence: an allowed `A AND B` would be compared with nothing."""
    for one in licenses:
        try:
            single = satisfied(one, licenses=[one])
        except ValueError:
            single = False
        if not single:
            raise SourceError(
                f"prepare.licenses: {one!r} is no single SPDX license, such as Apache-2.0; list each alone"
            )


def _either(tokens: list[str], *, allowed: frozenset[str]) -> bool:
    """`both {OR both}`; `tokens` come last first, and lose what was read."""
    met = _both(tokens, allowed=allowed)
    while _take(tokens, operator="or"):
        met = _both(tokens, allowed=allowed) or met
    return met


def _both(tokens: list[str], *, allowed: frozenset[str]) -> bool:
    """`one {AND one}`."""
    met = _one(tokens, allowed=allowed)
    while _take(tokens, operator="and"):
        met = _one(tokens, allowed=allowed) and met
    return met


def _one(tokens: list[str], *, allowed: frozenset[str]) -> bool:
    """`(either)`, or a licence with or without an exception."""
    if tokens and tokens[-1] == "(":
        tokens.pop()
        met = _either(tokens, allowed=allowed)
        if not tokens or tokens.pop() != ")":
            raise ValueError("a parenthesis is not closed")
        return met
    license = _id(tokens)
    if _take(tokens, operator="with"):
        license = f"{license} with {_id(tokens)}"
    return _same_case(license) in allowed


def _id(tokens: list[str]) -> str:
    if not tokens:
        raise ValueError("it ends where an id was expected")
    found = tokens.pop()
    if found in OPERATORS or not ID.fullmatch(found):
        raise ValueError(f"found {found!r} where an id was expected")
    return found


def _take(tokens: list[str], *, operator: str) -> bool:
    """Whether the next token is the operator; it is then read."""
    if tokens and OPERATORS.get(tokens[-1]) == operator:
        tokens.pop()
        return True
    return False


def _same_case(license: str) -> str:
    return " ".join(license.split()).casefold()
