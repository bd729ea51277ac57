"""Ranks as processes: what survives a kill, who dies with whom, and what they leave behind."""

import fcntl
import json
import signal
import subprocess
import sys
import time

import psutil
import pytest
from tests.train.conftest import WORKER, metric_lines, rank_command, run_ranks

from tessera.errors import ConfigError
from tessera.train import failure, surroundings, worker
from tessera.train.loop import train
from tessera.train.metrics import Tail
from tessera.train.run import RunFolder
from tessera.train.settings import TrainSettings

distributed = pytest.mark.distributed


@distributed
def test_two_ranks_killed_anywhere_end_as_undisturbed_and_read_what_one_rank_reads(make_run, make_job):
    whole = make_run("whole")
    run_ranks(whole, ranks=2)
    killed = make_run("killed")
    run_ranks(killed, ranks=2, fail="checkpoint.before_record:kill:2")  # within the save after step 4

    assert killed.read_result() is None
    assert {path.name: (path / "record.json").exists() for path in killed.checkpoints.iterdir()} == {
        "step-00000002": True, "step-00000004": False
    }  # fmt: skip
    assert "rank 0 was killed by signal 9" in failure.find(killed).said
    make_run("killed")  # the next attempt
    run_ranks(killed, ranks=2, fail="train.after_step:raise:99")

    assert killed.read_result().weights_sha256 == whole.read_result().weights_sha256
    assert metric_lines(killed) == metric_lines(whole)
    assert "checkpoint step-00000004 has no record.json" in killed.notices.read_text()
    assert "docstring" not in whole.log.read_text()
    assert whole.read_result().ranks == 2

    alone = make_job("alone")
    train(alone)
    for one, two in zip(metric_lines(alone.folder), metric_lines(whole), strict=True):
        assert one == pytest.approx(two, abs=1e-4, rel=1e-4)


LAUNCHER = """
import subprocess, sys
from pathlib import Path
from tessera.train.run import RunFolder, launcher_lock
with launcher_lock(RunFolder(Path(sys.argv[1]))):
    subprocess.run(sys.argv[2:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
"""


def processes_of(folder):
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if str(folder.root) in (process.info["cmdline"] or []) and process.status() != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


@distributed
@pytest.mark.parametrize("moment", ["importing", "training"])
def test_two_seconds_after_the_launcher_was_killed_no_rank_is_alive(make_run, moment):
    folder = make_run("a", steps=100_000, checkpoint={"every_steps": None, "every_seconds": None})
    command, environment = rank_command(folder, ranks=2)
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER, str(folder.root), *command], env=environment)
    while True:  # torchrun and both ranks name the module
        ranks = [one for one in processes_of(folder) if WORKER in one.cmdline() and "-u" in one.cmdline()]
        training = folder.metrics.exists() and folder.metrics.read_text().count("\n") > 3
        if len(ranks) == 2 and (moment == "importing" or training):
            break
        assert launcher.poll() is None
        time.sleep(0.05)
    launcher.send_signal(signal.SIGKILL)
    launcher.wait()
    time.sleep(2)

    assert processes_of(folder) == []


WATCHED = """
import sys, time
from pathlib import Path
from tessera.train.worker import watch_launcher
watch_launcher(Path(sys.argv[1]), attempt=int(sys.argv[2]))
print("watched", flush=True)
time.sleep(60)
"""


