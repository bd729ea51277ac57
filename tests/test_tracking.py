"""Against a real SQLite store; the run ids, tags and metrics are read back through sqlite3, not through our code."""

import errno
import json
import os
import socket
import sqlite3
import ssl
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera import tracking
from tessera.away import insist, is_answer, is_away, is_denied, masked, why
from tessera.config import Layer, Section, load
from tessera.errors import ConfigError
from tessera.home import Home
from tessera.lineage import TableVersion
from tessera.tracking import TrackingSettings
from tessera.train.metrics import Writer, cut_back
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

    run.log_steps([line(step) for step in range(700)])  # more than one call takes
    assert run.newest_step() == 699
    assert steps_of(store, run.run_id) == list(range(700))


def test_a_step_counts_only_when_its_last_metric_is_there(store, monkeypatch):
    """A step of 2,300 metrics goes in three calls; the last is lost, and the step is sent again as it was."""
    run = open_run(store, "wide")
    wide = {**{f"m{number:04d}": float(number) for number in range(2299)}, "step": 1, "time": 1_700_000_000.5}
    client = tracking.client(run.uri)
    sent = []

    def lossy(run_id, metrics=(), **others):
        sent.append(len(metrics))
        if len(sent) == 4:
            raise ConnectionResetError
        return type(client).log_batch(client, run_id, metrics=metrics, **others)

    monkeypatch.setattr(client, "log_batch", lossy)
    with pytest.raises(ConnectionResetError):
        run.log_steps([line(0), wide])
    assert run.newest_step() == 0
    run.log_steps([line(0), wide])

    assert sent == [3, 1000, 1000, 300, 3, 1000, 1000, 300]
    assert run.newest_step() == 1
    counted = rows(
        store, "select count(*), count(distinct key) from metrics where run_uuid = ? and step = 1", run.run_id
    )
    assert counted == [(2300, 2300)]
    assert steps_of(store, run.run_id) == [0]


def test_what_comes_from_elsewhere_says_nothing_of_steps(store):
    """An evaluation at the last step must not hide steps that are lacking."""
    run = open_run(store, "elsewhere")
    run.log_steps([line(0), line(1)])
    for _ in range(2):
        run.log_at(9, time=1_700_000_100, metrics={"eval/bits_per_byte": 2.5}, tags={"tessera.gate": "passed"})

    assert run.newest_step() == 1
    assert steps_of(store, run.run_id, "eval/bits_per_byte") == [9]
    assert rows(store, "select value from tags where run_uuid = ? and key = 'tessera.gate'", run.run_id) == [
        ("passed",)
    ]


def test_a_run_began_and_ended_when_it_did(store):
    run = tracking.open_run(SETTINGS, home=store, name="then", run_id=None, began=1_700_000_000.25)
    run.end("FAILED", time=1_700_000_060.5)

    found = rows(store, "select status, start_time, end_time from runs where run_uuid = ?", run.run_id)
    assert found == [("FAILED", 1_700_000_000_250, 1_700_000_060_500)]


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
    assert json.loads((folder.root / CURSOR).read_text()) == {"run_id": run_id, "step": 3, "status": "FINISHED"}


def test_steps_done_again_while_mlflow_was_away_are_sent_once(folder, store, monkeypatch):
    """Ranks restart from a checkpoint: the file is cut back, and later steps are written anew, at another time."""
    shipper = shipper_of(folder, store, [])
    shipper.run = open_run(store, "again")
    write(folder, 0, 1, 2, 3)
    with monkeypatch.context() as away:
        away.setattr(tracking, "client", lambda uri: (_ for _ in ()).throw(ConnectionRefusedError))
        with pytest.raises(ConnectionRefusedError):
            shipper.ship()
    cut_back(folder.metrics, step=1)
    writer = Writer(folder.metrics)
    for step in (2, 3, 4):
        writer.write({**line(step), "time": 1_800_000_000 + step})
    writer.close()
    shipper.ship()

    assert steps_of(store, shipper.run.run_id) == [0, 1, 2, 3, 4]


