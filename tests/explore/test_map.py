"""The map of runs in a real store, from reading to the artifact; what is on the page is read from its own JSON."""

import socket
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from tests.explore.conftest import SETTINGS, config_of, data_of, log_run

from tessera.errors import TrackingError
from tessera.explore.settings import ExploreSettings
from tessera.explore.stage import write_map
from tessera.home import Home
from tessera.lineage import Record, TableVersion, TokenizerRef, TrainRecord
from tessera.pipeline import Pipeline
from tessera.settings import load_settings
from tessera.tables import Ledger
from tessera.tracking import TrackingSettings, open_run, prepare_store
from tessera.train.run import RunFolder
from tessera.train.ship import Shipper

EVIL = "</script><b onclick=alert(1)>&amp;"
EXPLORE = ExploreSettings()


def record(run_id: str, *, name: str, parameters: int) -> TrainRecord:
    table = TableVersion(name="docs", path="shards/docs/manifest", version=0)
    return TrainRecord(
        fingerprint="f", run=f"runs/{name}", run_id=run_id, shard_set=table, steps=20, train_tokens=1, ranks=2,
        tokenizer=TokenizerRef(path="t", sha256="t0", vocab_size=8, end_id=0), parameters=parameters,
        bits_per_byte_before=4.0, checkpoint="c", weights_sha256="w",
    )  # fmt: skip


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Home:
    """Fast and poor, middle, slow and good: the front; one that `middle` beats; and every kind that never competes."""
    home = Home(tmp_path_factory.mktemp("lab") / "home")
    fast = log_run(home, "fast", end=2.5, seconds=10, config=config_of(model={"width": 64, "layers": 4}))
    log_run(home, "middle", end=2.0, seconds=30, tags={"tessera.parameters": "777"})
    log_run(home, "beaten", end=2.1, seconds=40, tokens=10, config=config_of(ranks=1))
    slow = log_run(home, EVIL, end=1.5, seconds=300, config=config_of(steps="https://u:hunter2@h/<b>"))
    log_run(home, "failed", end=1.0, seconds=5, status="FAILED", tags={"tessera.fingerprint": "f" * 64})
    log_run(home, "running", end=None, seconds=7, status=None)
    log_run(home, "unmeasured", end=None, seconds=3)
    other = config_of()
    other["prepare"]["holdout"] = 0.5
    log_run(home, "other text", end=0.5, seconds=1, config=other)
    open_run(SETTINGS, home=home, name="scores", run_id=None).describe(params={}, tags={"tessera.kind": "score"})
    slow.describe(params={}, tags={"tessera.gate": "passed", "tessera.gate_reasons": "fine"})
    Ledger(home.ledger).append(record(fast.run_id, name="fast", parameters=555))
    Ledger(home.ledger).append(record("", name="lost", parameters=1))
    for fingerprint in ("f" * 64, "e" * 64):  # the first has a run in MLflow
        Ledger(home.ledger).append(Record(stage="train", fingerprint=fingerprint), status="failed")
    return home


@pytest.fixture(scope="module")
def result(lab):
    return write_map(lab, tracking=SETTINGS, settings=EXPLORE)


@pytest.fixture(scope="module")
def data(result):
    return data_of(result.path.read_text(encoding="utf-8"))


def named(data: dict, name: str) -> dict:
    (found,) = (run for run in data["runs"] if run["name"] == name)
    return found


def test_the_front_of_quality_against_seconds(lab, result):
    assert result.path == lab.root / "reports" / "map.html"
    assert [run.name for run in result.front] == ["fast", "middle", EVIL]
    assert [round(run.quality, 6) for run in result.front] == [2.5, 2.0, 1.5]
    assert (result.num_runs, result.num_front, result.num_texts, result.num_left_out) == (8, 3, 2, 3)


def test_the_front_in_words_fits_the_terminal(result):
    head, *lines = result.lines()

    assert len(lines) == 3
    assert all(len(line) <= 80 for line in (head, *lines))
    assert lines[0].split()[:4] == ["1", "2.500", "10.0", "fast"]
    assert "width 64" in lines[0]


def test_every_cost_has_its_own_front(data):
    (fronts,) = (text["fronts"] for text in data["texts"] if text["label"] == "A")
    names = {axis: [data["runs"][place]["name"] for place in places] for axis, places in fronts.items()}

    assert names["tokens"] == ["beaten", EVIL]  # all but `beaten` took the same tokens
    assert names["processor_seconds"] == ["fast", "beaten", "middle", EVIL]  # one rank for 40 s, two for 30 s
    assert data["texts"][0]["log"] == {"seconds": True, "tokens": True, "processor_seconds": True}


