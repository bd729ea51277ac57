"""What MLflow missed of runs that ended, sent later to a real SQLite store; what is there is read through sqlite3.

MLflow is away as a server is: at an address where nobody listens.
"""

import json
import socket
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from tessera import tracking
from tessera.home import Home
from tessera.pipeline import Pipeline
from tessera.progress import Reporter
from tessera.settings import load_settings
from tessera.tracking import TrackingSettings
from tessera.train.metrics import Writer
from tessera.train.replay import keep_evaluation, replay, send, unsent
from tessera.train.run import RunFolder, RunResult, launcher_lock
from tessera.train.ship import ABOUT, CURSOR, Shipper, known_run_id

HERE = TrackingSettings(experiment="lab")


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """A SQLite store, which each test copies: making one takes seconds."""
    home = Home(tmp_path_factory.mktemp("replay") / "home")
    tracking.prepare_store(HERE, home=home)
    return home.mlflow_database


@pytest.fixture
def home(store, tmp_path) -> Home:
    home = Home(tmp_path / "home")
    home.root.mkdir()
    with sqlite3.connect(store) as source, sqlite3.connect(home.mlflow_database) as copy:
        source.backup(copy)
    return home


@pytest.fixture
def nowhere() -> TrackingSettings:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return TrackingSettings(uri=f"http://127.0.0.1:{probe.getsockname()[1]}", experiment="lab", flush_seconds=0)


def launch(home: Home, name: str, settings: TrackingSettings, *steps: int, heard: list[str] | None = None) -> Shipper:
    """A launcher that has written these steps and not ended yet."""
    folder = RunFolder(home.runs / name)
    folder.root.mkdir(parents=True, exist_ok=True)
    writer = Writer(folder.metrics)
    for step in steps:
        writer.write({"step": step, "loss": 1 / (step + 1), "time": 1_700_000_000 + step})
    writer.close()
    said = heard if heard is not None else []
    shipper = Shipper(
        folder, settings=settings, home=home, params={"a": 1}, tags={"tessera.code": "c"}, inputs=(), notice=said.append
    )
    shipper.start()
    return shipper


def finish(folder: RunFolder) -> None:
    result = RunResult(
        steps=3, ranks=1, parameters=77, train_tokens=1, bits_per_byte_before=8.0, bits_per_byte_after=7.0,
        checkpoint="checkpoints/x", weights_sha256="w" * 64, seconds=1.0,
    )  # fmt: skip
    folder.record.write_text(result.model_dump_json())


def evaluate(folder: RunFolder, *, value: float = 2.5) -> None:
    keep_evaluation(
        folder, fingerprint="e" * 64, run_id=known_run_id(folder), step=3, time=1_700_000_100.5,
        metrics={"eval/bits_per_byte": value}, tags={"tessera.gate": "passed"},
    )  # fmt: skip


def rows(home: Home, query: str, *values: str) -> list[tuple]:
    with closing(sqlite3.connect(home.mlflow_database)) as database:
        return database.execute(query, values).fetchall()


def steps_of(home: Home, name: str, key: str = "loss") -> list[int]:
    query = (
        "select step from metrics m join runs r on r.run_uuid = m.run_uuid where r.name = ? and key = ? order by step"
    )
    return [step for (step,) in rows(home, query, name, key)]


def replayed(home: Home, settings: TrackingSettings = HERE) -> list[str]:
    told: list[str] = []
    replay(home, settings=settings, notice=told.append)
    return told


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_a_run_of_any_end_shows_how_and_when_it_ended(status, home, nowhere):
    before = time.time()
    shipper = launch(home, "run", nowhere, 0, 1, 2)
    folder = RunFolder(home.runs / "run")
    if status == "FINISHED":
        finish(folder)
    assert shipper.close(status=status) == ""
    after = time.time()
    time.sleep(1.5)

    assert replayed(home) == []
    ((found, began, ended),) = rows(home, "select status, start_time, end_time from runs where name = 'run'")
    assert found == status
    assert before - 0.01 <= began / 1000 <= ended / 1000 <= after
    assert steps_of(home, "run") == [0, 1, 2]
    weights = rows(home, "select value from tags where key = 'tessera.weights_sha256'")
    assert weights == ([("w" * 64,)] if status == "FINISHED" else [])
    assert list(unsent(home)) == []


def test_a_run_that_was_killed_outright_is_left_to_its_next_launch(home):
    shipper = launch(home, "run", HERE, 0, 1)
    folder = RunFolder(home.runs / "run")
    while not steps_of(home, "run"):
        time.sleep(0.05)
    shipper.run = None  # what it does from here on is nothing: kill -9
    before = (folder.root / CURSOR).read_bytes()

    assert replayed(home) == []
    assert (folder.root / CURSOR).read_bytes() == before
    assert rows(home, "select status from runs where name = 'run'") == [("RUNNING",)]
    shipper.close(status="KILLED")