def test_a_run_deleted_from_mlflow_is_made_anew_with_all_its_metrics(folder, store):
    heard: list[str] = []
    first = shipper_of(folder, store, heard)
    write(folder, 0, 1)
    first.start()
    gone = first.close(status="FAILED")
    tracking.client(tracking.tracking_uri(SETTINGS, home=store)).delete_run(gone)
    write(folder, 2)
    second = shipper_of(folder, store, heard)
    second.start()
    made = second.close(status="FINISHED")

    assert made != gone
    assert steps_of(store, made) == [0, 1, 2]
    assert heard == [f"MLflow has no run {gone} any more; its metrics go into a new one"]


def test_the_use_of_the_machine_is_sampled_once_a_moment_and_never_on_replay(folder, store):
    shipper = shipper_of(folder, store, [])
    write(folder, 0, 1)
    shipper.start()
    run_id = shipper.close(status="FINISHED")

    sampled = rows(store, "select key, step from metrics where run_uuid = ? and key like 'system/%'", run_id)
    assert sorted(sampled) == [
        ("system/cpu_utilization_percentage", 1),
        ("system/system_memory_usage_megabytes", 1),
        ("system/system_memory_usage_percentage", 1),
    ]


def test_secrets_are_resolved_late_and_never_shown(store, monkeypatch):
    settings = TrackingSettings(uri="https://user:${env:MLFLOW_SECRET}@host/x")
    with pytest.raises(ConfigError, match="MLFLOW_SECRET"):
        tracking.tracking_uri(settings, home=store)
    monkeypatch.setenv("MLFLOW_SECRET", "hunter2")

    assert tracking.tracking_uri(settings, home=store) == "https://user:hunter2@host/x"
    assert tracking.shown_uri(settings, home=store) == "https://host/x"


@pytest.mark.parametrize(
    "given",
    [
        "postgresql+pg8000://tessera:hunter2@db/runs",
        "http://me:hunter2@host:5000",
        "https://u:x${env:A}hunter2@h",
        "postgresql://db/runs?user=me&password=hunter2",
        "http://host?Api_Key=hunter2",
        "https://h/x?a=b&token=hunter2#c",
        "mysql://db/x?ssl=1&client_secret=x${env:A}hunter2",
        "https://hunter2@host",
        "https://hunter2:@host",
    ],
)
def test_a_password_in_the_configuration_is_refused_and_not_repeated(given):
    for key in ("uri", "registry_uri", "artifacts"):
        with pytest.raises(ConfigError, match=r"password.*\$\{env:NAME\}") as caught:
            load(Tracked, layers=[Layer(origin="--set", values={"tracking": {key: given}})])
        assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "given",
    ["https://${env:TOKEN}@host", "postgresql://me@db/runs", "postgresql://db/x?password=${env:PW}&sslmode=require",
     "s3://bucket/a?region=eu", "databricks-uc", "/data/keys=1"],
)  # fmt: skip
def test_an_address_without_a_literal_secret_passes(given):
    assert TrackingSettings(uri=given).uri == given


class Tracked(Section):
    tracking: TrackingSettings


@given(st.text(st.characters(min_codepoint=33, max_codepoint=0x2FFF, exclude_categories=["Cs"]), min_size=1))
def test_any_password_reaches_the_database_as_it_is(password):
    from sqlalchemy.engine import make_url

    settings = TrackingSettings(uri="postgresql+pg8000://me:${env:TESSERA_TEST_PW}@db:5/runs")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TESSERA_TEST_PW", password)
        url = make_url(tracking.tracking_uri(settings, home=Home(Path("h"))))

    assert (url.username, url.password, url.host, url.database) == ("me", password, "db", "runs")


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("postgresql+pg8000://me:${env:PW}@db:5/runs?password=x", "postgresql+pg8000://db:5/runs"),
        ("https://a@b:c@host/x", "https://host/x"),
        ("sqlite:////data/m.db", "sqlite:////data/m.db"),
        ("databricks", "databricks"),
        ("${env:WHOLE}", "${env:WHOLE}"),
    ],
)
def test_an_address_is_shown_without_user_password_and_query(uri, shown):
    assert masked(uri) == shown


