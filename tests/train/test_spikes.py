"""Loss spikes: batches that are far worse than the ones before leave no trace in the weights, and are counted."""

import pytest
from tests.train.conftest import metric_lines

from tessera import failpoints
from tessera.errors import TrainingFailed
from tessera.failpoints import InjectedFault
from tessera.train import job as jobs
from tessera.train.loop import train
from tessera.train.run import RunFolder
from tessera.train.settings import SpikeSettings
from tessera.train.spikes import is_spike

SETTINGS = {"steps": 14, "spikes": {"window": 4, "deviations": 6, "least": 0.2, "patience": 3}}


@pytest.fixture
def drawn(monkeypatch):
    """The batches that were taken from the order, as they are."""
    numbers: list[int] = []
    original = jobs.batch_at

    def noted(*args, step, **kwargs):
        numbers.append(step)
        return original(*args, step=step, **kwargs)

    monkeypatch.setattr(jobs, "batch_at", noted)
    return numbers


def spoil(job, *, batches):
    """Makes the loss of some batches a hundredfold, and their gradients with it."""
    original = job.nats
    job.nats = lambda part: original(part) * (100 if job.progress.next_batch in batches else 1)
    return job


def notices(folder: RunFolder) -> str:
    return folder.notices.read_text()


def test_a_bad_batch_is_passed_over_and_the_next_one_taken(make_job, drawn):
    train(spoil(make_job("a", **SETTINGS), batches={6}))
    folder = make_job("a", **SETTINGS).folder

    assert drawn == list(range(15))
    assert [line["step"] for line in metric_lines(folder)] == list(range(15))
    assert folder.read_result().skipped == (6,)
    assert "step 7: the loss of batch 7 is" in notices(folder)


def test_a_passed_over_batch_leaves_no_trace(make_job, monkeypatch):
    """The weights are those of a run in whose order the batch never came."""
    train(spoil(make_job("skipped", **SETTINGS), batches={6}))
    original = jobs.batch_at
    monkeypatch.setattr(jobs, "batch_at", lambda *args, step, **more: original(*args, step=step + (step > 5), **more))
    monkeypatch.setattr(jobs, "SEED_STRIDE", 0)
    train(make_job("without", **SETTINGS))

    skipped, without = (make_job(name, **SETTINGS).folder.read_result() for name in ("skipped", "without"))
    assert skipped.weights_sha256 == without.weights_sha256


def test_a_killed_run_passes_over_the_same(make_job, monkeypatch):
    train(spoil(make_job("whole", **SETTINGS), batches={5, 9}))
    for stop in (8, 5):
        failpoints._passed.clear()
        monkeypatch.setenv("TESSERA_FAIL", f"train.after_step:raise:{stop}")
        with pytest.raises(InjectedFault):
            train(spoil(make_job("stopped", **SETTINGS), batches={5, 9}))
        monkeypatch.delenv("TESSERA_FAIL")
    train(spoil(make_job("stopped", **SETTINGS), batches={5, 9}))

    whole, stopped = (make_job(name, **SETTINGS).folder.read_result() for name in ("whole", "stopped"))
    assert stopped.skipped == whole.skipped == (5, 9)
    assert stopped.weights_sha256 == whole.weights_sha256


def test_spikes_in_a_row_take_the_run_back_to_its_checkpoint(make_job, drawn):
    """Checkpoints come every second step; the batch between the newest and the spikes is not taken again either."""
    train(spoil(make_job("a", **SETTINGS), batches={7, 8, 9}))
    folder = make_job("a", **SETTINGS).folder

    assert drawn == list(range(18)), "back at step 6, whose batches 0 to 5 are learned; then on from 10"
    assert folder.read_result().skipped == (6, 7, 8, 9)
    assert [line["step"] for line in metric_lines(folder)] == list(range(15))
    assert "resumed after step 6" in notices(folder)


def test_batches_that_a_run_went_back_for_are_no_spikes_of_their_own(make_job):
    changed = {
        **SETTINGS,
        "spikes": {**SETTINGS["spikes"], "most": 4},
        "checkpoint": {"every_steps": 5, "every_seconds": None},
    }
    train(spoil(make_job("a", **changed), batches={9, 10, 11, 13}))
    folder = make_job("a", **changed).folder

    assert folder.read_result().skipped == (5, 6, 7, 8, 9, 10, 11, 13)


def test_too_many_spikes_end_the_run(make_job):
    changed = {**SETTINGS, "spikes": {**SETTINGS["spikes"], "most": 2}}
    with pytest.raises(TrainingFailed, match=r"3 batches were skipped for spikes .* train.spikes.most"):
        train(spoil(make_job("a", **changed), batches={5, 7, 9}))


@pytest.mark.parametrize(
    ("loss", "recent", "changed", "expected"),
    [
        (9.0, [3.0, 3.1] * 4, {}, True),
        (9.0, [3.0, 3.1] * 2, {}, False),
        (9.0, [3.0, 3.1] * 4, {"deviations": None}, False),
        (3.5, [3.0, 3.0] * 4, {}, False),
        (4.0, [1.0, 5.0] * 4, {}, False),
    ],
    ids=["far above", "too few to say", "switched off", "not much above equal ones", "as they scatter"],
)
def test_a_spike_is_far_above_in_both_measures(loss, recent, changed, expected):
    assert is_spike(loss, recent=recent, settings=SpikeSettings(window=8, **changed)) is expected