def test_a_finished_run_whose_launcher_was_killed_ends_when_its_record_was_written(home, nowhere):
    launch(home, "run", nowhere, 0, 1)
    folder = RunFolder(home.runs / "run")
    finish(folder)
    written = folder.record.stat().st_mtime
    time.sleep(0.3)

    assert replayed(home) == []
    assert rows(home, "select status, end_time from runs where name = 'run'") == [("FINISHED", int(written * 1000))]


def test_a_run_whose_launcher_lives_is_left_alone(home, nowhere):
    launch(home, "run", nowhere, 0).close(status="FAILED")
    with launcher_lock(RunFolder(home.runs / "run")):
        assert replayed(home) == []
    assert rows(home, "select * from runs where name = 'run'") == []
    assert len(list(unsent(home))) == 1


def test_a_run_that_went_on_while_mlflow_was_away_is_sent_again(home, nowhere):
    """It was killed and shown as such, then went on unseen, and was killed again."""
    launch(home, "run", HERE, 0, 1).close(status="KILLED")
    assert steps_of(home, "run") == [0, 1]
    launch(home, "run", nowhere, 2, 3).close(status="KILLED")
    (ended,) = (json.loads(path.read_text())["end"]["time"] for path in home.runs.glob(f"*/{ABOUT}"))

    assert replayed(home) == []
    assert steps_of(home, "run") == [0, 1, 2, 3]
    assert rows(home, "select status, end_time from runs where name = 'run'") == [("KILLED", int(ended * 1000))]


def test_training_goes_before_its_evaluation_and_each_arrives_once(home, nowhere):
    """MLflow is back between the end of training and the evaluation's own words."""
    shipper = launch(home, "run", HERE, 0, 1)
    folder = RunFolder(home.runs / "run")
    while steps_of(home, "run") != [0, 1]:
        time.sleep(0.05)
    shipper._settings = nowhere
    shipper.run = tracking.TrackedRun(str(nowhere.uri), known_run_id(folder))
    writer = Writer(folder.metrics)
    for step in (2, 3):
        writer.write({"step": step, "loss": 1 / (step + 1), "time": 1_700_000_000 + step})
    finish(folder)
    shipper.close(status="FINISHED")
    assert steps_of(home, "run") == [0, 1]

    evaluate(folder)
    for _ in range(2):
        assert send(folder, settings=HERE, notice=pytest.fail)
    assert steps_of(home, "run") == [0, 1, 2, 3]
    assert steps_of(home, "run", "step") == [0, 1, 2, 3]
    assert steps_of(home, "run", "eval/bits_per_byte") == [3]
    assert rows(home, "select status from runs where name = 'run'") == [("FINISHED",)]
    assert list(unsent(home)) == []


def test_an_evaluation_done_again_is_sent_again(home):
    shipper = launch(home, "run", HERE, 0)
    folder = RunFolder(home.runs / "run")
    finish(folder)
    shipper.close(status="FINISHED")
    ended = rows(home, "select end_time from runs where name = 'run'")
    for value in (2.5, 2.25):
        evaluate(folder, value=value)
        assert replayed(home) == []

    query = "select value from metrics where key = 'eval/bits_per_byte' order by value"
    assert rows(home, query) == [(2.25,), (2.5,)]
    assert rows(home, "select end_time from runs where name = 'run'") == ended, "scores do not open a run again"


def test_the_first_run_that_finds_mlflow_away_is_the_last_to_ask(home, nowhere):
    for name in ("a", "b", "c"):
        launch(home, name, nowhere, 0, 1).close(status="FAILED")

    told = replayed(home, nowhere)
    assert {text.split(":")[0] for text in told} == {"run a"}
    assert told[-1].endswith(
        "it lacks the metrics of steps 0 to 1, which are kept in metrics.jsonl; the next tessera train, evaluate, "
        "serve, run or explore sends what is missing"
    )
    assert len(list(unsent(home))) == 3
    assert replayed(home) == []
    assert list(unsent(home)) == []


def test_a_no_to_one_run_does_not_hold_the_others(home, nowhere):
    launch(home, "a", HERE, 0).close(status="KILLED")
    evaluate(RunFolder(home.runs / "a"))
    rows_before = known_run_id(RunFolder(home.runs / "a"))
    tracking.client(tracking.tracking_uri(HERE, home=home)).delete_run(rows_before)
    launch(home, "b", nowhere, 0).close(status="KILLED")

    (told,) = replayed(home)
    assert told.startswith("run a: MLflow did not take the evaluation: it says INVALID_PARAMETER_VALUE")
    assert steps_of(home, "b") == [0]


def test_a_pipeline_asks_once(home, nowhere):
    launch(home, "run", nowhere, 0).close(status="FAILED")
    said: list[str] = []
    reporter = Reporter()
    reporter.line = said.append
    pipeline = Pipeline(load_settings("local").model_copy(update={"tracking": nowhere}), home=home, reporter=reporter)
    for _ in range(3):
        pipeline._replay()

    assert sum("did not take the end" in text for text in said) == 1
