"""The gate as a truth table: each condition met, not met, and not known."""

import math

import numpy as np
import pytest
from pydantic import ValidationError

from tessera.evaluate.gate import Facts, judge
from tessera.evaluate.gauntlet import Failure, summarise
from tessera.evaluate.settings import EvaluateSettings, GateSettings, NonInferiority
from tessera.evaluate.statistics import paired
from tessera.evaluate.task import Outcomes, Score

BASELINES = {"gzip": 2.7, "unigram": 2.9, "bigram": 2.2, "trigram": 1.7}


def score(value, *, metric="acc", chance=0.0):
    return Score(metric, value, low=value - 0.05, high=value + 0.05, n=300, chance=chance)


SCORES = {
    "problem": score(0.41, metric="f1"),
    "dyck": score(0.5),
    "ordering": Failure("no items"),
    "reading": score(0.6, chance=0.2),
    "tickets": score(1.4, metric="bits_per_byte"),
}
GAUNTLET = summarise({"reading": ["reading"], "logic": ["dyck", "ordering"], "brackets": ["dyck"]}, SCORES)


def verdict_of(settings, **facts):
    """The verdict and reason of one condition beside the bits per byte, which are met."""
    facts = Facts(**{"bits_per_byte": 1.0, "baselines": BASELINES, **facts})
    verdict = judge(facts, settings=GateSettings(beat=(), **settings))
    assert len(verdict.reasons) == 2
    assert verdict.passed == (" is not " not in verdict.reasons[1])
    return verdict.passed, verdict.reasons[1]


def outcomes(values, *, metric="acc"):
    return Outcomes(tuple(map(str, range(len(values)))), {metric: tuple(map(float, values))})


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
    verdict = judge(Facts(bits, BASELINES), settings=GateSettings(max_bits_per_byte=limit, beat=beat))

    assert verdict.passed == all(met)
    assert [" is not " not in reason for reason in verdict.reasons] == met


def test_a_reason_names_score_limit_and_baseline():
    verdict = judge(Facts(1.9, BASELINES), settings=GateSettings(beat=["bigram"]))

    assert verdict.reasons == (
        "bits per byte 1.9000 is at most 3.0000, the limit",
        "bits per byte 1.9000 is below 2.2000, the bigram",
    )


@pytest.mark.parametrize(
    ("name", "least", "met", "said"),
    [
        ("problem", 0.41, True, "problem f1 0.4100 is at least 0.4100, the least that passes (0.3600 to 0.4600, 300"),
        ("problem", 0.42, False, "problem f1 0.4100 is not at least 0.4200"),
        ("ordering", 0.1, False, "ordering is not scored (no items)"),
        ("coding", 0.1, False, "coding is not among what was scored"),
        ("tickets", 0.1, False, "tickets is not a score that at_least can hold: of bits_per_byte fewer are better"),
        ("brackets", 0.5, True, "category brackets 0.5000 is at least"),
        ("brackets", 0.6, False, "category brackets 0.5000 is not at least"),
        ("logic", -1.0, False, "category logic is not complete (ordering: no items)"),
        ("overall", -1.0, False, "overall is not complete (ordering: no items)"),
        ("reading", 0.1, False, "reading is not one thing: write task:reading or category:reading"),
        ("task:reading", 0.6, True, "reading acc 0.6000 is at least"),
        ("category:reading", 0.51, False, "category reading 0.5000 is not at least"),
        ("category:problem", 0.1, False, "category:problem is not among what was scored"),
        ("task:logic", 0.1, False, "task:logic is not among what was scored"),
    ],
)
def test_least_scores_of_tasks_and_categories(name, least, met, said):
    passed, reason = verdict_of({"at_least": {name: least}}, scores=SCORES, gauntlet=GAUNTLET)

    assert passed == met
    assert reason.startswith(said)


def test_overall_counts_where_all_is_complete():
    complete = summarise({"logic": ["dyck"], "own": ["problem"]}, SCORES)

    assert verdict_of({"at_least": {"overall": 0.45}}, scores=SCORES, gauntlet=complete)[0]
    assert not verdict_of({"at_least": {"overall": 0.46}}, scores=SCORES, gauntlet=complete)[0]
    assert not verdict_of({"at_least": {"overall": -9.0}}, scores=SCORES, gauntlet=None)[0]
    assert not verdict_of({"at_least": {"dyck": -9.0}}, scores={"dyck": score(math.nan)})[0]


NOT_WORSE = {"not_worse": (NonInferiority(task="problem", margin=0.05),)}


