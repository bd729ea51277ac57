"""Spark as a platform has it: spark-submit for real, and a session that was there before and lives on."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from tessera import java
from tessera import spark as spark_module

pytestmark = pytest.mark.spark

JOBS = Path(__file__).parents[2] / "jobs"
BIN = Path(sys.executable).parent
DELTA = {
    "spark.jars": ",".join(str(file) for file in spark_module.jar_files()),
    "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
    "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
    "spark.sql.shuffle.partitions": "3",
    "spark.databricks.delta.snapshotPartitions": "2",
    "spark.ui.enabled": "false",
    "spark.driver.memory": "1g",
}

OWN_SESSION = """
import sys
from pyspark import SparkContext
from tessera import jobs
jobs.prepare()
assert SparkContext._active_spark_context is None, "the session that the job made is still there"
"""

PLATFORM_SESSION = """
import json, os, sys, threading
from pyspark import SparkContext
from pyspark.sql import SparkSession

def make():
    builder = SparkSession.builder.appName("platform").master("local[2]").config(map=json.loads(os.environ["CONF"]))
    builder.getOrCreate()

if os.environ["THREAD"] == "another":
    thread = threading.Thread(target=make)
    thread.start(); thread.join()
else:
    make()
session = SparkSession.active()
session.sql("CREATE DATABASE shop")
session.sql(f"CREATE TABLE shop.pages USING delta LOCATION '{os.environ['PAGES']}'")
before = session.sparkContext.applicationId

from tessera import jobs, spark
jobs.prepare()
assert SparkSession.active().sparkContext.applicationId == before
assert session.range(7).count() == 7, "the platform's session was stopped"
assert session.conf.get("spark.sql.shuffle.partitions") == "3", "the platform's session was configured"
session.stop()
spark.stop()
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tables") / "pages"
    rows = [
        {"id": f"p{i}", "text": f"Page {i} says what the {i % 17} pages before it did not say."} for i in range(300)
    ]
    write_deltalake(folder, pa.Table.from_pylist(rows))
    return folder


def run(*command: object, home: Path, **environment: str) -> dict[str, Any]:
    """Runs a command that ends with a record on stdout."""
    done = subprocess.run(
        [str(part) for part in command],
        env={
            **os.environ, "TESSERA_HOME": str(home), "JAVA_HOME": str(java.find_java()),
            "PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1", "PATH": f"{BIN}:{os.environ['PATH']}",
            **environment,
        },
        capture_output=True, text=True, check=False, cwd=home.parent, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def arguments(source: str, *more: str) -> list[str]:
    sets = [f"prepare.sources=[{source}]", "spark.partitions=3", *more]
    return ["--target=local", "--json", *[f"--set={assignment}" for assignment in sets]]


def documents(home: Path, version: int) -> list[dict[str, Any]]:
    table = DeltaTable(home / "tables" / "documents", version=version).to_pyarrow_table()
    return sorted(table.to_pylist(), key=lambda row: row["doc_id"])


@pytest.fixture(scope="module")
def own(pages: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """What Tessera makes with a session of its own, which it then stops."""
    home = tmp_path_factory.mktemp("own") / "home"
    given = arguments(f"{{path: {pages}, name: pages}}", "spark.driver_memory=1g")
    return run(sys.executable, "-c", OWN_SESSION, *given, home=home), home


def test_spark_submit_gives_the_same_documents(own, pages, tmp_path):
    expected, expected_home = own
    home = tmp_path / "home"
    submit = [BIN / "spark-submit", "--master", "local[2]", "--jars", DELTA["spark.jars"], "--driver-memory", "1g"]
    confs = [
        f"--conf={key}={value}" for key, value in DELTA.items() if key not in ("spark.jars", "spark.driver.memory")
    ]

    given = arguments(f"{{path: {pages}, name: pages}}", "spark.master=null")
    found = run(*submit, *confs, JOBS / "prepare.py", *given, home=home)

    assert found["fingerprint"] == expected["fingerprint"]
    assert found["documents"] == expected["documents"] == 300
    assert documents(home, found["table"]["version"]) == documents(expected_home, expected["table"]["version"])
    assert not (home / "spark").exists(), "the platform's Spark was given Tessera's local settings"


@pytest.mark.parametrize("thread", ["this", "another"])
def test_an_existing_session_is_used_as_it_is_and_lives_on(thread, own, pages, tmp_path):
    """Reads a three-part name of its catalog; even `spark.conf` does not touch it."""
    expected, expected_home = own
    home = tmp_path / "home"
    given = arguments(
        "{table: spark_catalog.shop.pages, name: pages}",
        "spark.master=null", "spark.conf={spark.sql.shuffle.partitions: '9'}",
    )  # fmt: skip

    found = run(
        sys.executable, "-c", PLATFORM_SESSION, *given,
        home=home, CONF=json.dumps(DELTA), PAGES=str(pages), THREAD=thread,
    )  # fmt: skip

    assert found["fingerprint"] == expected["fingerprint"]
    assert documents(home, found["table"]["version"]) == documents(expected_home, expected["table"]["version"])


def test_a_failed_query_prints_no_values_of_rows(tmp_path):
    """pyspark's own loggers would: the message of a failed cast quotes the value."""
    script = (
        "import sys; from pathlib import Path\n"
        "from tessera import spark; from tessera.home import Home\n"
        "session = spark.session(spark.SparkSettings(driver_memory='1g'), home=Home(Path(sys.argv[1])))\n"
        "for text in ['SELECT CAST(t AS INT) FROM (VALUES (\\'a-private-value\\')) AS v(t)']:\n"
        "    try: session.sql(text).collect()\n"
        "    except Exception as error: assert 'a-private-value' in str(error)\n"
        "    else: raise AssertionError('the query should fail')\n"
        "spark.stop(); print('{}')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "home"], capture_output=True, text=True, check=False, timeout=120
    )

    assert done.returncode == 0, done.stderr[-2000:]
    assert "a-private-value" not in done.stderr + done.stdout
