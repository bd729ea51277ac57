"""The line over a real Spark Connect server on loopback: the bytes of a session of its own, or one clear line.

The server is that of the wheel of pyspark, on `local[2]` and on a standalone cluster; the client needs the extra
`connect`.
"""

import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyspark
import pytest
from deltalake import write_deltalake
from tests.cluster import standalone

from tessera import java, spark, tables
from tessera.home import Home
from tessera.lineage import sha256_file
from tessera.train.run import RunFolder

pytestmark = [pytest.mark.cluster, pytest.mark.spark, pytest.mark.slow, pytest.mark.timeout(600)]

HAS_GRPC = importlib.util.find_spec("grpc") is not None
needs_grpc = pytest.mark.skipif(not HAS_GRPC, reason="grpc is not installed: it comes with the extra `connect`")

SMALL = (
    "sample.packages=[networkx]", "shard.seq_len=64", "shard.tokenizer.vocab_size=512",
    "shard.tokenizer.sample_bytes=200000", "train.steps=30", "train.batch_size=8", "train.heldout.sequences=8",
    "train.model={layers: 2, width: 32, heads: 2, kv_heads: 2, ffn_width: 64}", "train.threads=1",
    "train.checkpoint={every_steps: 5, every_seconds: null}", "spark.driver_memory=1g", "serve.max_tokens=20",
)  # fmt: skip
SERVED = ("spark.master=null",)
ON_CLUSTER = (*SERVED, "train.placement=cluster", "train.beat_seconds=5")

SCORE = """
import sys; from pathlib import Path
from tessera import spark; from tessera.home import Home
from tessera.serve import answers, batch; from tessera.serve.score_settings import ScoreSettings

home, master = Home(Path(sys.argv[1])), sys.argv[2] if len(sys.argv) > 2 else None
session = spark.session(spark.SparkSettings(master=master, driver_memory="1g"), home=home)
settings = ScoreSettings.model_validate(
    {"source": "asked", "prompt": "{text} ", "where": "n < 6", "max_tokens": 8, "temperature": 0.7, "slice_rows": 2})
model = answers.find_model(f"sqlite:///{home.mlflow_database}", model="models:/tessera-docs/1", home=home)
for _ in range(2):  # the second time there is nothing left to do
    source = answers.find_source(settings, home=home, spark=lambda: session)
    record = batch.score(session, source=source, settings=settings, model=model, home=home)
    print(record.answered, record.found)
spark.stop()
"""
CONVERT = """
import sys; from pathlib import Path
from tessera import spark; from tessera.home import Home
from tessera.shard.read.petastorm import make_spark_converter

home = Home(Path(sys.argv[1]))
session = spark.session(spark.SparkSettings(master=None), home=home)
make_spark_converter(session.range(10), home=home)
"""
FAIL = """
import sys; from pathlib import Path
from tessera import spark, tasks; from tessera.home import Home
from tessera.errors import TokenizerError

def refuse(batches):
    raise TokenizerError("the tokenizer gives no token for 3 documents")

session = spark.session(spark.SparkSettings(master=None), home=Home(Path(sys.argv[1])))
try:
    session.range(3).mapInArrow(refuse, "id long").collect()
except Exception as error:
    print(repr(tasks.error_of_worker(error)))
spark.stop()
"""
CATALOG = """
import sys; from pathlib import Path
from tessera import spark; from tessera.home import Home

session = spark.session(spark.SparkSettings(master=None), home=Home(Path(sys.argv[1])))
session.read.format("delta").load(f"{sys.argv[1]}/tables/python_docs").write.format("delta").saveAsTable("notes")
spark.stop()
"""
GONE = """
import os, signal, sys; from pathlib import Path
from tessera import spark, tasks; from tessera.home import Home

session = spark.session(spark.SparkSettings(master=None), home=Home(Path(sys.argv[1])))
assert session.range(3).count() == 3
os.kill(int(sys.argv[2]), signal.SIGKILL)
try:
    session.range(3).count()
except Exception as error:
    print(repr(tasks.error_of_worker(error)))
spark.stop()
"""
NOTEBOOK = """
import os, sys, threading; from pathlib import Path
from pyspark.sql import SparkSession
from tessera import spark; from tessera.home import Home

mine, found = SparkSession.builder.remote(os.environ["SPARK_REMOTE"]).getOrCreate(), []

def find():
    found.append(spark.session(spark.SparkSettings(), home=Home(Path(sys.argv[1]))))

find()
thread = threading.Thread(target=find)
thread.start()
thread.join()
spark.stop()
print([one is mine for one in found], mine.range(3).count())
mine.stop()
"""