def test_a_run_shows_what_was_logged(data):
    middle = named(data, "middle")
    assert (middle["seconds"], middle["tokens"], middle["steps"], middle["rate"]) == (30, 40960, 20, 1365.3)
    assert (middle["processor_seconds"], middle["parameters"], middle["state"]) == (60, 777, "finished")
    assert named(data, "fast")["parameters"] == 555  # from this home's ledger
    assert named(data, "beaten")["parameters"] is None
    assert named(data, EVIL)["gate"] == "passed"
    assert middle["heldout"][0] == [0, 4]
    assert middle["heldout"][-1] == [30, 2]
    assert len(middle["loss"]) == 20


def test_only_settings_that_differ_are_shown(data):
    assert [setting["key"] for setting in data["settings"]] == [
        "prepare.holdout", "train.model.width", "train.ranks", "train.steps",
    ]  # fmt: skip


def test_no_run_is_left_out_in_silence(result, data):
    html = result.path.read_text(encoding="utf-8")

    states = {run["name"]: (run["state"], run["shown"]) for run in data["runs"]}
    assert states["failed"] == ("failed", True)
    assert states["running"] == ("running", False)
    assert states["unmeasured"] == ("finished", False)
    assert "never on the front, not trained to their end: <strong>1 run</strong> (failed)" in html
    assert "without a held-out measurement after a step: <strong>2 runs</strong> (running, unmeasured)" in html
    assert "of kind score, not training: <strong>1 run</strong> (scores)" in html
    assert "in this home's ledger but not in experiment lab".replace("'", "&#x27;") in html
    assert "<strong>1 run</strong> (lost)" in html
    assert "failed early; by fingerprint: <strong>1 run</strong> (eeeeeeeeeeee)" in html


def test_a_run_that_was_trained_while_mlflow_was_away_is_on_the_page(tmp_path):
    """Its ledger row has no run id for ever; the map sends the run first and knows it by its folder."""
    home = Home(tmp_path)
    prepare_store(SETTINGS, home=home)
    with closing(socket.create_server(("127.0.0.1", 0))) as closed:
        away = SETTINGS.model_copy(update={"uri": f"http://127.0.0.1:{closed.getsockname()[1]}", "flush_seconds": 0})
    folder = RunFolder(home.runs / "late")
    folder.root.mkdir(parents=True)
    folder.metrics.write_text('{"step": 1, "time": 1700000001.0, "seconds": 9.0, "heldout_bits_per_byte": 2.0}\n')
    shipper = Shipper(folder, settings=away, home=home, params=config_of(), tags={}, inputs=(), notice=len)
    shipper.start()
    assert shipper.close(status="FAILED") == ""
    Ledger(home.ledger).append(record("", name="late", parameters=555))

    result = Pipeline(load_settings("local").model_copy(update={"tracking": SETTINGS}), home=home).explore()
    (run,) = data_of(result.path.read_text(encoding="utf-8"))["runs"]
    assert (run["name"], run["state"], run["quality"], run["parameters"]) == ("late", "failed", 2.0, 555)
    assert result.num_left_out == 0


def test_older_deleted_and_foreign_runs_are_counted(tmp_path):
    home = Home(tmp_path)
    for number in range(3):
        log_run(home, f"run-{number}", end=2.0, seconds=10 + number, steps=1)
    gone = log_run(home, "gone", end=1.0, seconds=1, steps=1)
    with sqlite3.connect(home.mlflow_database) as database:
        database.execute("update runs set lifecycle_stage = 'deleted' where run_uuid = ?", (gone.run_id,))
        database.execute("update runs set start_time = rowid")
        database.execute("delete from tags where key = 'tessera.run' and value = 'run-2'")
    result = write_map(home, tracking=SETTINGS, settings=ExploreSettings(max_runs=1))
    html = result.path.read_text(encoding="utf-8")

    assert [run["name"] for run in data_of(html)["runs"]] == ["run-1"]
    assert result.num_left_out == 3
    for reason, name in (("deleted in MLflow", "gone"), ("older than the newest 1", "run-0"), ("no tag", "run-2")):
        (line,) = (line for line in html.splitlines() if line.startswith("<li>") and reason in line)
        assert f"<strong>1 run</strong> ({name})" in line


