"""Ranks as one barrier stage on a standalone cluster of two workers, by the command that a user types.

The undisturbed run is one of two ranks beside the driver: every run here must end with its losses and its weights.
"""

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from tests.cluster import standalone
from tests.cluster.standalone import Cluster

from tessera.home import Home
from tessera.train.run import RunFolder

pytestmark = [pytest.mark.cluster, pytest.mark.spark, pytest.mark.distributed, pytest.mark.timeout(600)]

TESSERA = Path(sys.executable).with_name("tessera")
STEPS = 30
SMALL = (
    "sample.packages=[networkx]", "shard.seq_len=64", "shard.tokenizer.vocab_size=512",
    "shard.tokenizer.sample_bytes=200000", f"train.steps={STEPS}", "train.batch_size=8", "train.heldout.sequences=8",
    "train.model={layers: 2, width: 32, heads: 2, kv_heads: 2, ffn_width: 64}", "train.threads=1",
    "train.checkpoint={every_steps: 5, every_seconds: null}", "spark.driver_memory=1g",
)  # fmt: skip
TIMED = {"seconds", "tokens_per_second", "model_flops_per_second", "memory_bytes", "time"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with standalone.start(tmp_path_factory.mktemp("cluster") / "spark", workers=2) as running:
        yield running


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A home whose one run was trained by two ranks beside the driver."""
    home = Home(tmp_path_factory.mktemp("undisturbed") / "home")
    for room in ("sample", "prepare", "shard", "train"):
        done = tessera(room, home=home)
        assert done.returncode == 0, done.stderr
    return home


@pytest.fixture
def home(undisturbed: Home, tmp_path: Path) -> Home:
    """A copy without the run: it is trained again, on the cluster."""
    shutil.copytree(undisturbed.root, tmp_path / "home", ignore=shutil.ignore_patterns("runs", "spark", "ml*"))
    return Home(tmp_path / "home")


def command(room: str, *assignments: str) -> list[str]:
    return [str(TESSERA), room, "--json", *(part for one in (*SMALL, *assignments) for part in ("--set", one))]


def environment(home: Home, fail: str = "") -> dict[str, str]:
    return {**os.environ, "TESSERA_HOME": str(home.root), "TESSERA_FAIL": fail}


def tessera(room: str, *assignments: str, home: Home) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(room, *assignments), env=environment(home), capture_output=True, text=True, check=False, timeout=300
    )


def on(cluster: Cluster, *assignments: str, fail: str = "") -> tuple[str, ...]:
    """The settings that put the ranks on the cluster; `fail` is a failpoint in them."""
    executors = f"{{spark.executorEnv.TESSERA_FAIL: '{fail}', spark.executor.memory: 512m}}"
    return (
        f"spark.master={cluster.master}", "train.placement=cluster", "train.beat_seconds=5", f"spark.conf={executors}",
        *assignments,
    )  # fmt: skip


def run_of(home: Home) -> RunFolder:
    (folder,) = home.runs.iterdir()
    return RunFolder(folder)


def lines(folder: RunFolder) -> list[dict[str, float]]:
    """metrics.jsonl without what depends on the clock."""
    read = [json.loads(line) for line in folder.metrics.read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMED} for line in read]


def mlflow(home: Home) -> tuple[list[tuple[str]], list[int]]:
    """Status of every run, and the steps that have a loss."""
    with sqlite3.connect(home.mlflow_database) as database:
        status = database.execute("select status from runs").fetchall()
        steps = database.execute("select step from metrics where key = 'loss' order by step").fetchall()
    return status, [step for (step,) in steps]


def ranks_of(home: Home) -> list[psutil.Process]:
    """The ranks' own processes: those that torchrun started."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "-u" in words and "tessera.train.worker" in words and str(run_of(home).root) in words:
            found.append(process)
    return found


def alive(home: Home) -> list[psutil.Process]:
    """Every process that names the run folder."""
    folder = str(run_of(home).root)
    return [one for one in psutil.process_iter(["cmdline"])
            if folder in (one.info["cmdline"] or []) and one.status() != psutil.STATUS_ZOMBIE]  # fmt: skip


def worker_of(process: psutil.Process, *, cluster: Cluster) -> int:
    """The process id of the Spark worker under which a rank runs."""
    (worker,) = [parent.pid for parent in process.parents() if parent.pid in cluster.worker_ids]
    return worker


def start_training(home: Home, *assignments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        command("train", *assignments), env=environment(home), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_until(condition: Callable[[], bool], *, process: "subprocess.Popen[str]", seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)


def steps_done(home: Home) -> int:
    return len(lines(run_of(home))) if home.runs.exists() and run_of(home).metrics.exists() else 0


def test_ranks_on_both_workers_lose_one_recover_and_end_as_beside_the_driver(
    cluster: Cluster, undisturbed: Home, home: Home
) -> None:
    training = start_training(home, *on(cluster, "train.max_restarts=1"))
    wait_until(lambda: steps_done(home) > 7, process=training)
    ranks = ranks_of(home)
    workers = {worker_of(rank, cluster=cluster) for rank in ranks}
    ranks[1].send_signal(signal.SIGKILL)
    out, said = training.communicate(timeout=300)

    assert training.returncode == 0, said
    assert workers == set(cluster.worker_ids)
    assert "killed by signal 9" in said
    assert "started again, restart 1" in said
    record = json.loads(out.splitlines()[-1])
    assert run_of(home).read_starts() == [(1, 0), (1, 1)]
    assert lines(run_of(home)) == lines(run_of(undisturbed))
    assert record["weights_sha256"] == run_of(undisturbed).read_result().weights_sha256
    assert mlflow(home) == ([("FINISHED",)], list(range(1, STEPS + 1)))


@pytest.mark.slow
def test_a_lost_executor_is_survived_by_a_new_attempt(cluster: Cluster, undisturbed: Home, home: Home) -> None:
    training = start_training(home, *on(cluster, "train.max_restarts=2"))
    wait_until(lambda: steps_done(home) > 7, process=training)
    executors = [pid for pids in cluster.executor_ids().values() for pid in pids]
    os.kill(executors[0], signal.SIGKILL)
    _, said = training.communicate(timeout=300)

    assert training.returncode == 0, said
    assert "a new attempt" in said
    assert run_of(home).read_attempt() > 1
    assert run_of(home).read_result().weights_sha256 == run_of(undisturbed).read_result().weights_sha256
    assert mlflow(home) == ([("FINISHED",)], list(range(1, STEPS + 1)))


@pytest.mark.slow
def test_a_rank_that_fails_is_named_with_its_trace_and_the_run_is_failed(cluster: Cluster, home: Home) -> None:
    done = tessera("train", *on(cluster, fail="train.after_step:raise:4"), home=home)

    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("tessera: ")]
    assert "failed: InjectedFault" in line
    assert re.search(r"in .*train/worker\.py:\d+ > .*train/loop\.py:\d+ > .*tessera/failpoints\.py:\d+", line)
    status, _ = mlflow(home)
    assert status == [("FAILED",)]
    assert alive(home) == []


@pytest.mark.slow
def test_too_few_slots_are_said_at_once(cluster: Cluster, home: Home) -> None:
    began = time.monotonic()
    done = tessera("train", *on(cluster, "train.ranks=4"), home=home)

    assert done.returncode == 2
    assert "train.ranks 4 takes 4 tasks at once, the cluster has slots for 2" in done.stderr
    assert time.monotonic() - began < 90
    assert not home.runs.exists()


@pytest.mark.slow
def test_no_rank_outlives_its_driver(cluster: Cluster, home: Home) -> None:
    training = start_training(home, *on(cluster, "train.steps=100000", "train.beat_seconds=1.5"))
    wait_until(lambda: steps_done(home) > 3, process=training)
    training.send_signal(signal.SIGKILL)
    training.wait()
    time.sleep(2.5)

    assert alive(home) == []


@pytest.mark.slow
def test_the_run_goes_on_with_the_ranks_that_a_lost_machine_leaves(
    cluster: Cluster, undisturbed: Home, home: Home
) -> None:
    """The last test of this cluster: one of its two workers is killed, and stays away."""
    training = start_training(home, *on(cluster, "train.max_restarts=2"))
    wait_until(lambda: steps_done(home) > 7, process=training)
    worker, executors = next(iter(cluster.executor_ids().items()))
    for pid in (worker, *executors):
        os.kill(pid, signal.SIGKILL)
    out, said = training.communicate(timeout=400)

    assert training.returncode == 0, said
    assert "the cluster holds 1 of 2 ranks now" in said
    assert "order exact, sums not: ranks 2 -> 1" in said
    assert json.loads(out.splitlines()[-1])["ranks"] == 1
    for line, other in zip(lines(run_of(home)), lines(run_of(undisturbed)), strict=True):
        assert line == pytest.approx(other, abs=1e-3, rel=1e-3)
    assert mlflow(home) == ([("FINISHED",)], list(range(1, STEPS + 1)))
