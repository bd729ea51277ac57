"""The classes of Spark and Delta as the JVM keeps them in memory, in a file that later JVMs map: they start in half the
time. `tessera jars --archive` makes it once for a Java, a pyspark and the Delta jars, by a small prepare whose JVM
writes down what it loaded (JEP 350, dynamic archives). Without the file all is the same but slower.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
from deltalake import write_deltalake

from tessera import spark
from tessera.errors import SetupError
from tessera.home import Home
from tessera.java import find_java
from tessera.pipeline import Pipeline
from tessera.settings import Settings

ROWS = 60
SECONDS = 300
"""That making it may take."""


def make() -> Path:
    """The archive of this Java, pyspark and jars, made if it is not there.

    Raises:
        SetupError: this Java can make none.
    """
    path = spark.archive_path()
    if path is None:
        raise SetupError(f"{find_java()} has no archive of its own classes to build on; Spark starts without one")
    if path.exists():
        return path
    passing = path.with_name(f".{path.name}.{os.getpid()}")
    command = [sys.executable, "-m", "tessera.class_archive", str(passing)]
    try:
        subprocess.run(command, capture_output=True, check=True, timeout=SECONDS, stdin=subprocess.DEVNULL)
        passing.replace(path)
    except (OSError, subprocess.SubprocessError) as error:
        raise SetupError(
            f"no archive of classes came about ({type(error).__name__}); Spark starts without one"
        ) from None
    finally:
        passing.unlink(missing_ok=True)
    return path


def load_classes(archive: Path) -> None:
    """Prepares documents in a home that is thrown away, and lets the JVM write at its end which classes it loaded."""
    with tempfile.TemporaryDirectory() as folder:
        home, source = Home(Path(folder) / "home"), Path(folder) / "rows"
        write_deltalake(source, pa.table({"id": range(ROWS), "text": [f"the row number {n}" for n in range(ROWS)]}))
        options = spark.jvm_options(home, archive=f"-XX:ArchiveClassesAtExit={archive}")
        settings = Settings.model_validate(
            {
                "prepare": {"sources": [{"path": str(source)}], "holdout": 0.2, "min_chars": 1},
                "spark": {"master": "local[2]", "conf": {"spark.driver.extraJavaOptions": options}},
            }
        )
        Pipeline(settings, home=home).do("prepare")
        spark.end_jvm()


if __name__ == "__main__":
    load_classes(Path(sys.argv[1]))
