"""Scores, paired differences and what is said of them, against scipy, brute force and simulated truth."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tessera.errors import SourceError
from tessera.evaluate.statistics import (
    LOWER_IS_BETTER,
    holm,
    mean_interval,
    non_inferior,
    paired,
    ranks,
    score_of,
    spearman,
)
from tessera.evaluate.task import METRICS, Choices, Completion, Outcomes, Task

NATS = "nats"


def outcomes(values, *, metric="acc", keys=None, weights=()):
    found = tuple(float(value) for value in values)
    names = tuple(keys) if keys is not None else tuple(f"{place:016x}" for place in range(len(found)))
    return Outcomes(names, {metric: found}, weights=tuple(map(float, weights)))


def choice_task(n, *, choices=4):
    pairs = tuple(("", f" {choice}") for choice in range(choices))
    return Task("quiz", kind="multiple_choice", items=tuple(Choices(((str(i), " x"), *pairs[1:]), 0) for i in range(n)))


def text_task(*, metric):
    return Task("text", kind="language_modeling", items=(Completion("a", "b"),), metric=metric)


def split(wins, losses, ties, *, right=0):
    """Outcomes of two models with so many discordant items, and ties of which `right` are right."""
    same = [1] * right + [0] * (ties - right)
    return outcomes([1] * wins + [0] * losses + same), outcomes([0] * wins + [1] * losses + same)


def test_a_score_has_its_mean_chance_and_interval():
    score = score_of(outcomes([1] * 60 + [0] * 40), task=choice_task(100))

    assert (score.metric, score.value, score.n, score.chance) == ("acc", 0.6, 100, 0.25)
    assert (score.low, score.high) == pytest.approx(stats.binom.ppf([0.024, 0.976], 100, 0.6) / 100, abs=0.011)
    assert score.above_chance


def test_guessing_is_seldom_called_above_chance():
    """Of 600 models that guess, the interval is above chance for about one in forty."""
    rng, task = np.random.default_rng(17), choice_task(80)
    above = [score_of(outcomes(rng.random(80) < 0.25), task=task).above_chance for _ in range(600)]

    assert 0.005 <= np.mean(above) <= 0.045


@pytest.mark.parametrize(("value", "n"), [(0, 5), (1, 5), (1, 300), (0.5, 4)])
def test_equal_outcomes_have_wilsons_interval_not_one_without_width(value, n):
    score = score_of(outcomes([value] * n), task=choice_task(n))

    if value in (0, 1):
        expected = stats.binomtest(value * n, n).proportion_ci(0.95, method="wilson")
        assert (score.low, score.high) == pytest.approx((expected.low, expected.high))
    assert score.low < score.high
    assert 0 <= score.low <= score.value <= score.high <= 1


def test_one_right_of_three_hundred_may_be_luck():
    score = score_of(outcomes([1] + [0] * 299), task=text_task(metric="acc"))

    assert (score.low, score.high) == pytest.approx(stats.binomtest(1, 300).proportion_ci(0.95, method="wilson"))


def test_bits_per_byte_are_weighted_by_bytes_and_accuracy_is_not():
    found = Outcomes(("a", "b"), {"bits_per_byte": (1.0, 3.0), "acc": (1.0, 0.0)}, weights=(300.0, 100.0))
    bits = score_of(found, task=text_task(metric="bits_per_byte"))

    assert bits.value == 1.5
    assert bits.chance == 0
    assert score_of(found, task=text_task(metric="bits_per_byte"), metric="acc").value == 0.5


def test_what_is_lower_is_better_is_what_tasks_say():
    said = {metric for kind in METRICS for metric in METRICS[kind] if text_task(metric=metric).lower_is_better}

    assert said == set(LOWER_IS_BETTER)


@pytest.mark.parametrize(("found", "metric"), [(outcomes([]), "acc"), (outcomes([1]), "f1")])
def test_no_item_and_no_such_metric_are_refused(found, metric):
    with pytest.raises(SourceError, match="found no item with acc" if metric == "acc" else "wanted f1"):
        score_of(found, task=choice_task(1), metric=metric)


def test_an_outcome_that_is_not_finite_has_no_interval():
    score = score_of(outcomes([1.0, math.inf], metric=NATS), task=text_task(metric=NATS))

    assert math.isinf(score.value)
    assert math.isnan(score.low)
    assert math.isnan(score.high)


@given(wins=st.integers(0, 60), losses=st.integers(0, 60), ties=st.integers(1, 60))
@settings(deadline=None, max_examples=50)
def test_pairs_of_right_and_wrong_have_the_exact_p_value(wins, losses, ties):
    found = paired(*split(wins, losses, ties, right=ties // 2), metric="acc")

    assert (found.wins, found.losses, found.n) == (wins, losses, wins + losses + ties)
    assert found.difference == pytest.approx((wins - losses) / found.n)
    assert found.p_value == pytest.approx(stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0)
    assert found.low <= found.difference <= found.high


def test_items_are_paired_by_key_wherever_they_stand():
    rng = np.random.default_rng(17)
    keys = [f"k{place % 90}" for place in range(100)]  # ten of them twice
    a, b = rng.random(100), rng.random(100)
    turned = rng.permutation(100)
    second = outcomes(b[turned], metric="f1", keys=[keys[place] for place in turned])
    known = {}
    for place in turned:
        known.setdefault(keys[place], []).append(b[place])
    expected = np.mean([a[place] - known[key].pop(0) for place, key in enumerate(keys)])
    found = paired(outcomes(a, metric="f1", keys=keys), second, metric="f1")

    assert found.difference == pytest.approx(expected)
    assert found.n == 100


def test_only_common_items_are_compared():
    a = outcomes([1, 0, 1], keys=["x", "y", "z"])
    found = paired(a, outcomes([0, 0, 1], keys=["z", "w", "y"]), metric="acc")

    assert (found.n, found.first, found.second) == (2, 0.5, 0.5)
    with pytest.raises(SourceError, match="no item with acc in common"):
        paired(a, outcomes([1], keys=["q"]), metric="acc")


def test_fewer_bits_are_a_gain():
    rng = np.random.default_rng(2)
    base, weights = rng.normal(2, 0.3, 200), rng.integers(100, 900, 200)
    better = base - rng.normal(0.1, 0.05, 200)
    found = paired(
        outcomes(better, metric="bits_per_byte", weights=weights),
        outcomes(base, metric="bits_per_byte", weights=weights), metric="bits_per_byte",
    )  # fmt: skip

    assert found.difference == pytest.approx(np.average(better - base, weights=weights))
    assert found.gain == -found.difference
    assert 0 < found.gain_low < found.gain < found.gain_high
    assert found.wins == int((better < base).sum())
    assert found.p_value < 0.001


def test_the_p_value_of_means_is_uniform_where_models_are_equal():
    """At most one in twenty of 400 comparisons of equal models has p < 0.05."""
    rng = np.random.default_rng(17)
    found = [
        paired(outcomes(rng.random(20), metric="f1"), outcomes(rng.random(20), metric="f1"), metric="f1").p_value
        for _ in range(400)
    ]

    assert 0.02 <= np.mean(np.array(found) < 0.05) <= 0.08


@pytest.mark.parametrize(
    ("wins", "losses", "ties", "margin", "passed", "needed"),
    [
        (0, 0, 5, 0.05, False, 73),  # z^2 (1 / margin - 1) = 72.99
        (0, 0, 80, 0.05, True, None),
        (30, 30, 940, 0.02, True, None),
        (0, 30, 70, 0.05, False, None),
        (30, 30, 40, 0.02, False, None),
    ],
)
def test_too_few_items_to_tell_is_no_pass(wins, losses, ties, margin, passed, needed):
    verdict = non_inferior(paired(*split(wins, losses, ties), metric="acc"), margin=margin)

    assert verdict.passed == passed
    if needed is not None:
        assert verdict.needed == needed
    if losses - wins >= margin * (wins + losses + ties):
        assert verdict.needed is None


@given(wins=st.integers(0, 30), losses=st.integers(0, 30), ties=st.integers(0, 50), margin=st.floats(0.01, 0.3))
@settings(deadline=None, max_examples=100)
def test_as_many_items_as_are_named_do_tell(wins, losses, ties, margin):
    n = wins + losses + ties
    if not n:
        return
    verdict = non_inferior(paired(*split(wins, losses, ties), metric="acc"), margin=margin)
    if verdict.needed is None or verdict.needed > 20_000:
        return
    times = -(-verdict.needed // n) + 1
    times += max(1, times // 10)
    more = non_inferior(paired(*split(wins * times, losses * times, ties * times), metric="acc"), margin=margin)

    assert verdict.needed > n
    assert more.passed


def test_the_number_needed_comes_from_the_spread_of_the_differences():
    rng = np.random.default_rng(3)
    a, b = rng.normal(2, 0.5, 40), rng.normal(2, 0.5, 40)
    a += b.mean() - a.mean()
    found = paired(outcomes(a, metric=NATS), outcomes(b, metric=NATS), metric=NATS)
    verdict = non_inferior(found, margin=0.05)

    assert not verdict.passed
    assert verdict.needed == math.floor((1.959963984540054 * (a - b).std() / 0.05) ** 2) + 1


def test_two_items_without_a_spread_prove_nothing():
    found = paired(outcomes([2.0, 2.0], metric=NATS), outcomes([2.1, 2.1], metric=NATS), metric=NATS)

    assert not non_inferior(found, margin=0.5).passed
    assert non_inferior(found, margin=0.5).needed == 10


def test_answers_that_are_all_wrong_prove_nothing():
    none = outcomes([0.0, 0.0, 0.0, 0.2] * 5, metric="f1")
    found = paired(none, none, metric="f1")

    assert (found.difference, found.p_value) == (0, 1)
    assert found.low == pytest.approx(-(1.959963984540054**2) / (20 + 1.959963984540054**2))
    assert non_inferior(found, margin=0.05).needed == 73


def test_a_model_that_is_not_a_number_passes_nothing():
    found = paired(outcomes([math.nan] * 20, metric=NATS), outcomes([1.0] * 20, metric=NATS), metric=NATS)

    assert non_inferior(found, margin=9.0) == non_inferior(found, margin=0.1)
    assert not non_inferior(found, margin=9.0).passed


def test_a_worse_model_seldom_passes():
    """Worse by the margin itself, which is the null: at most one in forty passes."""
    rng, passed = np.random.default_rng(17), 0
    for _ in range(400):
        old = rng.normal(2, 0.3, 100)
        new = old + rng.normal(0.1, 0.2, 100)
        found = paired(outcomes(new, metric=NATS), outcomes(old, metric=NATS), metric=NATS)
        passed += non_inferior(found, margin=0.1).passed

    assert 0.005 <= passed / 400 <= 0.045


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closed_test_by_bonferroni(p_values):
    """A p-value is the largest Bonferroni p of any set of hypotheses that it belongs to."""
    named = {str(place): value for place, value in enumerate(p_values)}
    expected = {
        name: max(
            min(1.0, len(some) * min(named[one] for one in some))
            for size in range(1, len(named) + 1)
            for some in itertools.combinations(named, size)
            if name in some
        )
        for name in named
    }

    assert holm(named) == pytest.approx(expected)
    assert list(holm(named)) == list(named)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30))
def test_ranks_are_scipys(values):
    assert ranks(np.array(values, dtype=float)) == pytest.approx(stats.rankdata(values))


def test_rank_correlation_is_scipys_and_its_interval_holds_the_truth():
    rng, held = np.random.default_rng(17), 0
    truth = 6 / math.pi * math.asin(0.6 / 2)  # of a normal pair that correlates 0.6
    for _ in range(40):
        x = rng.normal(size=60)
        y = 0.6 * x + 0.8 * rng.normal(size=60)
        found = spearman(x, y)
        held += found.low <= truth <= found.high
        assert found.value == pytest.approx(stats.spearmanr(x, y).statistic)

    assert held >= 35
    levels = np.repeat([0, 1, 4, 16], 20)
    assert spearman(levels, levels * 2.0).value == pytest.approx(1)
    assert math.isnan(spearman([1, 1, 1], [1, 2, 3]).value)


def test_the_interval_of_other_figures_is_to_be_had():
    values = np.random.default_rng(0).normal(5, 1, 50)
    t = stats.t.interval(0.95, 49, loc=values.mean(), scale=values.std() / math.sqrt(49))

    assert mean_interval(values) == pytest.approx(t, abs=0.05)
    assert mean_interval([3.0, 3.0]) == (3.0, 3.0)
