"""The sample table: docstrings read off source files, checked against Python's own idea of them."""

import importlib
import inspect

import pytest

from tessera import tables
from tessera.errors import SourceError
from tessera.home import Home
from tessera.prepare import sample
from tessera.prepare.settings import SampleSettings

SMALL = SampleSettings(packages=("pluggy", "rich"))

SOURCE = b'''"""Module text."""
class A(Base):
    """A text."""
    @property
    def x(self) -> int:
        """Getter."""
    @x.setter
    def x(self, value): 
        """Setter."""
    def silent(self): pass
if True:
    async def f(a, *, b=1):
        """Async text."""
        def inner():
            """Inner text."""
'''


def test_docstrings_of_finds_each_definition_once_in_source_order() -> None:
    found = list(sample.docstrings_of(SOURCE, module="m"))

    assert found == [
        ("m", "module", "", "Module text."),
        ("m.A", "class", "class A(Base)", "A text."),
        ("m.A.x", "function", "x(self) -> int", "Getter."),
        ("m.A.x", "function", "x(self, value)", "Setter."),
        ("m.f", "function", "f(a, *, b=1)", "Async text."),
        ("m.f.inner", "function", "inner()", "Inner text."),
    ]


@pytest.mark.parametrize("source", [b"def broken(:", b"\xff\xfe\x00", b"x = '\x00'"])
def test_a_file_that_does_not_parse_gives_nothing(source: bytes) -> None:
    assert list(sample.docstrings_of(source, module="m")) == []


def test_the_table_holds_what_python_itself_says(home: Home) -> None:
    record = sample.write_sample(SMALL, home=home)

    rows = {row["id"]: row for row in tables.read(home.tables / "python_docs").to_pylist()}
    assert record.rows == len(rows) > 50
    checked = 0
    for name in ("pluggy._hooks", "pluggy._manager", "rich.console"):
        module = importlib.import_module(name)
        members = [(name, module), *((f"{name}.{key}", value) for key, value in vars(module).items())]
        for qualified, value in members:
            if getattr(value, "__module__", name) == name and qualified in rows:
                assert rows[qualified]["text"] == inspect.getdoc(value)
                assert rows[qualified]["summary"] == inspect.getdoc(value).splitlines()[0].strip()
                checked += 1
    assert checked >= 5
    assert all(row["license"] and row["package_version"] and row["updated_at"] for row in rows.values())
    assert any(name.endswith("#2") for name in rows), "no name occurs twice, so ordinals were not tried"


def test_verify_notices_a_lost_file(home: Home) -> None:
    record = sample.write_sample(SMALL, home=home)
    assert sample.verify(record, home=home)

    next((home.tables / "python_docs").glob("*.parquet")).unlink()

    assert not sample.verify(record, home=home)


def test_a_package_that_is_not_installed_is_named() -> None:
    with pytest.raises(SourceError, match="no-such-package"):
        sample.installed(SampleSettings(packages=("no-such-package",)))


def test_the_fingerprint_follows_the_packages() -> None:
    assert sample.fingerprint(SMALL) == sample.fingerprint(SampleSettings(packages=("pluggy", "rich")))
    assert sample.fingerprint(SMALL) != sample.fingerprint(SampleSettings(packages=("rich",)))
