"""FSDP2: two ranks that hold halves of the model do what two ranks that hold all of it do."""

import json

import pytest
from tests.train.conftest import metric_lines, run_ranks
from tests.train.test_methods import MIXTURE

from tessera.model.build import load, read_weights

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize(
    "changed",
    [{}, {"model": MIXTURE, "heldout": {"sequences": 10}}],
    ids=["dense", "mixture, and one rank has no held-out sequence"],
)
def test_sharded_ranks_do_what_whole_ones_do(make_run, changed):
    whole, parts = make_run("whole", **changed), make_run("parts", parallel="fsdp", **changed)
    run_ranks(whole, ranks=2)
    run_ranks(parts, ranks=2)

    assert parts.read_result() is not None, parts.log.read_text()
    for one, other in zip(metric_lines(whole), metric_lines(parts), strict=True):
        assert one == pytest.approx(other, abs=1e-4, rel=1e-4)
    first, second = (read_weights(run.root / run.read_result().checkpoint) for run in (whole, parts))
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert (value - second[name]).abs().max() < 1e-3, name
    load(parts.root / parts.read_result().checkpoint)


def test_a_killed_sharded_run_goes_on_exactly_and_on_one_rank(make_run):
    whole = make_run("whole", parallel="fsdp")
    run_ranks(whole, ranks=2)
    killed = make_run("killed", parallel="fsdp")
    run_ranks(killed, ranks=2, fail="train.after_step:kill:5")
    assert killed.read_result() is None
    make_run("killed", parallel="fsdp")
    run_ranks(killed, ranks=2)

    assert killed.read_result().weights_sha256 == whole.read_result().weights_sha256
    assert metric_lines(killed) == metric_lines(whole)
    halved = make_run("halved", parallel="fsdp")
    run_ranks(halved, ranks=2, fail="train.after_step:kill:5")
    make_run("halved", ranks=1, parallel="fsdp")
    run_ranks(halved, ranks=1)
    assert halved.read_result().ranks == 1
    said = [json.loads(line)["notice"] for line in halved.notices.read_text().splitlines()]
    assert any("order exact, sums not: ranks 2 -> 1" in notice for notice in said)
    for one, other in zip(metric_lines(whole), metric_lines(halved), strict=True):
        assert one == pytest.approx(other, abs=1e-3, rel=1e-3)
