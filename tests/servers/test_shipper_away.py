"""A run's metrics against a real MLflow server that fails, and a SQLite file that is locked: all there, each once.

What arrived is read from the server's database, not through our code or MLflow's.
"""

import json
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.servers.conftest import MlflowServer, Proxy, wait_for

from tessera import tracking
from tessera.home import Home
from tessera.lineage import TableVersion
from tessera.tracking import TrackingSettings
from tessera.train.metrics import Writer
from tessera.train.replay import replay, unsent
from tessera.train.run import RunFolder, RunResult
from tessera.train.ship import CURSOR, LATER, Shipper, known_run_id

INPUTS = (TableVersion(name="docs", path="tables/docs", version=0, table_id="t-1"),)
KEYS = ("loss", "tokens", "step")
LOCK = """
import sqlite3, sys, time
with sqlite3.connect(sys.argv[1], isolation_level=None) as database:
    database.execute("begin exclusive")
    print("locked", flush=True)
    time.sleep(float(sys.argv[2]))
    database.execute("commit")
"""


class Trainer:
    """Stands for rank 0: writes ten steps a second, on and on, whatever happens to MLflow."""

    def __init__(self, folder: RunFolder) -> None:
        folder.root.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.steps = 0
        self._writer = Writer(folder.metrics)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while not self._stop.wait(0.1):
            self.steps += 1
            self._writer.write({"step": self.steps, "loss": 1 / self.steps, "tokens": self.steps, "time": time.time()})

    def stop(self) -> int:
        self._stop.set()
        self._thread.join()
        self._writer.close()
        return self.steps

    def advances(self, *, seconds: float) -> None:
        """Steps go on for so long."""
        before, until = self.steps, time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(0.1)
        assert self.steps - before > 5 * seconds


def finish(folder: RunFolder, *, steps: int) -> None:
    """What rank 0 writes last."""
    result = RunResult(
        steps=steps, ranks=1, parameters=1, train_tokens=1, bits_per_byte_before=8.0, bits_per_byte_after=7.0,
        checkpoint="checkpoints/x", weights_sha256="w" * 64, seconds=1.0,
    )  # fmt: skip
    folder.record.write_text(result.model_dump_json())


