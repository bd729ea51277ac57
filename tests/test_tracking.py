"""Against a real SQLite store; the run ids, tags and metrics are read back through sqlite3, not through our code."""

import json
import os
import sqlite3
import subprocess
import sys
import threading

import pytest

from tessera import tracking
from tessera.errors import ConfigError
from tessera.home import Home
from tessera.lineage import TableVersion
from tessera.tracking import TrackingSettings
from tessera.train.metrics import Writer
from tessera.train.run import RunFolder
from tessera.train.ship import CURSOR, Shipper

SETTINGS = TrackingSettings(experiment="lab")


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Home:
    """One store for all tests here: making it takes five seconds. Made by three threads at once."""
    home = Home(tmp_path_factory.mktemp("tracking") / "home")
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda: found.append(tracking.prepare_store(SETTINGS, home=home))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert len(set(found)) == 1
    return home


def rows(home: Home, query: str, *values: str) -> list[tuple]:
    with sqlite3.connect(home.mlflow_database) as database:
        return database.execute(query, values).fetchall()


def steps_of(home: Home, run_id: str, key: str = "loss") -> list[int]:
    found = rows(home, "select step from metrics where run_uuid = ? and key = ? order by step", run_id, key)
    return [step for (step,) in found]


def line(step: int) -> dict[str, float]:
    return {"step": step, "loss": 1 / (step + 1), "tokens": step * 10, "time": 1_700_000_000 + step}


def open_run(home: Home, name: str, run_id: str | None = None) -> tracking.TrackedRun:
    return tracking.open_run(SETTINGS, home=home, name=name, run_id=run_id)


def test_a_run_is_gone_on_with_by_id_or_by_name(store):
    first = open_run(store, "one")
    first.end("FAILED")

    assert open_run(store, "one", first.run_id).run_id == first.run_id
    assert open_run(store, "one").run_id == first.run_id  # killed before its id was noted
    assert open_run(store, "two").run_id != first.run_id
    assert rows(store, "select status from runs where run_uuid = ?", first.run_id) == [("RUNNING",)]


def test_the_newest_step_is_known_from_the_metrics(store):
    run = open_run(store, "steps")
    assert run.newest_step() == -1

    run.log_steps([line(step) for step in range(700)], extra={"system/cpu": 3.0})  # more than one call takes
    assert run.newest_step() == 699
    assert steps_of(store, run.run_id) == list(range(700))
    assert steps_of(store, run.run_id, "system/cpu") == [699]


def test_parameters_and_lineage_keep_version_zero_and_unresolved_secrets(store, monkeypatch):
    monkeypatch.setenv("TOKEN", "hunter2")
    run = open_run(store, "lineage")
    params = {"train": {"steps": 3, "model": {"width": 8}}, "tracking": {"uri": "https://u:${env:TOKEN}@host"}}
    params["many"] = {str(number): number for number in range(250)}
    for _ in range(2):  # the second attempt adds nothing
        run.describe(params=params, tags={"tessera.table.docs": "tables/docs@0"})
    run.add_inputs([TableVersion(name="docs", path="tables/docs", version=0, table_id="t-1")], context="train")

    stored = dict(rows(store, "select key, value from params where run_uuid = ?", run.run_id))
    assert (stored["train.model.width"], stored["many.249"]) == ("8", "249")
    assert stored["tracking.uri"] == "https://u:${env:TOKEN}@host"
    assert rows(store, "select value from tags where run_uuid = ? and key like 'tessera.table%'", run.run_id) == [
        ("tables/docs@0",)
    ]
    ((digest, source),) = rows(store, "select digest, dataset_source from datasets where name = 'docs'")
    assert (digest, json.loads(source)) == ("v0", {"path": "tables/docs", "delta_table_version": 0})
    assert b"hunter2" not in store.mlflow_database.read_bytes()


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    return RunFolder(tmp_path / "runs" / tmp_path.name)


def shipper_of(folder: RunFolder, store: Home, heard: list[str], settings: TrackingSettings = SETTINGS) -> Shipper:
    folder.root.mkdir(parents=True, exist_ok=True)
    return Shipper(
        folder, settings=settings, home=store, params={"a": 1}, tags={"tessera.code": "c"}, inputs=(),
        notice=heard.append,
    )  # fmt: skip


def write(folder: RunFolder, *steps: int) -> None:
    writer = Writer(folder.metrics)
    for step in steps:
        writer.write(line(step))
    writer.close()


def test_every_step_is_shipped_once_over_kills_and_resumes(folder, store):
    heard: list[str] = []
    first = shipper_of(folder, store, heard)
    write(folder, 0, 1, 2)
    first.start()
    run_id = first.close(status="KILLED")
    assert steps_of(store, run_id) == [0, 1, 2]

    (folder.root / CURSOR).write_text(json.dumps({"run_id": run_id, "step": 0}))  # killed before the cursor was moved
    folder.metrics.unlink()  # resumed after step 1: cut back, and step 2 done again
    write(folder, 0, 1, 2, 3)
    second = shipper_of(folder, store, heard)
    second.start()

    assert second.close(status="FINISHED", tags={"tessera.weights_sha256": "w"}) == run_id
    assert steps_of(store, run_id) == [0, 1, 2, 3]
    assert rows(store, "select status from runs where run_uuid = ?", run_id) == [("FINISHED",)]
    assert heard == []
    assert json.loads((folder.root / CURSOR).read_text()) == {"run_id": run_id, "step": 3}


def test_a_locked_store_delays_metrics_and_loses_none(folder, store, monkeypatch):
    monkeypatch.setattr("tessera.train.ship.RETRY_SECONDS", 0.1)
    heard: list[str] = []
    shipper = shipper_of(folder, store, heard)
    real = tracking.TrackedRun.log_steps
    refusals = iter([sqlite3.OperationalError("database is locked")] * 3)

    def locked(self, lines, *, extra=None):
        for error in refusals:
            raise error
        real(self, lines, extra=extra)

    monkeypatch.setattr(tracking.TrackedRun, "log_steps", locked)
    write(folder, 0, 1)
    shipper.start()
    while next(refusals, None) is not None:
        pass
    run_id = shipper.close(status="FINISHED")

    assert steps_of(store, run_id) == [0, 1]
    assert not [text for text in heard if "lacks" in text]


def test_without_a_server_training_goes_on_and_the_gap_is_said(folder, store, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    heard: list[str] = []
    shipper = shipper_of(folder, store, heard, TrackingSettings(uri="http://127.0.0.1:9"))
    write(folder, 0, 1)
    shipper.start()

    assert shipper.close(status="FINISHED") == ""
    assert any("metrics.jsonl" in text for text in heard)


def test_secrets_are_resolved_late_and_never_shown(store, monkeypatch):
    settings = TrackingSettings(uri="https://user:${env:MLFLOW_SECRET}@host/x")
    with pytest.raises(ConfigError, match="MLFLOW_SECRET"):
        tracking.tracking_uri(settings, home=store)
    monkeypatch.setenv("MLFLOW_SECRET", "hunter2")

    assert tracking.tracking_uri(settings, home=store) == "https://user:hunter2@host/x"
    assert tracking.shown_uri(settings, home=store) == "https://host/x"


def test_settings_import_no_mlflow_and_telemetry_is_off():
    code = "import sys, tessera.tracking as t; assert 'mlflow' not in sys.modules; t._client('sqlite://'); "
    code += "from mlflow.telemetry.utils import is_telemetry_disabled; print(is_telemetry_disabled())"
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("CI", "MLFLOW", "PYTEST"))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)

    assert done.stdout.split() == ["True"]
