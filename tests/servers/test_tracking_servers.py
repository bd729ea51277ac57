"""The same line with an MLflow server over PostgreSQL, and with PostgreSQL alone, by configuration.

What is in the stores is read from PostgreSQL, not through MLflow.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from tests.servers.conftest import PASSWORD, PASSWORD_NAME, MlflowServer, Postgres, Proxy, free_port, wait_for
from tests.test_line import SMALL, TESSERA, Run, private_table, run_line, settings, tessera

from tessera import registry, tables, tracking
from tessera.errors import ModelError, TrackingError
from tessera.home import Home
from tessera.lineage import EvaluateRecord, PrepareRecord, ServeRecord, TrainRecord, sha256_file
from tessera.serve import stage
from tessera.serve.engine import Engine
from tessera.serve.register import register
from tessera.serve.settings import ServeSettings
from tessera.tracking import TrackingSettings
from tessera.train import replay, ship
from tessera.train.run import RunFolder

pytestmark = [pytest.mark.spark, pytest.mark.distributed]

ENV = {PASSWORD_NAME: PASSWORD}
LINE_SECONDS = 280


@pytest.fixture(scope="module")
def line(mlflow_server: MlflowServer, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, list[str]]:
    """One run of the line; the server's address carries a user and a password, which this server does not ask for."""
    folder = tmp_path_factory.mktemp("line")
    private_table(folder / "memos")
    uri = f"http://me:${{env:{PASSWORD_NAME}}}@127.0.0.1:{mlflow_server.port}"
    source = f"prepare.sources=[{{path: {folder / 'memos'}, id: number, text: body}}]"
    assignments = [source, "spark.partitions=3", f"tracking.uri={uri}", "tracking.experiment=line"]
    return run_line(*assignments, home=Home(folder / "home"), env=ENV), assignments


@pytest.fixture(autouse=True)
def password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PASSWORD_NAME, PASSWORD)


def test_the_line_with_postgresql_and_an_mlflow_server(line, mlflow_server: MlflowServer):
    run, _ = line
    record = run.record

    assert (record["model"], record["version"], record["aliases"]) == ("private", 1, ["challenger", "champion"])
    steps = "select step from metrics where run_uuid = %s and key = 'loss' order by step"
    assert [step for (step,) in mlflow_server.rows(steps, record["run_id"])] == list(range(1, 13))
    assert mlflow_server.rows("select status from runs where run_uuid = %s", record["run_id"]) == [("FINISHED",)]
    aliases = "select alias, version from registered_model_aliases where name = 'private' order by alias"
    assert mlflow_server.rows(aliases) == [("challenger", 1), ("champion", 1)]
    shipped = [sha256_file(path) for path in mlflow_server.artifacts.rglob("model.safetensors")]
    assert shipped == [record["weights_sha256"]], "artifacts go through the server"
    assert not run.home.mlflow_database.exists()
    assert not run.home.mlflow_artifacts.exists()
    fetched = [sha256_file(path) for path in run.home.models.rglob("model.safetensors")]
    assert fetched == [record["weights_sha256"]], "the answer comes from what the registry gave"


def test_again_everything_is_found_and_the_address_has_no_password(line, mlflow_server: MlflowServer):
    run, assignments = line
    again = run_line(*assignments, home=run.home, env=ENV)

    assert all(one["reused"] for one in again.record["stages"])
    assert (again.record["version"], again.record["run_id"]) == (1, run.record["run_id"])
    assert f"http://127.0.0.1:{mlflow_server.port}" in again.stderr
    assert mlflow_server.rows("select count(*) from runs where name = %s", Path(run.record["run"]).name) == [(1,)]


def test_the_password_is_nowhere(line, mlflow_server: MlflowServer):
    run, assignments = line
    plan = tessera("run", "--dry-run", *settings(*SMALL, *assignments), home=run.home, env=ENV)
    history = tessera("history", "--json", home=run.home)
    names = mlflow_server.rows("select table_name from information_schema.tables where table_schema = 'public'")
    stored = [row for (name,) in names for (row,) in mlflow_server.rows(f'select t::text from "{name}" t')]
    files = [path for root in (run.home.root, mlflow_server.artifacts) for path in root.rglob("*") if path.is_file()]

    assert "${env:" + PASSWORD_NAME + "}" in plan.stdout, "the configuration names it"
    assert any(PASSWORD_NAME in value for value in stored), "so do the parameters of the run"
    assert len(files) > 100
    for needle in (PASSWORD, quote(PASSWORD, safe=""), "heliotrope"):
        for text in (run.stdout, run.stderr, plan.stdout, plan.stderr, history.stdout, *stored):
            assert needle not in text
        for path in files:
            assert needle.encode() not in path.read_bytes(), path


