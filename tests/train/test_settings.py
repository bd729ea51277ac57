import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tessera.config import Layer, load
from tessera.errors import ConfigError
from tessera.train.methods.wsd import WsdSettings, multiplier
from tessera.train.settings import OptimizerSettings, TrainSettings


def refused(**values):
    with pytest.raises(ConfigError) as caught:
        load(TrainSettings, layers=[Layer(origin="--set", values=values)])
    return str(caught.value)


@pytest.mark.parametrize("rate", [-0.1, 0, math.nan, math.inf])
@pytest.mark.parametrize("name", ["matrix_lr", "embedding_lr", "scalar_lr"])
def test_a_learning_rate_is_a_positive_number(name, rate):
    assert f"optimizer.{name}" in refused(optimizer={name: rate})


def test_a_batch_that_ranks_do_not_share_names_both_keys():
    message = refused(batch_size=9, ranks=2)

    assert "train.batch_size is 9" in message
    assert "train.ranks (2)" in message


def test_execution_only_fields_are_not_part_of_the_identity():
    plain = TrainSettings()
    changed = TrainSettings(
        ranks=4, threads=3, micro_batch=1, device="cpu", compile=True, timeout_seconds=5,
        checkpoint={"every_steps": 3, "keep": 9}, heldout={"every_steps": 7},
    )  # fmt: skip

    assert changed.identity() == plain.identity()
    for other in ({"steps": 7}, {"batch_size": 24}, {"seed": 1}, {"precision": "bf16"}, {"model": {"layers": 3}},
                  {"optimizer": {"matrix_lr": 0.03}}, {"methods": {"wsd": {"decay": 0.1}}}):  # fmt: skip
        assert TrainSettings.model_validate(other).identity() != plain.identity()


def test_warmup_and_decay_cannot_overlap():
    with pytest.raises(ValidationError, match="add up to more than 1"):
        WsdSettings(warmup=0.6, decay=0.5)


schedules = st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)).map(
    lambda v: WsdSettings(warmup=v[0] * 0.999, decay=v[1] * (1 - v[0]) * 0.999, final=v[2])
)


@given(steps=st.integers(1, 300), settings=schedules)
def test_the_schedule_rises_holds_and_falls(steps, settings):
    values = [multiplier(step, steps=steps, settings=settings) for step in range(steps)]
    peak = values.index(max(values))

    assert all(0 < value <= 1 for value in values)
    assert values[: peak + 1] == sorted(values[: peak + 1])
    assert values[peak:] == sorted(values[peak:], reverse=True)


def test_the_schedule_at_known_points():
    settings = WsdSettings(warmup=0.1, decay=0.4, final=0.2)
    values = [multiplier(step, steps=100, settings=settings) for step in range(101)]

    assert values[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert values[10:60] == [1.0] * 50
    assert values[80] == pytest.approx(0.6)  # half-way from 1 to 0.2
    assert values[100] == pytest.approx(0.2)


def test_defaults_are_valid_optimizer_settings():
    assert OptimizerSettings().matrix_lr > 0


def test_a_budget_of_memory_and_a_shared_model_do_not_go_together():
    assert "train.memory_bytes cannot be measured with train.parallel=fsdp" in refused(
        memory_bytes=2**30, parallel="fsdp"
    )
