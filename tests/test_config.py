"""Configuration: layers, errors that name file, key and nearest match, and the golden file of the defaults."""

import json
import os
from pathlib import Path

import pytest
import yaml
from pydantic import Field

from tessera.config import EXECUTION, Layer, Section, load, parse_set, read_yaml, resolve_secret
from tessera.errors import ConfigError
from tessera.settings import Settings, conf_folder, load_settings

GOLDEN = Path(__file__).parent / "golden" / "base.yaml"


class Inner(Section):
    steps: int = Field(3, ge=1)
    rate: float = 0.1


class Outer(Section):
    inner: Inner = Inner()
    items: tuple[Inner, ...] = ()
    name: str
    threads: int = Field(1, json_schema_extra=EXECUTION)


def layer(values: object) -> Layer:
    assert isinstance(values, dict)
    return Layer(origin="file.yaml", values=values)


def test_later_layers_win_key_by_key_and_lists_replace() -> None:
    base = layer({"name": "a", "inner": {"steps": 5, "rate": 0.5}, "items": [{"steps": 1}, {"steps": 2}]})

    settings = load(Outer, layers=[base, *parse_set(["inner.steps=7", "items=[{steps: 9}]"])])

    assert settings.inner == Inner(steps=7, rate=0.5)
    assert settings.items == (Inner(steps=9),)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"name": "a", "iner": {}}, "file.yaml: unknown key iner; did you mean 'inner'?"),
        ({"name": "a", "inner": {"stepz": 1}}, "file.yaml: unknown key inner.stepz; did you mean 'steps'?"),
        ({"name": "a", "items": [{"stepz": 1}]}, "file.yaml: unknown key items.0.stepz; did you mean 'steps'?"),
        ({"inner": {}}, "name is missing"),
        ({"name": "a", "inner": {"steps": "many"}}, "file.yaml: inner.steps: found 'many'"),
        ({"name": "a", "inner": {"steps": 0}}, "file.yaml: inner.steps: found 0"),
        ({"name": "a", "inner": {"rate": float("nan")}}, "file.yaml: inner.rate"),
    ],
)
def test_an_error_names_file_key_and_nearest_match(values: dict[str, object], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(Outer, layers=[layer(values)])

    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_fault_is_charged_to_the_layer_that_holds_it() -> None:
    good = Layer(origin="good.yaml", values={"name": "a", "inner": {"rate": 0.2}})
    bad = Layer(origin="bad.yaml", values={"inner": {"steps": -1}})

    with pytest.raises(ConfigError, match=r"^bad\.yaml: inner\.steps"):
        load(Outer, layers=[good, bad])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\na: 2\n", "line 2: the key 'a' is given twice"),
        ("a: !!python/object/apply:os.getcwd []\n", "could not determine a constructor"),
        ("- 1\n", "found a list, wanted a mapping"),
        ("a: [1\n", "line 2"),
    ],
)
def test_yaml_is_read_strictly(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "conf.yaml"
    path.write_text(text, encoding="utf-8")

    with pytest.raises(ConfigError) as caught:
        read_yaml(path)

    assert expected in str(caught.value)
    assert str(path) in str(caught.value)


def test_set_takes_yaml_values() -> None:
    layers = parse_set(["prepare.sources=[{path: /data/t, id: number, text: body}]", "a.b=null"])

    assert layers[0].values == {"prepare": {"sources": [{"path": "/data/t", "id": "number", "text": "body"}]}}
    assert layers[1].values == {"a": {"b": None}}


@pytest.mark.parametrize("assignment", ["train.steps", "=3", "train..steps=3"])
def test_set_without_key_or_value_is_refused(assignment: str) -> None:
    with pytest.raises(ConfigError, match=r"section\.key=value"):
        parse_set([assignment])


def test_identity_leaves_out_what_cannot_change_an_output() -> None:
    assert "threads" not in Outer(name="a", threads=8).identity()
    assert Outer(name="a", threads=8).identity() == Outer(name="a", threads=1).identity()
    assert Outer(name="a").identity() != Outer(name="b").identity()


def test_secrets_are_resolved_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESSERA_TEST_SECRET", "swordfish")

    assert resolve_secret("postgresql://u:${env:TESSERA_TEST_SECRET}@h/d") == "postgresql://u:swordfish@h/d"
    with pytest.raises(ConfigError, match="TESSERA_ABSENT"):
        resolve_secret("${env:TESSERA_ABSENT}")


def test_the_resolved_defaults_are_the_golden_ones() -> None:
    """Any changed default shows in review. To renew: TESSERA_GOLDEN=write pytest tests/test_config.py"""
    resolved = load_settings("local").model_dump(mode="json")
    if os.environ.get("TESSERA_GOLDEN") == "write":
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(yaml.safe_dump(resolved, sort_keys=False), encoding="utf-8")

    assert resolved == yaml.safe_load(GOLDEN.read_text(encoding="utf-8"))


@pytest.mark.parametrize("target", ["local", "dev", "staging", "prod"])
def test_every_target_resolves(target: str) -> None:
    assert isinstance(load_settings(target), Settings)


def test_every_field_is_documented_in_the_schema() -> None:
    schema = Settings.model_json_schema()
    undocumented = [
        f"{name}.{field}"
        for name, section in schema["$defs"].items()
        for field, about in section.get("properties", {}).items()
        if not about.get("description") and "$ref" not in json.dumps(about)
    ]

    assert not undocumented


def test_the_conf_folder_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "base.yaml").write_text("prepare: {sources: [{table: mine}]}\n", encoding="utf-8")
    monkeypatch.setenv("TESSERA_CONF", str(tmp_path))

    assert conf_folder() == tmp_path
    assert load_settings("local").prepare.sources[0].name == "mine"