def watched(folder, *, attempt):
    """A process that only watches; it has looked once when this returns, or is gone."""
    command = [sys.executable, "-c", WATCHED, str(folder), str(attempt)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    return process, process.stdout.readline().strip()


def test_a_rank_ends_without_a_launcher_and_under_another_one(tmp_path):
    (tmp_path / "run.json").write_text('{"settings": {"placement": "local"}}')
    (tmp_path / "attempt").write_text("7\n")
    with (tmp_path / "launcher.lock").open("a") as lock:
        process, _ = watched(tmp_path, attempt=7)
        assert process.wait(5) == worker.LOST  # nobody held the lock

        fcntl.flock(lock, fcntl.LOCK_EX)
        process, word = watched(tmp_path, attempt=6)
        assert (process.wait(5), word) == (worker.LOST, "")  # the lock is held for attempt 7

        process, word = watched(tmp_path, attempt=7)
        time.sleep(2 * worker.POLL_SECONDS)
        assert (process.poll(), word) == (None, "watched")
        (tmp_path / "attempt").write_text("8\n")
        assert process.wait(2) == worker.LOST

        process, word = watched(tmp_path, attempt=8)
        assert word == "watched"
    assert process.wait(2) == worker.LOST  # the lock was released


def test_a_rank_on_a_cluster_ends_when_the_heartbeat_stops_and_under_another_attempt(tmp_path):
    (tmp_path / "run.json").write_text('{"settings": {"placement": "cluster", "beat_seconds": 1.5}}')
    (tmp_path / "attempt").write_text("1\n")
    folder, settings = RunFolder(tmp_path), TrainSettings(placement="cluster", beat_seconds=1.5)
    with surroundings.heartbeat(folder, settings=settings):
        process, word = watched(tmp_path, attempt=1)
        time.sleep(3)
        assert (process.poll(), word) == (None, "watched")
    assert process.wait(3) == worker.LOST

    with surroundings.heartbeat(folder, settings=settings):
        process, _ = watched(tmp_path, attempt=1)
        (tmp_path / "attempt").write_text("2\n")
        assert process.wait(2) == worker.LOST


@distributed
def test_torchrun_starts_killed_ranks_again_and_the_weights_are_the_same(make_run, tmp_path):
    whole = make_run("whole")
    run_ranks(whole, ranks=2)
    killed = make_run("killed")
    run_ranks(killed, ranks=2, restarts=1, fail=f"train.after_step:kill:5:{tmp_path / 'once'}")

    assert killed.read_starts() == [(1, 0), (1, 1)]
    assert killed.read_result().weights_sha256 == whole.read_result().weights_sha256
    assert metric_lines(killed) == metric_lines(whole)
    said = failure.find(killed, start=(1, 0)).said  # the second where torchrun saw the survivor's end first
    assert "was killed by signal 9" in said or "ended and left no word" in said


@distributed
def test_ranks_that_come_no_further_are_given_up_before_all_restarts_are_used(make_run):
    folder = make_run("a", checkpoint={"every_steps": None, "every_seconds": None})
    run_ranks(folder, ranks=1, restarts=9, fail="train.after_step:raise:3")
    failed = failure.find(folder)

    assert failed.verdict
    assert "the ranks were started 3 times and came no further than step 3 (rank 0: InjectedFault" in failed.said
    assert [start["step"] for start in Tail(folder.starts).read()] == [0, 3, 3, 3, 3]


@distributed
def test_a_verdict_of_our_own_is_not_tried_again(make_run):
    folder = make_run("a", optimizer={"embedding_lr": 1e30}, methods={"muon": {"lr": 1e30}})
    run_ranks(folder, ranks=2, restarts=2)
    found = failure.find(folder)

    assert folder.read_starts() == [(1, 0)]
    assert found.verdict
    assert "the loss is" in found.said


def raised(error):
    try:
        raise error
    except BaseException as caught:
        return caught


SECRET = "the patient's name"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (KeyError(SECRET), ""),
        (ValueError(SECRET), ""),
        (UnicodeDecodeError("utf-8", SECRET.encode(), 0, 1, SECRET), ""),
        (ConfigError("train.ranks is 3, wanted 2"), "train.ranks is 3, wanted 2"),
        (FileNotFoundError(2, "No such file", "shards.arrow"), "No such file shards.arrow"),
        (MemoryError(), "out of memory; give a smaller train.micro_batch"),
    ],
)
def test_an_error_report_names_type_and_line_and_holds_no_data(tmp_path, monkeypatch, error, message):
    monkeypatch.setenv("RANK", "1")
    worker.report(raised(error), folder=tmp_path, attempt=3)
    text = (tmp_path / "errors/rank-1.json").read_text()
    entry = json.loads(text)

    assert SECRET not in text
    assert (entry["type"], entry["message"], entry["attempt"]) == (type(error).__name__, message, 3)
    assert entry["trace"][-1].startswith("tests/train/test_worker.py:")
    assert entry["verdict"] == isinstance(error, ConfigError)
    assert entry["exit_status"] == (2 if isinstance(error, ConfigError) else 1)