@contextmanager
def serve(folder: Path, *, master: str, python: str = sys.executable) -> Iterator[str]:
    """A Connect server whose Spark runs on `master`, its workers on `python`; gives its address, and ends it."""
    folder.mkdir(parents=True)
    environment = {
        **os.environ, "SPARK_LOCAL_IP": "127.0.0.1", "JAVA_HOME": str(java.find_java()), "PYSPARK_PYTHON": python,
        "PYTHONPATH": "",
    }  # fmt: skip
    settings = {
        "spark.jars": ",".join(str(file) for file in spark.jar_files()),
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        "spark.connect.grpc.binding.address": "127.0.0.1",
        "spark.connect.grpc.binding.port": "0",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.memory": "1g",
        "spark.driver.extraJavaOptions": f"{spark.JVM_OPTIONS} -Dderby.system.home={folder}",
        "spark.executor.memory": "512m",
        "spark.local.dir": str(folder / "local"),
        "spark.sql.shuffle.partitions": "3",
        "spark.sql.warehouse.dir": str(folder / "warehouse"),
        "spark.ui.enabled": "false",
    }
    command = [str(Path(pyspark.__file__).parent / "bin" / "spark-submit"), "--master", master]
    command += ["--class", "org.apache.spark.sql.connect.service.SparkConnectServer"]
    command += [part for key, value in settings.items() for part in ("--conf", f"{key}={value}")]
    log = folder / "server.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, "spark-internal"], env=environment, stdout=file, stderr=file, stdin=subprocess.DEVNULL
        )
    try:
        started = r"Spark Connect server started at: (\S+:\d+)"
        wait_until(lambda: bool(re.search(started, log.read_text(errors="replace"))), process=process, seconds=90)
        (address,) = re.findall(started, log.read_text(errors="replace"))
        yield f"sc://{address}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serve(tmp_path_factory.mktemp("connect") / "local", master="local[2]") as address:
        yield address


@pytest.fixture(scope="module")
def cluster_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server on a standalone cluster of two workers with a core each."""
    folder = tmp_path_factory.mktemp("connect-cluster")
    with (
        standalone.start(folder / "spark", workers=2) as cluster,
        serve(folder / "server", master=cluster.master) as address,
    ):
        yield address


@pytest.fixture(scope="module")
def classic(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A home whose line ran with a session of its own."""
    home = Home(tmp_path_factory.mktemp("classic") / "home")
    done = tessera("run", "spark.master=local[2]", home=home, server=None)
    assert done.returncode == 0, done.stderr
    return home


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, server: str) -> Home:
    """A home whose line ran over the server."""
    home = Home(tmp_path_factory.mktemp("served") / "home")
    done = tessera("run", *SERVED, home=home, server=server)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    return home


@pytest.fixture
def home(classic: Home, tmp_path: Path) -> Home:
    """A copy without the run: it is trained again, on the cluster."""
    shutil.copytree(classic.root, tmp_path / "home", ignore=shutil.ignore_patterns("runs", "spark", "ml*"))
    return Home(tmp_path / "home")


def environment(home: Home, *, server: str | None) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key != "SPARK_REMOTE"}
    paths = os.pathsep.join(filter(None, [str(Path(spark.__file__).parents[1]), kept.get("PYTHONPATH")]))
    jars = {"TESSERA_JARS": str(spark.jars_folder()), "PYTHONPATH": paths}
    return {**kept, **jars, "TESSERA_HOME": str(home.root), **({"SPARK_REMOTE": server} if server else {})}