@pytest.fixture(autouse=True)
def short_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that hangs is given up after three seconds instead of ten, so that the tests need not wait."""
    monkeypatch.setitem(tracking.QUIET, "MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "home" / "runs" / f"run-{tmp_path.name}")


def shipper_of(folder: RunFolder, settings: TrackingSettings, heard: list[str]) -> Shipper:
    shipper = Shipper(
        folder, settings=settings, home=folder.home, params={"a": 1}, tags={"tessera.code": "c"}, inputs=INPUTS,
        notice=heard.append,
    )  # fmt: skip
    shipper.start()
    return shipper


def check_complete(rows: Callable[..., list[tuple]], *, run_id: str, name: str, steps: int, mark: str = "%s") -> None:
    """Every metric of every step is there once, in the only run of that name, which is finished."""
    for key in KEYS:
        found = rows(f"select step from metrics where run_uuid = {mark} and key = {mark} order by step", run_id, key)
        assert [step for (step,) in found] == list(range(1, steps + 1)), key
    once = f"select key, step from metrics where run_uuid = {mark} group by key, step having count(*) > 1"
    assert rows(once, run_id) == []
    assert rows(f"select run_uuid, status from runs where name = {mark}", name) == [(run_id, "FINISHED")]
    assert rows(f"select value from params where run_uuid = {mark} and key = 'a'", run_id) == [("1",)]
    assert rows(f"select count(*) from inputs where destination_id = {mark}", run_id) == [(1,)]
    tags = f"select value from tags where run_uuid = {mark} and key = 'tessera.weights_sha256'"
    assert rows(tags, run_id) == [("w" * 64,)]


WEIGHTS = {"tessera.weights_sha256": "w" * 64}


@pytest.mark.parametrize(
    "fault", [*[pytest.param(fault, marks=pytest.mark.slow) for fault in ("down", "500")], "drop", "hang"]
)
def test_faults_of_the_server_lose_and_double_nothing(fault, folder, proxy: Proxy, mlflow_server: MlflowServer):
    settings, heard = TrackingSettings(uri=proxy.uri, experiment=f"fault-{fault}"), []
    trainer = Trainer(folder)
    shipper = shipper_of(folder, settings, heard)
    wait_for(lambda: known_run_id(folder), seconds=20, what="no run was made")

    for _ in range(2):
        if fault == "down":
            proxy.stop()
        proxy.fault = fault
        trainer.advances(seconds=3.5)
        proxy.fault = None
        if fault == "down":
            proxy.start()
        trainer.advances(seconds=1)
    steps = trainer.stop()
    run_id = shipper.close(status="FINISHED", tags=WEIGHTS)

    check_complete(mlflow_server.rows, run_id=run_id, name=folder.root.name, steps=steps)
    assert fault == "down" or any("log-batch" in path for path in proxy.faulty)
    assert any("training goes on" in text for text in heard)
    assert not any("lacks" in text for text in heard)
    assert json.loads((folder.root / CURSOR).read_text()) == {"run_id": run_id, "step": steps, "status": "FINISHED"}


def test_replies_lost_while_the_run_is_made_leave_one_run(folder, proxy: Proxy, mlflow_server: MlflowServer):
    """Experiment, run, parameters: each arrives, and no answer says so."""
    settings, heard = TrackingSettings(uri=proxy.uri, experiment="lost-replies"), []
    proxy.fault = "drop"
    trainer = Trainer(folder)
    shipper = shipper_of(folder, settings, heard)
    for path in ("experiments/create", "runs/create", "runs/log-batch", "runs/log-inputs"):
        proxy.fault = "drop"
        wait_for(lambda path=path: _lost(proxy, path), seconds=30, what=f"{path} was never asked for")
    proxy.fault = None
    steps = trainer.stop()
    run_id = shipper.close(status="FINISHED", tags=WEIGHTS)

    check_complete(mlflow_server.rows, run_id=run_id, name=folder.root.name, steps=steps)


def _lost(proxy: Proxy, path: str) -> bool:
    """Lets requests through until the one before `path`, so that its reply is the one that is lost."""
    proxy.fault = "drop" if any(path in one for one in proxy.faulty) else f"drop:{path}"
    return any(path in one for one in proxy.faulty)


@pytest.mark.slow
def test_a_server_that_hangs_and_is_killed_is_waited_for(folder, mlflow_server: MlflowServer):
    settings, heard = TrackingSettings(uri=mlflow_server.uri, experiment="killed", flush_seconds=90), []
    trainer = Trainer(folder)
    shipper = shipper_of(folder, settings, heard)
    wait_for(lambda: known_run_id(folder), seconds=20, what="no run was made")
    try:
        mlflow_server.signal(signal.SIGSTOP)
        trainer.advances(seconds=8)
        mlflow_server.signal(signal.SIGCONT)
        trainer.advances(seconds=2)
        mlflow_server.kill()
        trainer.advances(seconds=3)
    finally:
        mlflow_server.start(wait=False)
    steps = trainer.stop()
    run_id = shipper.close(status="FINISHED", tags=WEIGHTS)  # it starts while the end of the run waits

    check_complete(mlflow_server.rows, run_id=run_id, name=folder.root.name, steps=steps)
    assert heard[0].startswith("MLflow gives trouble: it does not answer in time")


def test_away_from_start_to_end_is_declared_and_sent_by_a_later_command(folder, proxy: Proxy, mlflow_server):
    settings = TrackingSettings(uri=proxy.uri, experiment="late", flush_seconds=1)
    proxy.stop()
    heard: list[str] = []
    trainer = Trainer(folder)
    shipper = shipper_of(folder, settings, heard)
    trainer.advances(seconds=2)
    steps = trainer.stop()
    finish(folder, steps=steps)
    began = time.monotonic()
    assert shipper.close(status="FINISHED", tags=WEIGHTS) == ""
    assert time.monotonic() - began < 2
    assert heard == [
        "MLflow gives trouble: the connection was refused; training goes on, metrics are kept",
        "MLflow did not take the end of this run: the connection was refused; "
        f"it lacks the metrics of steps 1 to {steps}, which are kept in metrics.jsonl; " + LATER,
    ]
    home, told = folder.home, []
    replay(home, settings=settings, notice=told.append)
    assert told[-1].startswith(f"run {folder.root.name}: MLflow did not take the end")

    proxy.start()
    replay(home, settings=settings, notice=heard.append)
    run_id = known_run_id(folder)
    check_complete(mlflow_server.rows, run_id=run_id, name=folder.root.name, steps=steps)
    assert mlflow_server.rows("select key from metrics where run_uuid = %s and key like 'system/%%'", run_id) == []
    assert list(unsent(home)) == []


def test_away_at_the_end_leaves_a_running_run_that_the_next_launch_finishes(folder, proxy: Proxy, mlflow_server):
    settings = TrackingSettings(uri=proxy.uri, experiment="end", flush_seconds=1)
    heard: list[str] = []
    trainer = Trainer(folder)
    shipper = shipper_of(folder, settings, heard)
    wait_for(lambda: known_run_id(folder), seconds=20, what="no run was made")
    proxy.fault = "hang"
    trainer.advances(seconds=2)
    steps = trainer.stop()
    began = time.monotonic()
    run_id = shipper.close(status="FINISHED", tags=WEIGHTS)
    assert time.monotonic() - began < 2, "a server that hangs must not hold the command"
    assert mlflow_server.rows("select status from runs where run_uuid = %s", run_id) == [("RUNNING",)]
    assert "lacks the metrics" in heard[-1]

    proxy.fault = None
    again = shipper_of(folder, settings.model_copy(update={"flush_seconds": 30.0}), heard)
    assert again.close(status="FINISHED", tags=WEIGHTS) == run_id
    check_complete(mlflow_server.rows, run_id=run_id, name=folder.root.name, steps=steps)


def test_an_interrupted_run_does_not_wait_for_a_server_that_hangs(folder, proxy: Proxy):
    proxy.fault = "hang"
    trainer = Trainer(folder)
    shipper = shipper_of(folder, TrackingSettings(uri=proxy.uri), [])
    trainer.stop()
    began = time.monotonic()
    shipper.close(status="KILLED")
    assert time.monotonic() - began < 4


@pytest.fixture
def locked(folder: RunFolder) -> Iterator[Callable[[float], subprocess.Popen]]:
    """Locks the home's SQLite store from another process, for so many seconds."""
    holders = []

    def lock(seconds: float) -> subprocess.Popen:
        holder = subprocess.Popen(
            [sys.executable, "-c", LOCK, str(folder.home.mlflow_database), str(seconds)], stdout=subprocess.PIPE
        )
        holders.append(holder)
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        return holder

    yield lock
    for holder in holders:
        holder.kill()
        holder.wait()
        holder.stdout.close()


