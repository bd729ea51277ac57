"""Every failpoint is named in the code once it is listed, and a fault test passes each."""

import re
from pathlib import Path

import pytest

import tessera
from tessera import failpoints

PACKAGE = Path(tessera.__file__).parent
TESTS = Path(__file__).parent


def text_of(folder: Path) -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in folder.rglob("*.py") if path.name != "failpoints.py")


@pytest.mark.parametrize("point", failpoints.POINTS)
def test_each_point_is_in_the_code_and_in_a_fault_test(point: str) -> None:
    assert f'failpoints.hit("{point}")' in text_of(PACKAGE)
    assert re.search(rf"{re.escape(point)}:(kill|raise|\{{)", text_of(TESTS)), f"no fault test stops at {point}"


def test_no_point_is_passed_that_is_not_listed() -> None:
    passed = set(re.findall(r'failpoints\.hit\("([^"]+)"\)', text_of(PACKAGE)))

    assert passed == set(failpoints.POINTS)


def test_a_point_does_nothing_unless_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TESSERA_FAIL", raising=False)
    failpoints.hit("ledger.before_append")
    monkeypatch.setenv("TESSERA_FAIL", "serve.before_alias:raise")
    failpoints.hit("ledger.before_append")

    with pytest.raises(failpoints.InjectedFault):
        failpoints.hit("serve.before_alias")
