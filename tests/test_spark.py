"""The Spark session and the Java that runs it."""

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tessera import java
from tessera import spark as spark_module
from tessera.errors import SetupError
from tessera.home import Home
from tessera.spark import SparkSettings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def fake_java(folder: Path, *, version: str) -> Path:
    java = folder / "bin" / "java"
    java.parent.mkdir(parents=True)
    java.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\" 2025-01-01' >&2\n", encoding="utf-8")
    java.chmod(0o755)
    return folder


def test_the_machines_java_is_taken_when_it_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fits = fake_java(tmp_path / "jdk21", version="21.0.8")
    monkeypatch.setenv("JAVA_HOME", str(fits))

    assert java.find_java() == fits
    assert java.java_version(fits) == 21


def test_another_java_is_passed_over_for_the_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = fake_java(tmp_path / "jdk8", version="1.8.0_400")
    monkeypatch.setenv("JAVA_HOME", str(old))
    monkeypatch.setenv("PATH", f"{old / 'bin'}:/usr/sbin")
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "prefix"))

    wrapper = java.find_java()

    assert java.java_version(wrapper) == 21
    flag = "--add-modules=jdk.incubator.vector"
    ran = subprocess.run([wrapper / "bin" / "java", flag, "-version"], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "21." in ran.stderr


def test_a_changed_jar_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESSERA_JARS", str(tmp_path))
    with pytest.raises(SetupError, match="tessera jars"):
        spark_module.jar_files()
    for coordinate in spark_module.JARS:
        (tmp_path / spark_module._jar_name(coordinate)).write_bytes(b"not a jar")

    with pytest.raises(SetupError, match="SHA-256"):
        spark_module.jar_files()


@pytest.mark.spark
def test_an_existing_session_wins(spark: "SparkSession", home: Home) -> None:
    found = spark_module.session(SparkSettings(master="local[1]", driver_memory="1g"), home=home)

    assert found.sparkContext is spark.sparkContext
    assert not home.root.exists()


@pytest.mark.spark
def test_a_session_runs_on_the_java_of_the_wheel(tmp_path: Path) -> None:
    """As on a machine with no Java at all: a Delta table is written and read."""
    script = (
        "import sys; from pathlib import Path\n"
        "from tessera import java, spark; from tessera.home import Home\n"
        "session = spark.session(spark.SparkSettings(driver_memory='1g'), home=Home(Path(sys.argv[1])))\n"
        "session.range(5).write.format('delta').save(sys.argv[1] + '/t')\n"
        "print(session.read.format('delta').load(sys.argv[1] + '/t').count(), java.find_java())\n"
        "spark.stop()\n"
    )
    bare = {key: value for key, value in os.environ.items() if key != "JAVA_HOME"}
    tools = tmp_path / "bin"
    tools.mkdir()
    for place in ("/bin", "/usr/bin"):
        for tool in Path(place).iterdir():
            if "java" not in tool.name and not (tools / tool.name).is_symlink():
                (tools / tool.name).symlink_to(tool)

    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "home")],
        env={**bare, "PATH": str(tools)}, capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("5 ")
    assert "java-" in done.stdout, "the machine's own Java was found, so this test proves nothing"