def records(run: Run) -> tuple[TrainRecord, EvaluateRecord, PrepareRecord]:
    by_stage = {row["stage"]: row["record"] for row in tables.Ledger(run.home.ledger).rows() if row["status"] == "done"}
    return (
        TrainRecord.from_json(by_stage["train"]),
        EvaluateRecord.from_json(by_stage["evaluate"]),
        PrepareRecord.from_json(by_stage["prepare"]),
    )


def test_postgresql_alone_keeps_runs_and_models_and_the_home_their_files(line, postgres: Postgres, tmp_path):
    run, _ = line
    home = copy_of(run.home, tmp_path)
    train, evaluate, prepare = records(run)
    configured = TrackingSettings(uri=postgres.make("direct"))
    uri = tracking.tracking_uri(configured, home=home)
    made = tracking.open_run(configured, home=home, name="direct", run_id=None)
    made.log_steps([{"step": step, "loss": 1 / step, "time": 1e9 + step} for step in range(1, 600)])
    made.log_steps([{"step": step, "loss": 1 / step, "time": 1e9 + step} for step in range(1, 600)])
    train = train.model_copy(update={"run_id": made.run_id})

    def do_register() -> ServeRecord:
        return register(
            home, train=train, evaluate=evaluate, prepare=prepare, settings=ServeSettings(model_name="team.direct"),
            tracking_uri=uri,
        )  # fmt: skip

    record = do_register()
    assert do_register().version == record.version == 1
    assert postgres.query("select count(*) from metrics where key = 'loss'", database="direct") == [(599,)]
    assert made.newest_step() == 599
    folder = stage.checkpoint_folder(record, home=home, tracking_uri=uri)
    assert folder.is_relative_to(home.mlflow_artifacts)
    assert stage.verify(record, home=home, tracking_uri=uri)
    assert Engine(folder, weights_sha256=record.weights_sha256).complete("Return", max_tokens=4).completion_tokens
    one_by_one = registry._search_one_by_one(
        tracking.client(uri), name="team.direct", tags={stage.WEIGHTS_TAG: record.weights_sha256}
    )
    assert one_by_one.version == 1, "as models are found in Unity Catalog"


def test_models_may_be_registered_elsewhere_than_runs_are_recorded(line, postgres: Postgres, tmp_path):
    run, _ = line
    home = copy_of(run.home, tmp_path)
    train, evaluate, prepare = records(run)
    configured = TrackingSettings(uri=postgres.make("runs_here"), registry_uri=postgres.make("models_there"))
    uri, there = tracking.tracking_uri(configured, home=home), tracking.registry_uri(configured, home=home)
    made = tracking.open_run(configured, home=home, name="apart", run_id=None)
    record = register(
        home, train=train.model_copy(update={"run_id": made.run_id}), evaluate=evaluate, prepare=prepare,
        settings=ServeSettings(model_name="main.models.docs"), tracking_uri=uri, registry_uri=there,
    )  # fmt: skip

    versions = "select name, version, run_id from model_versions"
    assert postgres.query(versions, database="models_there") == [("main.models.docs", 1, made.run_id)]
    assert postgres.query(versions, database="runs_here") == []
    assert stage.verify(record, home=home, tracking_uri=uri, registry_uri=there)
    assert not stage.verify(record, home=home, tracking_uri=uri)
    folder = stage.checkpoint_folder(record, home=home, tracking_uri=uri, registry_uri=there)
    assert sha256_file(folder / "model.safetensors") == record.weights_sha256


