"""A Spark standalone cluster on loopback: a master and workers, each a process of ours, ended by its id."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pyspark

from tessera import java

CLASSES = "org.apache.spark.deploy"
START_SECONDS = 60.0


@dataclass
class Cluster:
    """What runs, and where its logs are."""

    master: str
    """spark://127.0.0.1:PORT"""
    folder: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def worker_ids(self) -> list[int]:
        """Process ids of the workers."""
        return [process.pid for process in self.processes[1:]]

    def executor_ids(self) -> dict[int, list[int]]:
        """Worker's process id -> process ids of the executors that it runs."""
        return {worker: [child for child in children(worker) if "CoarseGrained" in command(child)]
                for worker in self.worker_ids}  # fmt: skip


@contextmanager
def start(folder: Path, *, workers: int, cores: int = 1) -> Iterator[Cluster]:
    """Brings up a master and `workers` workers of `cores` slots, and takes all down again."""
    folder.mkdir(parents=True)
    environment = {
        **os.environ, "SPARK_LOCAL_IP": "127.0.0.1", "JAVA_HOME": str(java.find_java()), "SPARK_DAEMON_MEMORY": "256m",
        "SPARK_WORKER_DIR": str(folder / "work"), "SPARK_LOCAL_DIRS": str(folder / "local"),
    }  # fmt: skip
    cluster = Cluster(master="", folder=folder)
    try:
        arguments = ["--host", "127.0.0.1", "--port", "0", "--webui-port", "0"]
        log = _spawn(cluster, "master.Master", *arguments, environment=environment)
        cluster.master = _wait_for(log, r"Starting Spark master at (spark://\S+)")
        for _ in range(workers):
            arguments = ["--host", "127.0.0.1", "--webui-port", "0", "--cores", str(cores), "--memory", "1g"]
            log = _spawn(cluster, "worker.Worker", *arguments, cluster.master, environment=environment)
            _wait_for(log, r"(Successfully registered) with master")
        yield cluster
    finally:
        for process in reversed(cluster.processes):
            process.send_signal(signal.SIGTERM)
        for process in cluster.processes:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def children(pid: int) -> list[int]:
    """Process ids of the children of a process."""
    try:
        return [int(child) for task in Path(f"/proc/{pid}/task").iterdir()
                for child in (task / "children").read_text().split()]  # fmt: skip
    except OSError:
        return []


def command(pid: int) -> str:
    """The command line of a process; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _spawn(cluster: Cluster, name: str, *arguments: str, environment: dict[str, str]) -> Path:
    log = cluster.folder / f"{name}-{len(cluster.processes)}.log"
    script = Path(pyspark.__file__).parent / "bin" / "spark-class"
    with log.open("wb") as file:
        started = subprocess.Popen(
            [str(script), f"{CLASSES}.{name}", *arguments], env=environment, stdout=file, stderr=file,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    cluster.processes.append(started)
    return log


def _wait_for(log: Path, pattern: str) -> str:
    """The first group of `pattern` once it is in the log."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if found := re.search(pattern, log.read_text(encoding="utf-8", errors="replace")):
            return found[1]
        time.sleep(0.2)
    raise AssertionError(f"{log} does not say {pattern}: {log.read_text(encoding='utf-8', errors='replace')[-2000:]}")