@pytest.mark.parametrize("seconds", [8.0, pytest.param(60.0, marks=pytest.mark.slow)])
def test_a_locked_sqlite_store_delays_metrics_and_loses_none(seconds, folder, locked, capfd):
    """Locked before the run begins, and again in the midst of it."""
    settings, heard = TrackingSettings(), []
    tracking.prepare_store(settings, home=folder.home)
    tracking.client.cache_clear()
    holder = locked(seconds)
    trainer = Trainer(folder)
    shipper = shipper_of(folder, settings, heard)
    trainer.advances(seconds=seconds)
    holder.wait()
    wait_for(lambda: known_run_id(folder), seconds=20, what="no run was made after the lock was gone")
    wait_for(lambda: json.loads((folder.root / CURSOR).read_text())["step"] > 0, seconds=20, what="nothing was sent")
    holder = locked(seconds)
    trainer.advances(seconds=seconds)
    holder.wait()
    steps = trainer.stop()
    run_id = shipper.close(status="FINISHED", tags=WEIGHTS)

    check_complete(sqlite_rows(folder.home), run_id=run_id, name=folder.root.name, steps=steps, mark="?")
    assert heard[0] == "MLflow gives trouble: the database is locked; training goes on, metrics are kept"
    assert "Traceback" not in capfd.readouterr().err


def sqlite_rows(home: Home) -> Callable[..., list[tuple]]:
    def rows(text: str, *values: object) -> list[tuple]:
        with sqlite3.connect(home.mlflow_database) as database:
            return database.execute(text, values).fetchall()

    return rows
