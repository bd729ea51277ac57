"""The line that a person watches."""

import io

import pytest
from rich.console import Console

from tessera.progress import Reporter
from tessera.train import view


def line(step, **more):
    return {"step": step, "loss": 3.2144, "tokens_per_second": 12_345.6, "seconds": 0.5 * step, **more}


def test_the_most_wanted_comes_first():
    lines = [line(10, heldout_bits_per_byte=2.345), line(20), line(30, model_flops_per_second=4.2e10, memory_bytes=8e8)]

    assert view.describe(lines, steps=150) == ("loss 3.214, 2.345 bpb, 1:00 left, 12.3k tok/s, 42GFLOP/s, 800MB")
    used = [line(1), line(2, model_flops_per_second=1e14, model_flops_utilisation=0.418)]
    assert view.describe(used, steps=20_002) == "loss 3.214, 2:46:40 left, 12.3k tok/s, 41.8% MFU"
    assert view.describe([line(1)], steps=9) == "loss 3.214, 12.3k tok/s"


@pytest.mark.parametrize(("number", "text"), [(7, "7"), (999.4, "999"), (999.6, "1k"), (1.5e6, "1.5M"), (2e15, "2P")])
def test_numbers_are_short(number, text):
    assert view.describe([{**line(1), "tokens_per_second": number}], steps=1).endswith(f", {text} tok/s")


def test_loss_and_time_left_stand_on_a_narrow_terminal():
    out = io.StringIO()
    reporter = Reporter(console=Console(file=out, width=80, force_terminal=True, highlight=False))
    with reporter.stage("train") as tell:
        tell(view.describe([line(10), line(20, heldout_bits_per_byte=2.345)], steps=320), 20, 320)
    seen = [text for text in out.getvalue().splitlines() if "loss" in text]

    assert seen
    assert all("loss 3.214, 2.345 bpb, 2:30 left" in text for text in seen), seen
