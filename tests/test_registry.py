"""Names and URIs of registered models; what speaks to a real store is tested in tests/serve/test_register.py."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tessera import registry, tracking
from tessera.errors import ConfigError, ModelError
from tessera.serve.settings import ServeSettings

GOOD = ["tessera-docs", "main.models.docs_v2", "A", "9", "x" * 128]
BAD = ["", "a/b", "..", "a..b", ".a", "a.", "a#b", "a:b", "a@b", "a b", "a%2Fb", "a\n", "größe", "x" * 129]


@pytest.mark.parametrize("name", GOOD)
def test_plain_names_pass(name):
    assert registry.check_name(name) == name
    assert ServeSettings(model_name=name).model_name == name


@pytest.mark.parametrize("name", BAD)
def test_names_that_change_what_a_uri_means_are_refused(name):
    with pytest.raises(ConfigError, match="letters, digits"):
        registry.check_name(name)
    with pytest.raises(ValidationError, match="letters, digits"):
        ServeSettings(model_name=name)


@given(st.text(max_size=20))
def test_what_passes_can_stand_in_a_path_a_uri_and_a_filter(name):
    if registry.name_fault(name) is None:
        assert Path("models", name).name == name
        assert not set(name) & set("/\\:@#?%&'\"` ")
        assert ".." not in name


@pytest.mark.parametrize(
    ("uri", "parts"),
    [("models:/a.b@champion", ("a.b", "champion", None)), ("models:/docs/12", ("docs", None, 12))],
)
def test_a_uri_names_an_alias_or_a_version(uri, parts):
    assert registry._parse(uri) == parts


@pytest.mark.parametrize(
    "uri",
    ["docs", "models:/docs", "models:/docs/latest", "models:/docs@", "models:/a/b/3", "models:/../docs/1",
     "models:/docs@a/b", "models:/docs@a b", "runs:/abc/model", "models:/docs/1/../2", "models:/m-0a/MLmodel"],
)  # fmt: skip
def test_other_uris_are_refused_before_any_store_is_asked(uri):
    with pytest.raises(ModelError, match=r"wanted models:/NAME@ALIAS or models:/NAME/VERSION"):
        registry._parse(uri)


def test_an_unfit_alias_is_refused():
    with pytest.raises(ModelError, match="alias"):
        registry.set_alias("sqlite://", name="docs", alias="a/b", version=1)


def test_a_location_is_a_path_here_or_elsewhere(tmp_path):
    assert registry.local_path("file:///a%20b/c") == Path("/a b/c")
    assert registry.local_path("/a b/c") == Path("/a b/c")
    assert registry.local_path("s3://bucket/c") is None
    assert registry.local_path("mlflow-artifacts:/c") is None


def test_a_path_below_the_artifact_folder_moves_with_it(tmp_path):
    here = tmp_path / "new" / "mlartifacts"
    (here / "models" / "m-1").mkdir(parents=True)
    old = tmp_path / "mlartifacts" / "old" / "mlartifacts" / "models" / "m-1"

    assert registry.relocate(old, artifacts=here) == here / "models" / "m-1"
    old.mkdir(parents=True)
    assert registry.relocate(old, artifacts=here) == old
    assert registry.relocate(tmp_path / "other", artifacts=here) == tmp_path / "other"


def test_a_version_that_only_its_registry_can_fetch_is_asked_for_by_name(tmp_path):
    """As in Unity Catalog, with two databases: the process' own registry knows no such model."""
    uri, there = f"sqlite:///{tmp_path}/runs.db", f"sqlite:///{tmp_path}/models.db"
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "MLmodel").write_text("flavors: {}")
    client = tracking.client(uri, registry=there)
    client.create_registered_model("docs")
    made = client.create_model_version("docs", (tmp_path / "model").as_uri())
    fetched = [
        registry._fetch(
            f"models:/docs/{made.version}", location=location, uri=uri, registry_uri=there, name="docs-1",
            cache=tmp_path / "cache",
        )
        for location in ("s3://here", "s3://here", "s3://there")
    ]  # fmt: skip

    assert [(folder / "MLmodel").read_text() for folder in fetched] == ["flavors: {}"] * 3
    assert len(set(fetched)) == 2, "models of one name that lie elsewhere are kept apart"


def test_settings_and_registry_import_nothing_heavy():
    code = (
        "import sys, tessera.registry, tessera.serve.settings, tessera.evaluate.settings\n"
        "import tessera.serve.stage\n"
        "heavy = {'mlflow', 'torch', 'numpy', 'pandas', 'pyarrow', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