@pytest.mark.parametrize(
    ("artifacts", "location"), [("s3://bucket/models", "s3://bucket/models"), ("/data/files", "file:///data/files")]
)
def test_a_new_experiment_keeps_its_files_where_configured(store, artifacts, location):
    settings = TrackingSettings(experiment=artifacts, artifacts=artifacts)
    experiment = tracking.prepare_store(settings, home=store)

    found = rows(store, "select artifact_location from experiments where experiment_id = ?", experiment)
    assert found == [(location,)]
    default = rows(store, "select artifact_location from experiments where name = 'lab'")
    assert default == [(store.mlflow_artifacts.as_uri(),)]


def test_a_deleted_experiment_is_named(store):
    settings = TrackingSettings(experiment="gone")
    tracking.client(tracking.tracking_uri(settings, home=store)).delete_experiment(
        tracking.prepare_store(settings, home=store)
    )
    with pytest.raises(ConfigError, match=r"experiment gone was deleted; restore it, or name another"):
        tracking.prepare_store(settings, home=store)


def test_models_are_registered_where_runs_are_recorded_unless_said_otherwise(store):
    managed = TrackingSettings(uri="databricks", registry_uri="databricks-uc")

    assert tracking.registry_uri(managed, home=store) == "databricks-uc"
    assert tracking.registry_uri(SETTINGS, home=store) == tracking.tracking_uri(SETTINGS, home=store)
    assert tracking.client("sqlite://", registry="databricks-uc")._registry_uri == "databricks-uc"


def test_an_answer_of_no_is_not_taken_for_absence():
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

    assert not is_away(MlflowException("no run", RESOURCE_DOES_NOT_EXIST))
    assert is_answer(MlflowException("no run", RESOURCE_DOES_NOT_EXIST))
    assert not is_away(ValueError("x"))
    assert not is_answer(ValueError("x"))
    assert is_away(ConnectionRefusedError())


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "full"), FileNotFoundError(), PermissionError(), IsADirectoryError()]
)
def test_a_full_disk_or_a_file_that_is_not_there_is_not_the_stores_fault(error):
    assert not is_away(error)


@pytest.mark.parametrize("error", [socket.gaierror(), ssl.SSLError(), TimeoutError(), sqlite3.OperationalError()])
def test_what_did_not_arrive_is(error):
    assert is_away(error)


@pytest.mark.parametrize(
    ("code", "calls"), [("UNAUTHENTICATED", 1), ("PERMISSION_DENIED", 1), ("TEMPORARILY_UNAVAILABLE", 2)]
)
def test_a_store_that_denies_is_asked_once_and_what_it_says_is_named(code, calls):
    from mlflow.exceptions import RestException

    error, made = RestException({"error_code": code, "message": "private words"}), []

    def call():
        made.append(code)
        raise error

    with pytest.raises(RestException):
        insist(call, seconds=0.8)
    assert len(made) == calls
    assert is_away(error)
    assert is_denied(error) == (calls == 1)
    assert why(error) == f"it says {code}"


def test_settings_import_no_mlflow_and_telemetry_is_off():
    code = "import sys, tessera.tracking as t; assert 'mlflow' not in sys.modules; t.client('sqlite://'); "
    code += "from mlflow.telemetry.utils import is_telemetry_disabled; print(is_telemetry_disabled())"
    assert telemetry_off(code)


def test_registering_imports_mlflow_after_its_telemetry_is_off():
    code = "import sys, tessera.serve.register as r; assert 'mlflow' not in sys.modules; "
    code += "r.tracking.quiet(); r.signature(); "
    code += "from mlflow.telemetry.client import get_telemetry_client; print(get_telemetry_client() is None)"
    assert telemetry_off(code)


def telemetry_off(code: str) -> bool:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("CI", "MLFLOW", "PYTEST"))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)

    return done.stdout.split() == ["True"]
