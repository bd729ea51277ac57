"""The overlays of the platform's targets: what differs, that secrets stay names, what happens without a platform."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from deltalake import write_deltalake

from tessera.settings import load_settings

GOLDEN = Path(__file__).parent / "golden"
TESSERA = Path(sys.executable).with_name("tessera")
PLATFORM = ("dev", "staging", "prod")
SECRET = "swordfish-of-the-environment"


def differs(found: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """What `found` has otherwise than `base`, which has the same keys."""
    assert found.keys() == base.keys()
    changed = {}
    for key, value in found.items():
        if isinstance(value, dict) and isinstance(base[key], dict) and value.keys() == base[key].keys():
            if inner := differs(value, base[key]):
                changed[key] = inner
        elif value != base[key]:
            changed[key] = value
    return changed


@pytest.mark.parametrize("target", PLATFORM)
def test_what_a_target_changes_is_the_golden_difference(target):
    """With tests/golden/base.yaml this is the whole resolved configuration.

    To renew: TESSERA_GOLDEN=write pytest tests/jobs/test_conf.py
    """
    found = differs(load_settings(target).model_dump(mode="json"), load_settings("local").model_dump(mode="json"))
    golden = GOLDEN / f"{target}.yaml"
    if os.environ.get("TESSERA_GOLDEN") == "write":
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(yaml.safe_dump(found, sort_keys=False), encoding="utf-8")

    assert found == yaml.safe_load(golden.read_text(encoding="utf-8"))


@pytest.mark.parametrize("target", PLATFORM)
def test_names_have_three_parts_and_models_go_to_the_catalog(target):
    settings = load_settings(target)

    assert all(source.table.count(".") == 2 for source in settings.prepare.sources)
    assert settings.serve.model_name.count(".") == 2
    assert (settings.tracking.uri, settings.tracking.registry_uri) == ("databricks", "databricks-uc")
    assert settings.spark.master is None


def test_the_same_rows_have_the_same_document_ids_in_every_catalog():
    assert {source.name for target in PLATFORM for source in load_settings(target).prepare.sources} == {"pages"}


def tessera(*arguments: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("SPARK_", "PYSPARK_"))}
    return subprocess.run(
        [str(TESSERA), *arguments],
        env={**bare, "TESSERA_HOME": str(home), **environment},
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=60,
    )  # fmt: skip


def test_a_dry_run_shows_a_secret_by_its_name(tmp_path):
    write_deltalake(tmp_path / "pages", pa.table({"id": ["a"], "text": ["A page of a few words."]}))

    done = tessera(
        "run", "--target", "prod", "--dry-run",
        "--set", f"prepare.sources=[{{path: {tmp_path / 'pages'}}}]",
        "--set", "tracking.uri=postgresql+pg8000://mlflow:${env:TESSERA_DB_PASSWORD}@db/mlflow",
        home=tmp_path / "home", TESSERA_API_KEY=SECRET, TESSERA_DB_PASSWORD=SECRET,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    shown = yaml.safe_load(done.stdout)
    assert shown["serve"]["api_key"] == "${env:TESSERA_API_KEY}"
    assert shown["tracking"]["uri"] == "postgresql+pg8000://mlflow:${env:TESSERA_DB_PASSWORD}@db/mlflow"
    assert "# prepare: run" in done.stdout
    assert SECRET not in done.stdout + done.stderr
    assert not (tmp_path / "home").exists(), "a dry run writes nothing"


@pytest.mark.parametrize("arguments", [("run", "--dry-run"), ("run",), ("prepare",)], ids=" ".join)
def test_without_a_platform_its_target_ends_in_one_clear_line(arguments, tmp_path):
    marker, java = tmp_path / "java-was-started", tmp_path / "jdk" / "bin" / "java"
    java.parent.mkdir(parents=True)
    java.write_text(f"#!/bin/sh\ntouch {marker}\nexit 1\n", encoding="utf-8")
    java.chmod(0o755)

    done = tessera(
        *arguments, "--target", "prod",
        home=tmp_path / "home", JAVA_HOME=str(java.parents[1]), PATH=f"{java.parent}:{os.environ['PATH']}",
    )  # fmt: skip

    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("tessera: spark.master is null")
    assert "spark-submit" in done.stderr
    assert not marker.exists()
    assert not (tmp_path / "home").exists()
