"""Checkpoints that are written beside the steps: they hold their moment, end before the run does, and fail loudly."""

import json
import threading

import pytest
import torch
from tests.train.test_methods import weights_after

from tessera.errors import Superseded
from tessera.model.build import read_weights
from tessera.train import checkpoint
from tessera.train.loop import train
from tessera.train.saver import Saver


def test_steps_go_on_while_a_checkpoint_is_written_and_it_holds_its_moment(make_job, monkeypatch):
    """The writing is held back until the run is two steps further; the weights are still those of then."""
    job = make_job("a")
    original, wanted, lag = checkpoint.save, {}, []
    further = threading.Event()

    def slow(folder, **given):
        if given["state"]["num_steps"] == 2:
            assert further.wait(60)
            lag.append(job.progress.next_step)
        return original(folder, **given)

    log = job.log

    def watched(line):
        log(line)
        if line["step"] == 2:
            wanted.update({name: value.clone() for name, value in job.model.state_dict().items()})
        if line["step"] == 4:
            further.set()

    monkeypatch.setattr(checkpoint, "save", slow)
    job.log = watched
    job.spec.settings.checkpoint.__dict__["keep"] = 9
    train(job)

    assert lag[0] >= 4
    kept = read_weights(checkpoint.folder_of(job.folder.checkpoints, step=2))
    assert all(torch.equal(wanted[name], value) for name, value in kept.items())


def test_a_run_that_is_overtaken_hears_of_it_from_the_thread(make_job, monkeypatch):
    job = make_job("a", steps=500)
    log = job.log

    def overtaken(line):
        log(line)
        if line["step"] == 3:
            job.saver.wait()
            job.folder.attempt.write_text("99\n")

    job.log = overtaken
    with pytest.raises(Superseded):
        train(job)
    assert job.progress.next_step < 500
    assert [path.name for path in job.folder.checkpoints.glob("*/record.json")] == ["record.json"], "that of step 2"


def test_what_fails_is_raised_once_by_the_next_call():
    saver = Saver()

    def fail():
        raise RuntimeError("the disk is full")

    saver.start(fail)
    with pytest.raises(RuntimeError, match="the disk is full"):
        saver.wait()
    saver.check()


def test_the_best_checkpoints_are_kept_besides_the_newest(make_job, tmp_path):
    for step, bits, at in ((2, 3.0, 2), (4, 1.0, 4), (6, 2.0, 6), (8, 0.5, 6), (10, 4.0, 10), (12, 5.0, 12)):
        folder = tmp_path / f"step-{step:08}"
        folder.mkdir()
        progress = {"next_step": step, "bits_per_byte": bits, "bits_per_byte_step": at}
        (folder / "state.json").write_text(json.dumps({"progress": progress}))
        (folder / "record.json").write_text("{}")
    checkpoint.prune(tmp_path, keep=1, keep_best=2)

    assert [path.name[-2:] for path in sorted(tmp_path.iterdir())] == ["04", "06", "12"], "8 was not measured at 8"


def test_a_run_keeps_its_best(make_job):
    settings = {"steps": 12, "checkpoint": {"every_steps": 2, "every_seconds": None, "keep": 1, "keep_best": 1}}
    job = make_job("a", heldout={"sequences": 20, "every_steps": 2}, **settings)
    train(job)
    states = [json.loads(path.read_text()) for path in sorted(job.folder.checkpoints.glob("*/state.json"))]

    assert [state["num_steps"] for state in states] == [10, 12], "the loss falls, so the last but one is the next best"
    assert weights_after(make_job, "plain", steps=12) == job.folder.read_result().weights_sha256