@pytest.mark.slow
def test_the_whole_line_with_postgresql_alone(postgres: Postgres, tmp_path):
    private_table(tmp_path / "memos")
    source = f"prepare.sources=[{{path: {tmp_path / 'memos'}, id: number, text: body}}]"
    assignments = [source, "spark.partitions=3", f"tracking.uri={postgres.make('whole')}"]
    run = run_line(*assignments, home=Home(tmp_path / "home"), env=ENV)
    again = run_line(*assignments, home=run.home, env=ENV)

    assert run.record["version"] == again.record["version"] == 1
    assert all(one["reused"] for one in again.record["stages"])
    assert postgres.query("select count(*) from metrics where key = 'loss'", database="whole") == [(12,)]
    assert not run.home.mlflow_database.exists()
    assert len(list(run.home.mlflow_artifacts.rglob("model.safetensors"))) == 1
    for text in (run.stdout, run.stderr, again.stderr):
        assert "heliotrope" not in text


def copy_of(home: Home, folder: Path) -> Home:
    shutil.copytree(home.root, folder / "home", ignore=shutil.ignore_patterns("cache"))
    return Home(folder / "home")


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [8.0, 60.0])
def test_training_goes_on_while_the_server_is_stopped(seconds, line, mlflow_server: MlflowServer, tmp_path):
    """The command itself: the server is stopped for `seconds` in mid-run, then killed and started again."""
    run, assignments = line
    home = copy_of(run.home, tmp_path)
    steps = 2000 if seconds < 10 else 12000
    more = [f"train.steps={steps}", "train.threads=1", "tracking.flush_seconds=120"]
    log = tmp_path / "stderr"
    with log.open("w") as stderr:
        training = subprocess.Popen(
            [str(TESSERA), "train", "--json", *settings(*SMALL, *assignments, *more)],
            env={**os.environ, **ENV, "TESSERA_HOME": str(home.root)}, stdout=subprocess.PIPE, stderr=stderr, text=True,
        )  # fmt: skip
    try:
        folder = the_other_run(home, than=run.record["run"])
        wait_for(lambda: last_step(folder) > 20, seconds=120, what="no step")
        before = last_step(folder)
        mlflow_server.signal(signal.SIGSTOP)
        time.sleep(seconds)
        during = last_step(folder)
        mlflow_server.kill()
        mlflow_server.start(wait=False)
        at_restart = last_step(folder)
        output, _ = training.communicate(timeout=LINE_SECONDS)
    finally:
        training.kill()
        if not mlflow_server.answers():
            mlflow_server.wait()

    assert training.returncode == 0, log.read_text()
    assert before < during < steps, "steps went on while the server hung, and the run outlasted it"
    assert at_restart < steps
    record = json.loads(output.splitlines()[-1])
    check_once(mlflow_server, run_id=record["run_id"], steps=steps)
    told = log.read_text()
    assert "MLflow gives trouble: " in told
    assert "MLflow answers again; it has every metric up to step" in told


@pytest.mark.parametrize("back", ["during", pytest.param("after", marks=pytest.mark.slow)])
def test_a_server_that_is_away_from_the_end_of_training_to_the_evaluation_gets_all_of_both(
    back, line, proxy: Proxy, mlflow_server: MlflowServer, tmp_path
):
    """The commands themselves. The server is back while `evaluate` measures, or before a later command."""
    run, assignments = line
    home = copy_of(run.home, tmp_path)
    steps, seed = 600, {"during": 21, "after": 22}[back]
    more = [f"tracking.uri={proxy.uri}", "tracking.flush_seconds=1", f"train.steps={steps}", f"train.seed={seed}"]
    arguments = settings(*SMALL, *assignments, "train.threads=1", *more)
    with started(home, "train", *arguments) as training:
        folder = the_other_run(home, than=run.record["run"])
        wait_for(lambda: ship.read_cursor(folder).get("step", 0) > 0, seconds=120, what="no step was sent")
        proxy.stop()
        sent = ship.read_cursor(folder)["step"]
        said, _ = training.communicate(timeout=LINE_SECONDS)
    assert training.returncode == 0, said
    assert f"it lacks the metrics of steps {sent + 1} to {steps}" in said

    with started(home, "evaluate", *arguments) as evaluating:
        assert evaluating.stdout is not None
        before = next(text for text in evaluating.stdout if "did not take the end of this run" in text)
        if back == "during":
            proxy.start()
        said, _ = evaluating.communicate(timeout=LINE_SECONDS)
    assert evaluating.returncode == 0, said
    assert folder.root.name in before
    if back == "after":
        proxy.start()
        explored = tessera("explore", *arguments, home=home)
        assert explored.returncode == 0, explored.stderr
        assert folder.root.name in (home.reports / "map.html").read_text(encoding="utf-8")

    run_id = ship.known_run_id(folder)
    check_once(mlflow_server, run_id=run_id, steps=steps)
    query = "select key, step from metrics where run_uuid = %s and key like 'eval/%%' order by key"
    told = mlflow_server.rows(query, run_id)
    scores = ("", "bigram_", "gzip_", "trigram_", "unigram_")
    of_text = [row for row in told if row[0].endswith("bits_per_byte") and row[0].count("/") == 1]
    assert of_text == sorted((f"eval/{name}bits_per_byte", steps) for name in scores)
    assert len(told) == len(set(told)) > len(of_text), "scores of tasks came too, each once"
    gate = "select value from tags where run_uuid = %s and key = 'tessera.gate'"
    assert mlflow_server.rows(gate, run_id) == [("passed",)]
    ((ended,),) = mlflow_server.rows("select end_time from runs where run_uuid = %s", run_id)
    assert abs(ended / 1000 - folder.record.stat().st_mtime) < 5, "it ended when training did"
    assert list(replay.unsent(home)) == []


