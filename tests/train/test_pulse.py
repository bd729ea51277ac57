"""Ranks that stand still: which one holds the others up, and that it is ended."""

import contextlib
import json
import os
import signal
import socket
import time

import psutil
import pytest
from tests.train.conftest import rank_command

from tessera.train import failure
from tessera.train.pulse import Pulse, Ward


def write(folder, rank, **said):
    (folder / "pulse").mkdir(exist_ok=True)
    known = {"step": 4, "changes": 0, "waits": False, "host": "h", "pid": 10 + rank, "beat": 0}
    (folder / "pulse" / f"rank-{rank}").write_text(json.dumps({**known, **said}))


def after(folder, first, last, *, seconds=60.0):
    """What is said of ranks that are seen at 0 and at 100 seconds."""
    ward = Ward(folder, seconds=seconds)
    for now, ranks in ((0.0, first), (100.0, last)):
        for rank, said in enumerate(ranks):
            write(folder, rank, **said)
        found = ward.look(now)
    return found


@pytest.mark.parametrize(
    ("first", "last", "rank", "silent"),
    [
        ([{"beat": 1}, {"beat": 1}], [{"beat": 2, "waits": True}, {"beat": 2}], 1, False),
        ([{"beat": 1}, {"beat": 1}], [{"beat": 1}, {"beat": 2, "waits": True}], 0, True),
        ([{"beat": 1, "waits": True}] * 2, [{"beat": 2, "waits": True}, {"beat": 1, "waits": True}], 1, True),
        ([{"beat": 1}, {"beat": 1}], [{"beat": 2, "changes": 1}, {"beat": 2}], None, None),
        ([{"beat": 1}, {"beat": 1}], [{"beat": 2}, {"beat": 1, "pid": 99}], None, None),
    ],
    ids=["one computes", "one is silent", "all wait, one is silent", "one moves", "one was started anew"],
)
def test_who_holds_the_others_up(tmp_path, first, last, rank, silent):
    found = after(tmp_path, first, last)

    assert (found and (found.rank, found.silent, found.step)) == (None if rank is None else (rank, silent, 4))


def test_a_pulse_says_what_the_rank_does(tmp_path):
    pulse = Pulse()
    pulse.start(tmp_path, rank=3)
    pulse.at(7)
    with pulse.waiting():
        time.sleep(1.2)
        said = json.loads((tmp_path / "pulse" / "rank-3").read_text())
    time.sleep(1.2)
    later = json.loads((tmp_path / "pulse" / "rank-3").read_text())

    assert (said["step"], said["waits"], said["host"], said["pid"]) == (7, True, socket.gethostname(), os.getpid())
    assert (later["waits"], later["changes"]) == (False, said["changes"] + 1)
    assert later["beat"] > said["beat"]


@pytest.mark.distributed
def test_a_stopped_rank_is_named_and_ended_and_the_run_goes_on(make_run):
    """One of two ranks is stopped in mid-training; torchrun then starts both again, from the newest checkpoint."""
    from tessera.train.run import launcher_lock

    folder = make_run("a", steps=60, stall_seconds=3)
    command, environment = rank_command(folder, ranks=2, restarts=1)
    ward = Ward(folder.root, seconds=3)
    with launcher_lock(folder), folder.log.open("w") as log:
        launcher = psutil.Popen(command, env=environment, stdout=log, stderr=log)
        while not (folder.metrics.exists() and folder.metrics.read_text().count("\n") > 5):
            time.sleep(0.02)
        victim = json.loads((folder.root / "pulse" / "rank-1").read_text())["pid"]
        os.kill(victim, signal.SIGSTOP)
        stopped, stalled = time.monotonic(), None
        while stalled is None and time.monotonic() < stopped + 30:
            time.sleep(0.2)
            stalled = ward.look(time.monotonic())
        assert stalled is not None
        failure.end_stalled(folder, stalled, seconds=3)
        took = time.monotonic() - stopped
        said = failure.find(folder).said
        assert launcher.wait(120) == 0
    with contextlib.suppress(ProcessLookupError):
        os.kill(victim, signal.SIGKILL)

    assert (stalled.rank, stalled.pid, stalled.silent) == (1, victim, True)
    assert took < 10
    assert "rank 1 failed: Stalled: in step" in said
    assert "its process stood still for 3 s" in said
    assert folder.read_result().steps == 60
    assert "resumed after step" in folder.notices.read_text()


def test_a_rank_that_all_others_wait_for_is_named_once(tmp_path):
    ward = Ward(tmp_path, seconds=1000)
    named = []
    for minute in range(4):
        for rank, share in enumerate((0.6, 0.1, 0.5)):
            write(tmp_path, rank, beat=minute, time=60.0 * minute, waited_seconds=60.0 * minute * share)
        ward.look(60.0 * minute)
        named.append(ward.straggler())

    assert named == [None, (1, pytest.approx(0.5)), None, None]


def test_ranks_that_wait_alike_are_not_slow(tmp_path):
    ward = Ward(tmp_path, seconds=1000)
    for minute in range(2):
        for rank, share in enumerate((0.6, 0.5)):
            write(tmp_path, rank, beat=minute, time=60.0 * minute, waited_seconds=60.0 * minute * share)
        ward.look(60.0 * minute)
        assert ward.straggler() is None
