"""The archive of classes is made once, and mapped by the JVMs that start afterwards."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tessera import spark

CHILD = """
from pathlib import Path
from tessera import spark
from tessera.home import Home
from tessera.spark import SparkSettings
session = spark.session(SparkSettings(master="local[1]", driver_memory="1g"), home=Home(Path("home")))
pid = session.sparkContext._jvm.java.lang.ProcessHandle.current().pid()
print(*{line.split()[-1] for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if line.endswith(".jsa")})
assert session.range(10).count() == 10
"""

pytestmark = pytest.mark.spark


def run(*command: str, folder: Path, jars: Path) -> str:
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "TESSERA_JARS": str(jars)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_it_is_made_once_and_mapped_by_later_jvms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jars = tmp_path / "jars"
    jars.mkdir()
    for file in spark.jar_files():
        (jars / file.name).write_bytes(file.read_bytes())
    monkeypatch.setenv("TESSERA_JARS", str(jars))
    archive = spark.archive_path()
    if archive is None:
        pytest.skip("this Java has no archive of its own classes")
    tessera = str(Path(sys.executable).with_name("tessera"))
    assert str(archive) not in run(sys.executable, "-c", CHILD, folder=tmp_path, jars=jars)

    for _ in range(2):
        assert run(tessera, "jars", "--archive", folder=tmp_path, jars=jars).splitlines()[-1] == str(archive)
    made = archive.stat().st_mtime_ns

    assert str(archive) in run(sys.executable, "-c", CHILD, folder=tmp_path, jars=jars)
    assert archive.stat().st_mtime_ns == made
    assert sorted(jars.iterdir()) == sorted([archive, *(jars / file.name for file in spark.jar_files())])