def test_untrusted_text_cannot_leave_its_place_and_passwords_are_masked(result):
    html = result.path.read_text(encoding="utf-8")

    assert "<b onclick" not in html
    assert "&lt;/script&gt;&lt;b onclick=alert(1)&gt;&amp;amp;" in html
    assert "hunter2" not in html
    assert "https://***@h/&lt;b&gt;" in html
    assert html.count("</script>") == 3  # of data, plotly and our own


def test_the_same_runs_give_the_same_bytes_and_one_run_keeps_the_page(lab, result):
    first = result.path.read_bytes()
    again = write_map(lab, tracking=SETTINGS, settings=EXPLORE)

    assert again.path.read_bytes() == first
    assert again.run_id == result.run_id
    with sqlite3.connect(lab.mlflow_database) as database:
        maps = database.execute("select run_uuid from tags where key = 'tessera.kind' and value = 'map'").fetchall()
    assert maps == [(result.run_id,)]
    (kept,) = lab.mlflow_artifacts.rglob("map.html")
    assert result.run_id in kept.parts
    assert kept.read_bytes() == first


def test_a_new_run_changes_the_page_and_its_artifact(tmp_path):
    home = Home(tmp_path)
    first = write_map(home, tracking=SETTINGS, settings=EXPLORE)
    assert (first.num_runs, first.front, first.lines()) == (0, (), [])
    assert "tessera run" in first.path.read_text(encoding="utf-8")

    log_run(home, "one", end=2.0, seconds=10, steps=1)
    second = write_map(home, tracking=SETTINGS, settings=EXPLORE)
    (kept,) = home.mlflow_artifacts.rglob("map.html")
    assert (second.num_runs, second.num_front, second.run_id) == (1, 1, first.run_id)
    assert kept.read_bytes() == second.path.read_bytes()


def test_texts_are_told_apart_by_gzip_before_settings(tmp_path):
    home = Home(tmp_path)
    other_holdout = config_of()
    other_holdout["prepare"]["holdout"] = 0.06  # another setting, which happened to hold out the same text
    for name, gzip, config in (
        ("a", 2.5, None),
        ("b", None, None),
        ("c", 2.5, other_holdout),
        ("d", 3.0, other_holdout),
    ):
        run = log_run(home, name, end=2.0, seconds=10, steps=1, config=config)
        if gzip is not None:
            scores = {"eval/gzip_bits_per_byte": gzip, "eval/bits_per_byte": 1.9}
            run.log_at(1, time=1_700_000_009.0, metrics=scores, tags={})
    tokenized = config_of()
    log_run(home, "e", end=2.0, seconds=10, steps=1, config=tokenized, tags={"tessera.tokenizer_sha256": "t1"})

    def texts(quality: str) -> list[list[str]]:
        result = write_map(home, tracking=SETTINGS, settings=ExploreSettings(quality=quality))
        data = data_of(result.path.read_text(encoding="utf-8"))
        return [sorted(data["runs"][place]["name"] for place in text["runs"]) for text in data["texts"]]

    assert sorted(texts("heldout_bits_per_byte")) == [["a", "b", "c"], ["d"], ["e"]]
    assert sorted(texts("eval/bits_per_byte")) == [["a", "b", "c", "e"], ["d"]]  # of the whole split


def test_numbers_that_are_none_are_not_drawn(tmp_path):
    home = Home(tmp_path)
    log_run(home, "infinite", end=float("inf"), seconds=10, steps=1)
    log_run(home, "nan", end=float("nan"), seconds=10, steps=1)
    result = write_map(home, tracking=SETTINGS, settings=EXPLORE)

    assert [run["quality"] for run in data_of(result.path.read_text(encoding="utf-8"))["runs"]] == [None, None]
    assert result.front == ()


def test_without_mlflow_the_error_says_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_SECRET", "hunter2")
    tracking = TrackingSettings(uri="http://user:${env:MLFLOW_SECRET}@127.0.0.1:9")
    with pytest.raises(TrackingError, match=r"127\.0\.0\.1:9 cannot be used") as raised:
        write_map(Home(tmp_path), tracking=tracking, settings=EXPLORE)

    assert "hunter2" not in str(raised.value)
    assert not Path(tmp_path / "reports").exists()