def command(room: str, *assignments: str) -> list[str]:
    settings = (part for one in (*SMALL, *assignments) for part in ("--set", one))
    return [sys.executable, "-m", "tessera.cli", room, "--json", *settings]


def tessera(room: str, *assignments: str, home: Home, server: str | None) -> subprocess.CompletedProcess[str]:
    return run(command(room, *assignments), home=home, server=server)


def python(script: str, *arguments: str, home: Home, server: str | None) -> subprocess.CompletedProcess[str]:
    """Runs a script on the home; sessions of Spark Connect would change the process of the tests itself."""
    return run([sys.executable, "-c", script, str(home.root), *arguments], home=home, server=server)


def run(words: list[str], *, home: Home, server: str | None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words, env=environment(home, server=server), capture_output=True, text=True, check=False, timeout=300
    )


def start_training(home: Home, *assignments: str, server: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        command("train", *assignments), env=environment(home, server=server), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_until(condition: Callable[[], bool], *, process: "subprocess.Popen[str]", seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)


def run_of(home: Home) -> RunFolder:
    (folder,) = home.runs.iterdir()
    return RunFolder(folder)


def weights(home: Home) -> str:
    found = run_of(home).read_result()
    assert found is not None
    return found.weights_sha256


def steps_done(home: Home) -> int:
    metrics = next(home.runs.glob("*/metrics.jsonl"), None)
    return len(metrics.read_text(encoding="utf-8").splitlines()) if metrics else 0


def rows(path: Path, *, by: tuple[str, ...]) -> pa.Table:
    return tables.read(path).sort_by([(name, "ascending") for name in by])


def ranks_of(home: Home) -> list[int]:
    """Process ids of the ranks of the home's run, oldest first."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        words = standalone.command(int(folder.name)).split()
        if "-u" in words and "tessera.train.worker" in words and str(run_of(home).root) in words:
            found.append(int(folder.name))
    return sorted(found)


def only_line(done: subprocess.CompletedProcess[str]) -> str:
    """What a user is told: one line, and no trace."""
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("tessera: ")]
    assert "Traceback" not in done.stderr
    return line


@needs_grpc
def test_the_line_over_a_server_gives_the_same_bytes(classic: Home, served: Home) -> None:
    keys = {"documents": ("doc_id", "sha256"), "ledger": ("stage",), "evaluations": ("fingerprint",)}
    here = {name: rows(classic.tables / name, by=by) for name, by in keys.items()}
    there = {name: rows(served.tables / name, by=by) for name, by in keys.items()}
    spans = [rows(home.shards / "docs" / "documents", by=("doc_id", "sha256", "piece")) for home in (classic, served)]

    assert there["documents"] == here["documents"]
    assert there["documents"].num_rows > 1000
    assert spans[0] == spans[1]  # with their types: delta-rs has read both
    files = [{path.name: sha256_file(path) for path in home.shards.rglob("*.mds")} for home in (classic, served)]
    assert files[0] == files[1] != {}
    assert weights(served) == weights(classic)
    assert there["ledger"]["fingerprint"].to_pylist() == here["ledger"]["fingerprint"].to_pylist()
    assert there["evaluations"]["bits_per_byte"] == here["evaluations"]["bits_per_byte"]


@needs_grpc
def test_a_finished_line_is_found_again_without_the_server(served: Home) -> None:
    done = tessera("run", *SERVED, home=served, server=f"sc://127.0.0.1:{free_port()}")

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["reused"]


@needs_grpc
def test_new_rows_are_prepared_and_sharded_over_the_server(classic: Home, server: str, tmp_path: Path) -> None:
    """A second version of the documents: what is known keeps its generation, as with a classic session."""
    homes = [Home(tmp_path / name) for name in ("here", "there")]
    more = tables.read(classic.tables / "python_docs").slice(0, 5).to_pylist()
    more = [{**row, "id": f"new {row['id']}", "text": f"New. {row['text']}"} for row in more]
    for home, remote in zip(homes, (None, server), strict=True):
        shutil.copytree(classic.root, home.root, ignore=shutil.ignore_patterns("spark"))
        added = pa.Table.from_pylist(more, schema=tables.read(home.tables / "python_docs").schema)
        write_deltalake(home.tables / "python_docs", added, mode="append")
        master = "spark.master=local[2]" if remote is None else "spark.master=null"
        for room in ("prepare", "shard"):
            done = tessera(room, master, home=home, server=remote)
            assert done.returncode == 0, done.stderr

    documents = [rows(home.documents, by=("doc_id", "sha256")) for home in homes]
    assert documents[0] == documents[1]
    assert sorted(set(documents[0]["added"].to_pylist())) == [0, 1]
    names = [sorted(path.name for path in home.shards.rglob("*.mds")) for home in homes]
    assert names[0] == names[1]


@needs_grpc
def test_a_row_filter_that_is_no_sql_is_said_before_rows_are_read(served: Home, server: str) -> None:
    source = "prepare.sources=[{table: python_docs, where: nonsense = 1}]"
    done = tessera("prepare", *SERVED, source, home=served, server=server)

    assert done.returncode == 2
    assert "python_docs: where is not SQL on its columns" in only_line(done)


@needs_grpc
def test_an_error_of_ours_comes_back_from_a_worker(served: Home, server: str) -> None:
    done = python(FAIL, home=served, server=server)

    assert done.stdout.strip() == "TokenizerError('the tokenizer gives no token for 3 documents')", done.stderr


@needs_grpc
def test_workers_without_tessera_are_said(home: Home, tmp_path: Path) -> None:
    """As on a server where nobody installed it: a Python with the libraries alone."""
    venv.create(tmp_path / "bare", symlinks=True)
    (packages,) = (tmp_path / "bare" / "lib").glob("python*/site-packages")
    (packages / "libraries.pth").write_text(str(Path(pyspark.__file__).parents[1]))  # reads no .pth of that folder
    with serve(tmp_path / "server", master="local[2]", python=str(tmp_path / "bare" / "bin" / "python")) as server:
        done = tessera("shard", *SERVED, "shard.seed=18", home=home, server=server)

    assert done.returncode == 1
    assert "Spark's workers have no Tessera" in only_line(done)


@needs_grpc
def test_a_table_of_the_servers_catalog_is_prepared(classic: Home, server: str, home: Home, tmp_path: Path) -> None:
    made = python(CATALOG, home=home, server=server)
    assert made.returncode == 0, made.stderr
    new = Home(tmp_path / "new")
    done = tessera("prepare", *SERVED, "prepare.sources=[{table: default.notes, name: python_docs}]", home=new,
                   server=server)  # fmt: skip

    assert done.returncode == 0, done.stderr
    by = ("doc_id", "sha256")
    assert rows(new.documents, by=by) == rows(classic.documents, by=by)


@needs_grpc
def test_a_session_that_exists_is_used_and_lives_on(served: Home, server: str) -> None:
    done = python(NOTEBOOK, home=served, server=server)

    assert done.stdout.strip() == "[True, True] 3", done.stderr


@needs_grpc
def test_a_server_that_dies_is_said_within_minutes(home: Home, tmp_path: Path) -> None:
    began = time.monotonic()
    with serve(tmp_path / "server", master="local[2]") as server:
        (pid,) = [one for one in standalone.children(os.getpid()) if str(tmp_path) in standalone.command(one)]
        done = python(GONE, str(pid), home=home, server=server)

    assert done.stdout.strip().startswith("SetupError('the Spark Connect server answers no more"), done.stderr
    assert time.monotonic() - began < 150


@needs_grpc
def test_scoring_gives_the_same_answers(classic: Home, served: Home, server: str) -> None:
    asked = pa.table({"id": [f"k{n}" for n in range(8)], "n": range(8), "text": ["Return the graph", "A list"] * 4})
    for home, remote, master in ((classic, None, ["local[2]"]), (served, server, [])):
        write_deltalake(home.tables / "asked", asked, mode="overwrite")
        done = python(SCORE, *master, home=home, server=remote)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-2:] == ["6 0", "0 6"]
    same = ["doc_id", "prompt_sha256", "answer", "tokens", "finish_reason", "model_version", "request"]

    here, there = (rows(home.answers, by=("doc_id",)).select(same) for home in (classic, served))
    assert here.num_rows == 6
    assert there == here


@needs_grpc
def test_petastorms_converter_is_refused_in_one_sentence(served: Home, server: str) -> None:
    done = python(CONVERT, home=served, server=server)

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("tessera.errors.SetupError: petastorm's converter needs a classic")
    assert "batch_reader" in done.stderr


@needs_grpc
def test_a_barrier_stage_over_a_server_recovers_and_gives_the_same_weights(
    cluster_server: str, classic: Home, home: Home
) -> None:
    training = start_training(home, *ON_CLUSTER, "train.max_restarts=1", server=cluster_server)
    wait_until(lambda: steps_done(home) > 7, process=training)
    os.kill(ranks_of(home)[1], signal.SIGKILL)
    _, said = training.communicate(timeout=300)

    assert training.returncode == 0, said
    assert "started again, restart 1" in said
    assert weights(home) == weights(classic)


@needs_grpc
def test_too_few_slots_are_said_at_once(cluster_server: str, home: Home) -> None:
    began = time.monotonic()
    done = tessera("train", *ON_CLUSTER, "train.ranks=4", home=home, server=cluster_server)

    assert done.returncode == 2
    assert "train.ranks 4 takes 4 tasks at once, the cluster has slots for 2" in only_line(done)
    assert time.monotonic() - began < 60
    assert not home.runs.exists()


@needs_grpc
def test_no_rank_outlives_its_client(cluster_server: str, home: Home) -> None:
    training = start_training(
        home, *ON_CLUSTER, "train.steps=100000", "train.beat_seconds=1.5", server=cluster_server
    )  # fmt: skip
    wait_until(lambda: steps_done(home) > 3, process=training)
    training.send_signal(signal.SIGKILL)
    training.wait()
    time.sleep(2.5)

    assert ranks_of(home) == []


@needs_grpc
def test_a_server_that_is_absent_is_said_without_its_token(classic: Home) -> None:
    began = time.monotonic()
    done = tessera("prepare", *SERVED, "prepare.holdout=0.2", home=classic,
                   server=f"sc://127.0.0.1:{(port := free_port())}/;token=s3cr3t")  # fmt: skip

    assert done.returncode == 1
    assert f"no Spark Connect server answers at 127.0.0.1:{port} within 10 seconds" in only_line(done)
    assert "s3cr3t" not in done.stderr
    assert time.monotonic() - began < 60


@needs_grpc
@pytest.mark.parametrize(
    "address", ["sc://127.0.0.1:1;token=s3cr3t", "sc://127.0.0.1:1/s3cr3t", "sc://127.0.0.1:s3cr3t"]
)
def test_an_address_that_is_none_is_said_without_its_token(classic: Home, address: str) -> None:
    done = tessera("prepare", *SERVED, "prepare.holdout=0.2", home=classic, server=address)

    assert done.returncode == 2
    assert "wanted sc://HOST:PORT" in only_line(done)
    assert "s3cr3t" not in done.stderr


def test_a_master_beside_a_server_is_refused(classic: Home) -> None:
    done = tessera("prepare", "prepare.holdout=0.2", home=classic, server="sc://127.0.0.1:1")

    assert done.returncode == 2
    assert "use the server: --set spark.master=null" in only_line(done)


@pytest.mark.skipif(HAS_GRPC, reason="the extra `connect` is installed")
def test_without_grpc_one_line_says_what_to_install(classic: Home) -> None:
    done = tessera("prepare", *SERVED, "prepare.holdout=0.2", home=classic, server="sc://127.0.0.1:1")

    assert done.returncode == 1
    assert "pip install 'tessera[connect]'" in only_line(done)


def free_port() -> int:
    """A port where nobody listens."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