def test_without_a_champion_nothing_can_be_worse():
    passed, reason = verdict_of(NOT_WORSE, scores=SCORES)

    assert passed
    assert reason == "problem: there is no champion yet"


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ({}, ""),
        ({"scores": {"problem": Failure("no such table")}}, " (no such table)"),
        ({"scores": SCORES, "not_compared": {"problem": "all 9 items are seen"}}, " (all 9 items are seen)"),
    ],
)
def test_with_a_champion_that_was_not_met_it_does_not_pass(facts, why):
    passed, reason = verdict_of(NOT_WORSE, champion="docs version 2", **facts)

    assert not passed
    assert reason == f"problem is not compared with docs version 2{why}, wanted at most 0.05 worse"


@pytest.mark.parametrize(
    ("wins", "losses", "ties", "met", "said"),
    [
        (30, 10, 260, True, "is above -0.05, the margin (300 items)"),
        (12, 14, 974, True, "is above -0.05, the margin (1000 items)"),
        (0, 60, 240, False, "is not above -0.05, the margin (300 items)"),
        (5, 5, 10, False, "20 items are too few to tell, about"),
        (0, 0, 4, False, "4 items are too few to tell, about 73 are needed"),
    ],
)
def test_a_challenger_must_be_shown_not_to_be_worse(wins, losses, ties, met, said):
    first = outcomes([1] * wins + [0] * losses + [1] * ties)
    second = outcomes([0] * wins + [1] * losses + [1] * ties)
    pairs = {"problem": paired(first, second, metric="acc")}
    passed, reason = verdict_of(NOT_WORSE, paired=pairs, champion="docs version 2")

    assert passed == met
    assert said in reason
    assert f"better than docs version 2: {(wins - losses) / (wins + losses + ties):+.4f}" in reason


@pytest.mark.parametrize(("change", "met"), [(-0.2, True), (0.0, True), (0.2, False)])
def test_more_bits_per_byte_are_worse(change, met):
    base = np.random.default_rng(1).normal(2, 0.2, 400)
    noise = np.random.default_rng(2).normal(0, 0.1, 400)
    new, old = (outcomes(values, metric="bits_per_byte") for values in (base + noise + change, base))
    settings = {"not_worse": (NonInferiority(task="heldout", margin=0.05),)}
    pairs = {"heldout": paired(new, old, metric="bits_per_byte")}

    assert verdict_of(settings, paired=pairs, champion="docs version 2")[0] == met


@pytest.mark.parametrize(
    ("setting", "fact", "what"),
    [
        ("max_exposure", "exposure", "canary exposure in bits"),
        ("max_latency_ms", "latency_ms", "time to a next token in ms"),
    ],
)
def test_exposure_and_latency_have_a_limit_and_must_be_known(setting, fact, what):
    assert verdict_of({setting: 2.0}, **{fact: 2.0}) == (True, f"{what} 2.0000 is at most 2.0000, the limit")
    assert verdict_of({setting: 2.0}, **{fact: 2.1})[1] == f"{what} 2.1000 is not at most 2.0000, the limit"
    assert not verdict_of({setting: 2.0}, **{fact: math.nan})[0]
    assert verdict_of({setting: 2.0})[1] == f"{what} is not measured, wanted at most 2.0000, the limit"


def test_reasons_are_in_the_order_of_the_settings():
    settings = GateSettings(
        beat=["gzip"], at_least={"dyck": 0.1}, max_exposure=3, max_latency_ms=9,
        not_worse=[{"task": "problem", "margin": 0.1}],
    )  # fmt: skip
    verdict = judge(Facts(1.0, BASELINES, scores=SCORES, exposure=1.0, latency_ms=20.0), settings=settings)

    assert not verdict.passed
    first_words = [reason.split(" ")[0] for reason in verdict.reasons]
    assert first_words == ["bits", "bits", "dyck", "problem:", "canary", "time"]
    assert [" is not " in reason for reason in verdict.reasons] == [False] * 5 + [True]


@pytest.mark.parametrize("beat", [["zip"], ["gzip", "gzip"]])
def test_unknown_or_repeated_baselines_are_refused(beat):
    with pytest.raises(ValidationError):
        GateSettings(beat=beat)


def test_only_the_gate_decides_the_fingerprint():
    assert EvaluateSettings(batch_size=3).identity() == EvaluateSettings().identity()
    assert EvaluateSettings(gate=GateSettings(beat=[])).identity() != EvaluateSettings().identity()
