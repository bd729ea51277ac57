"""Governance: what is refused names its source; SPDX expressions against Python's own `and` and `or`."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.errors import SourceError
from tessera.prepare.governance import check, refuse_purpose, satisfied
from tessera.prepare.settings import SourceSettings

LICENSES = ("MIT", "Apache-2.0", "GPL-2.0-only", "BSD-3-Clause", "LicenseRef-our.own")


def source(name: str, *, purposes: tuple[str, ...] = (), license: str | None = None) -> SourceSettings:
    return SourceSettings(table=name, purposes=purposes, license=license)


def test_a_purpose_that_a_source_does_not_allow_is_refused_with_all_such_sources() -> None:
    sources = [source("notes", purposes=("search", "evaluate")), source("pages"), source("mail", purposes=("search",))]

    check(sources, purpose=None, licenses=None)
    check(sources, purpose="search", licenses=None)
    with pytest.raises(SourceError) as caught:
        check(sources, purpose="train", licenses=None)

    said = str(caught.value)
    assert "prepare.purpose is train" in said
    assert "mail allows search; notes allows evaluate, search" in said
    assert "pages" not in said, "what declares nothing allows any"
    assert "Leave these sources out of prepare.sources" in said


def test_purposes_are_compared_as_they_are_written() -> None:
    for near in ("Train", "train ", "training", ""):
        with pytest.raises(SourceError, match=r"train\.purpose is"):
            refuse_purpose({"notes": ["train"]}, purpose=near, option="train.purpose")

    refuse_purpose({"notes": ["train"], "pages": []}, purpose="train", option="train.purpose")
    refuse_purpose({}, purpose="train", option="train.purpose")


def test_a_license_that_is_not_allowed_or_not_declared_is_refused() -> None:
    sources = [
        source("a", license="mit"), source("b", license="GPL-2.0-only"), source("c"), source("d", license="MIT/GPL")
    ]  # fmt: skip

    check(sources, purpose="train", licenses=None)
    check(sources[:1], purpose="train", licenses=("MIT",))
    with pytest.raises(SourceError) as caught:
        check(sources, purpose=None, licenses=("MIT", "Apache-2.0"))

    said = str(caught.value)
    assert said.startswith(
        "prepare.licenses allows MIT, Apache-2.0: b is under GPL-2.0-only; c declares no license; d declares "
        "'MIT/GPL', which is no SPDX expression (found 'MIT/GPL' where an id was expected). Leave"
    )
    with pytest.raises(SourceError, match="allows none: a is under mit"):
        check(sources[:1], purpose=None, licenses=())


@pytest.mark.parametrize("allowed", ["MIT OR Apache-2.0", "(MIT)", "", "MIT License", "AND"])
def test_what_is_allowed_is_listed_license_by_license(allowed: str) -> None:
    with pytest.raises(SourceError, match="no single SPDX license"):
        check([source("a", license="MIT")], purpose=None, licenses=(allowed,))


@pytest.mark.parametrize(
    ("expression", "met"),
    [
        ("apache-2.0", True),
        ("Apache-2.0+", False),
        ("MIT OR GPL-2.0-only AND BSD-3-Clause", True),
        ("(MIT OR GPL-2.0-only) AND BSD-3-Clause", False),
        ("GPL-2.0-only", False),
        ("GPL-2.0-only WITH Classpath-exception-2.0", True),
        ("gpl-2.0-only  with  classpath-exception-2.0 and MIT", True),
        ("MIT WITH Classpath-exception-2.0", False),
    ],
)
def test_ids_are_compared_whole_and_without_case(expression: str, met: bool) -> None:
    allowed = ("MIT", "Apache-2.0", "GPL-2.0-only WITH Classpath-exception-2.0")
    check([source("a", license="MIT")], purpose=None, licenses=allowed)

    assert satisfied(expression, licenses=allowed) == met


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("", "it ends"), ("MIT OR", "it ends"), ("AND MIT", "found 'AND'"), ("MIT GPL", "'GPL' is not"),
        ("(MIT", "not closed"), ("(MIT GPL", "not closed"), ("MIT)", r"'\)' is not"), ("()", r"found '\)'"),
        ("MIT Or GPL-2.0-only", "'Or' is not"), ("MIT WITH (X)", r"found '\('"), ("(MIT) WITH X", "'WITH' is not"),
        ("MIT, BSD-3-Clause", "found 'MIT,'"),
    ],
)  # fmt: skip
def test_what_is_no_expression_is_said(expression: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        satisfied(expression, licenses=("MIT",))


def test_an_expression_without_end_is_refused_like_any_other() -> None:
    with pytest.raises(SourceError, match=r"a declares .* no SPDX expression"):
        check([source("a", license="(" * 5_000 + "MIT" + ")" * 5_000)], purpose=None, licenses=("MIT",))


def expressions() -> st.SearchStrategy[str]:
    """Of any shape, in parentheses or not, operators in capitals or small letters."""
    operators = st.sampled_from([" AND ", " OR ", " and ", " or "])
    return st.recursive(
        st.sampled_from(LICENSES),
        lambda inner: st.one_of(
            st.tuples(inner, operators, inner).map("".join), inner.map(lambda one: f"({one})")
        ),
        max_leaves=12,
    )  # fmt: skip


@given(expression=expressions(), allowed=st.sets(st.sampled_from(LICENSES)))
def test_an_expression_means_what_it_means_in_python(expression: str, allowed: set[str]) -> None:
    """Python has the same precedence: `and` before `or`."""
    python = re.sub("|".join(map(re.escape, LICENSES)), lambda found: str(found[0] in allowed), expression)

    expected = eval(python.replace("AND", "and").replace("OR", "or"))
    assert satisfied(expression.swapcase(), licenses=allowed) == expected
