"""The gate as a truth table."""

import math

import pytest
from pydantic import ValidationError

from tessera.evaluate.gate import judge
from tessera.evaluate.settings import EvaluateSettings, GateSettings

BASELINES = {"gzip": 2.7, "unigram": 2.9, "bigram": 2.2, "trigram": 1.7}


@pytest.mark.parametrize(
    ("bits", "limit", "beat", "met"),
    [
        (1.9, 2.0, ("gzip", "bigram"), [True, True, True]),
        (2.0, 2.0, (), [True]),
        (2.1, 2.0, ("gzip",), [False, True]),
        (2.2, 3.0, ("bigram",), [True, False]),
        (1.9, 3.0, ("trigram", "unigram"), [True, False, True]),
        (math.nan, 3.0, ("gzip",), [False, False]),
        (math.inf, 3.0, ("gzip",), [False, False]),
        (-math.inf, 3.0, ("gzip",), [False, False]),
    ],
)
def test_passes_when_every_condition_is_met(bits, limit, beat, met):
    verdict = judge(bits, baselines=BASELINES, settings=GateSettings(max_bits_per_byte=limit, beat=beat))

    assert verdict.passed == all(met)
    assert [" is not " not in reason for reason in verdict.reasons] == met


def test_a_reason_names_score_limit_and_baseline():
    verdict = judge(1.9, baselines=BASELINES, settings=GateSettings(beat=["bigram"]))

    assert verdict.reasons == (
        "bits per byte 1.9000 is at most 3.0000, the limit",
        "bits per byte 1.9000 is below 2.2000, the bigram",
    )


@pytest.mark.parametrize("beat", [["zip"], ["gzip", "gzip"]])
def test_unknown_or_repeated_baselines_are_refused(beat):
    with pytest.raises(ValidationError):
        GateSettings(beat=beat)


def test_only_the_gate_decides_the_fingerprint():
    assert EvaluateSettings(batch_size=3).identity() == EvaluateSettings().identity()
    assert EvaluateSettings(gate=GateSettings(beat=[])).identity() != EvaluateSettings().identity()
