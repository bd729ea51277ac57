"""What a cluster must have before ranks are started on it: a stand-in session says what Spark would."""

import io

import pytest

from tessera.errors import ConfigError
from tessera.train import slots
from tessera.train.settings import TrainSettings
from tessera.train.surroundings import LogServer

GPUS = slots.GPUS_OF_TASK


class Session:
    """The configuration of a session whose JVM nobody may ask: no context, so no number of slots."""

    def __init__(self, **conf):
        self.conf = {"spark.default.parallelism": "4", **conf}


def on_cluster(*, conf=None, **settings):
    settings = TrainSettings.model_validate({"placement": "cluster", "batch_size": 12, **settings})
    return slots.on_cluster(Session(**(conf or {})), settings=settings)


def gpus(*, conf, **settings):
    settings = TrainSettings.model_validate({"placement": "cluster", "batch_size": 12, **settings})
    return slots.gpus_of_task(Session(**conf), settings=settings)


def test_threads_are_what_spark_gives_a_task_unless_they_are_set():
    assert on_cluster().threads == 1
    assert on_cluster(conf={"spark.task.cpus": "3"}).threads == 3
    assert on_cluster(conf={"spark.task.cpus": "3"}, threads=2).threads == 2


@pytest.mark.parametrize(
    ("amount", "settings", "said"),
    [
        (None, {"device": "cuda"}, "is not set"),
        ("0.5", {"device": "auto"}, "whole number"),
        ("2", {"device": "auto", "ranks": 3}, "set train.ranks=2"),
        ("2", {"device": "cuda", "ranks": 1}, "set train.ranks=2"),
    ],
)
def test_gpu_amounts_that_do_not_fit_are_refused(amount, settings, said):
    with pytest.raises(ConfigError, match=said):
        on_cluster(conf={GPUS: amount} if amount else {}, **settings)


def test_ranks_take_the_gpus_of_their_task_and_none_when_they_run_on_processors():
    assert gpus(conf={GPUS: "2"}, ranks=4) == 2
    assert gpus(conf={GPUS: "2"}, ranks=3, device="cpu") == 0
    assert gpus(conf={}, ranks=3) == 0


def test_a_log_server_that_cannot_listen_says_so_in_the_log_and_ends_quietly():
    log = io.StringIO()
    server = LogServer(log)
    server.start("203.0.113.7")  # an address that is nobody's
    server.shutdown()

    assert server.port == -1
    assert "203.0.113.7 is not an address of this machine" in log.getvalue()


@pytest.mark.parametrize(
    ("slots_left", "settings", "ranks"),
    [(4, {"ranks": 4}, 4), (3, {"ranks": 4}, 3), (5, {"ranks": 6}, 4), (3, {"ranks": 6, "min_ranks": 3}, 3)],
)
def test_a_run_goes_on_with_the_ranks_that_still_fit_and_share_the_batch(monkeypatch, slots_left, settings, ranks):
    settings = TrainSettings.model_validate({"placement": "cluster", "batch_size": 12, **settings})
    monkeypatch.setattr(slots, "_slots", lambda spark, wanted: min(slots_left, wanted))

    assert slots.on_what_is_left(Session(**{GPUS: "0"}), settings=settings).ranks == ranks


def test_fewer_ranks_than_the_least_are_refused(monkeypatch):
    settings = TrainSettings.model_validate({"placement": "cluster", "batch_size": 12, "ranks": 6, "min_ranks": 5})
    monkeypatch.setattr(slots, "_slots", lambda spark, wanted: 4)
    with pytest.raises(ConfigError, match=r"slots for 4 tasks now, and the run had 6 ranks; with train.min_ranks 5"):
        slots.on_what_is_left(Session(**{GPUS: "0"}), settings=settings)