@contextmanager
def started(home: Home, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A command that runs while the block looks on; what it says is in stdout."""
    environment = {**os.environ, **ENV, "TESSERA_HOME": str(home.root), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [str(TESSERA), *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def check_once(server: MlflowServer, *, run_id: str, steps: int) -> None:
    for key, first in (("loss", 1), ("tokens_per_second", 1), ("step", 0)):  # step 0 is the untrained model's score
        found = server.rows("select step from metrics where run_uuid = %s and key = %s order by step", run_id, key)
        assert [step for (step,) in found] == list(range(first, steps + 1)), key
    twice = "select key, step from metrics where run_uuid = %s group by key, step having count(*) > 1"
    assert server.rows(twice, run_id) == []
    assert server.rows("select status from runs where run_uuid = %s", run_id) == [("FINISHED",)]


def the_other_run(home: Home, *, than: str) -> RunFolder:
    known = home.resolve(than)

    def others() -> list[Path]:
        return [path.parent for path in home.runs.glob("*/run.json") if path.parent != known]

    wait_for(others, seconds=120, what="no run folder")
    return RunFolder(others()[0])


def last_step(folder: RunFolder) -> int:
    try:
        lines = folder.metrics.read_bytes().splitlines()
        return int(json.loads(lines[-2])["step"]) if len(lines) > 1 else 0
    except OSError:
        return 0


@pytest.mark.slow
def test_a_model_that_was_trained_while_mlflow_was_away_is_registered_later(line, mlflow_server, tmp_path):
    run, assignments = line
    home = copy_of(run.home, tmp_path)
    away = [*assignments, f"tracking.uri=http://127.0.0.1:{free_port()}", "tracking.flush_seconds=1", "train.seed=5"]
    done = tessera("train", "--json", *settings(*SMALL, *away), home=home)
    assert done.returncode == 0, done.stderr
    assert "MLflow gives trouble: the connection was refused; training goes on" in done.stderr
    assert "it lacks the metrics of steps 0 to 12, which are kept in metrics.jsonl" in done.stderr
    train = TrainRecord.from_json(done.stdout.splitlines()[-1])
    assert train.run_id == ""

    configured = TrackingSettings(uri=mlflow_server.uri, experiment="line")
    uri = tracking.tracking_uri(configured, home=home)
    _, evaluate, prepare = records(run)
    later: dict[str, Any] = {
        "train": train, "evaluate": evaluate.model_copy(update={"weights_sha256": train.weights_sha256}),
        "prepare": prepare, "settings": ServeSettings(model_name="later"), "tracking_uri": uri,
    }  # fmt: skip
    with pytest.raises(ModelError, match="MLflow has no run"):
        register(home, **later)
    told: list[str] = []
    replay.replay(home, settings=configured, notice=told.append)
    record = register(home, **later)

    assert told == []
    assert record.run_id == ship.known_run_id(RunFolder(home.resolve(train.run)))
    check_once(mlflow_server, run_id=record.run_id, steps=12)


def test_artifacts_that_changed_on_the_server_are_refused(line, mlflow_server: MlflowServer, tmp_path):
    run, _ = line
    home = copy_of(run.home, tmp_path)
    record = ServeRecord.model_validate(run.record["stages"][-1])
    (weights,) = [
        path
        for path in mlflow_server.artifacts.rglob("model.safetensors")
        if sha256_file(path) == record.weights_sha256
    ]
    kept = weights.read_bytes()
    weights.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    try:
        folder = stage.checkpoint_folder(record, home=home, tracking_uri=mlflow_server.uri)
        with pytest.raises(ModelError, match=record.weights_sha256[:12]):
            Engine(folder, weights_sha256=record.weights_sha256)
    finally:
        weights.write_bytes(kept)


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A server that takes connections and says nothing."""
    with closing(socket.create_server(("127.0.0.1", 0), backlog=16)) as listener:
        yield listener.getsockname()[1]


def test_serve_says_in_one_line_that_mlflow_cannot_be_reached(line, tmp_path):
    run, assignments = line
    uri = f"http://me:${{env:{PASSWORD_NAME}}}@127.0.0.1:{free_port()}"
    began = time.monotonic()
    done = tessera("serve", *settings(*SMALL, *assignments, f"tracking.uri={uri}"), home=run.home, env=ENV)

    assert (done.returncode, done.stdout) == (1, "")
    said = done.stderr.strip().splitlines()
    assert said == [
        f"tessera: MLflow at {uri.replace('me:${env:' + PASSWORD_NAME + '}@', '')} cannot be used: the connection was "
        "refused; start it, or name another: tracking.uri"
    ]
    assert time.monotonic() - began < 20, "of which mlflow's import takes five to ten"


def test_what_keeps_a_store_away_is_said_within_seconds(postgres: Postgres, silent_port, tmp_path, monkeypatch):
    wrong = quote("wrong", safe="")
    cases = {
        f"http://127.0.0.1:{silent_port}": "it does not answer in time",
        f"http://127.0.0.1:{free_port()}": "the connection was refused",
        "http://nowhere.invalid:5000": "the host name is unknown",
        postgres.uri(password=wrong): "it refuses user or password",
        tracking._resolved(postgres.uri("absent")): "there is no such database",
        f"postgresql+pg8000://me:x@127.0.0.1:{free_port()}/x": "the connection was refused",
        f"postgresql+pg8000://me:x@127.0.0.1:{silent_port}/x": "it does not answer in time",
    }
    monkeypatch.setattr(tracking, "DATABASE_SECONDS", 3.0)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
    for uri, reason in cases.items():
        began = time.monotonic()
        with pytest.raises(TrackingError, match=reason) as caught:
            registry.get_version(uri, model="models:/private/1")
        assert time.monotonic() - began < 12, uri
        assert "wrong" not in str(caught.value)
        assert ":x@" not in str(caught.value)


@pytest.mark.parametrize("asked", ["models:/absent/1", "models:/private/99", "models:/private@nobody"])
def test_what_the_server_does_not_have_is_no_trouble_but_an_answer(asked, line, mlflow_server: MlflowServer):
    with pytest.raises(
        ModelError, match=r"there is no registered model absent|private has versions 1 to 1 and aliases"
    ):
        registry.get_version(mlflow_server.uri, model=asked)


@pytest.mark.parametrize("name", ["a/b", "..", "a#b", "a..b"])
def test_names_that_would_change_an_address_reach_no_server(name, silent_port):
    began = time.monotonic()
    with pytest.raises(ModelError):
        registry.get_version(f"http://127.0.0.1:{silent_port}", model=f"models:/{name}/1")
    assert time.monotonic() - began < 1


def test_postgresql_that_restarts_is_found_again(postgres: Postgres, tmp_path):
    """Sessions are cut, as by a restart: a call fails at most once for each of them, and the shipper calls again.

    Whether a cut connection ends or is reset is the kernel's choice, and a reset SQLAlchemy takes for no disconnect: it
    then drops that one connection, and the next call may meet another that was cut.
    """
    configured = TrackingSettings(uri=postgres.make("restarted"))
    run = tracking.open_run(configured, home=Home(tmp_path), name="r", run_id=None)
    sessions = "from pg_stat_activity where datname = 'restarted'"
    cut = len(postgres.query(f"select pg_terminate_backend(pid) {sessions}"))

    from mlflow.exceptions import MlflowException

    lines = [{"step": 1, "loss": 1.0, "time": 1e9}]
    for _ in range(cut):
        with suppress(MlflowException):
            run.log_steps(lines)
    run.log_steps(lines)
    assert run.newest_step() == 1
