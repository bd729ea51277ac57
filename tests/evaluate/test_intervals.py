"""Intervals and p-values against scipy, closed forms, printed values and simulated truth."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tessera.evaluate import intervals
from tessera.evaluate.intervals import bootstrap, mcnemar, sign_flips, tail_of, tango, wilson


@given(n=st.integers(1, 5000), part=st.floats(0, 1))
def test_wilson_is_scipys(n, part):
    right = round(part * n)
    expected = stats.binomtest(right, n).proportion_ci(0.95, method="wilson")

    assert wilson(right / n, n=n) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize("n", [1, 5, 300])
def test_nothing_right_has_the_closed_form(n):
    z2 = 1.959963984540054**2

    assert wilson(0.0, n=n) == (0.0, pytest.approx(z2 / (n + z2)))
    assert tango(0, 0, n=n) == pytest.approx((-z2 / (n + z2), z2 / (n + z2)))


@pytest.mark.parametrize(("wins", "losses", "n"), [(0, 1, 44), (3, 8, 50), (9, 2, 20)])
def test_at_tangos_ends_the_score_is_z_with_the_likeliest_shares(wins, losses, n):
    """The nuisance share by a search of the likelihood, not by its closed form."""
    low, high = tango(wins, losses, n=n)

    for end, sign in ((low, 1), (high, -1)):
        grid = np.linspace(1e-9, 1 - max(end, 0) - 1e-9, 400_001)
        lost = grid[np.argmax(_log_likelihood(grid, end, wins=wins, losses=losses, n=n))]
        z = (wins - losses - n * end) / math.sqrt(n * (2 * lost + end * (1 - end)))
        assert z == pytest.approx(sign * 1.95996, abs=1e-3)


@settings(deadline=None)
@given(wins=st.integers(0, 40), losses=st.integers(0, 40), rest=st.integers(0, 100))
def test_tango_mirrors_and_holds_the_difference(wins, losses, rest):
    n = wins + losses + rest + 1
    low, high = tango(wins, losses, n=n)
    other_low, other_high = tango(losses, wins, n=n)

    assert -1 <= low <= (wins - losses) / n <= high <= 1
    assert low < high
    assert (other_low, other_high) == pytest.approx((-high, -low), abs=1e-9)


@given(wins=st.integers(0, 400), losses=st.integers(0, 400))
def test_mcnemar_is_the_exact_binomial_test(wins, losses):
    n = wins + losses
    expected = stats.binomtest(wins, n).pvalue if n else 1.0

    assert mcnemar(wins, losses) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_of_many_items():
    assert mcnemar(50_000, 50_500) == pytest.approx(stats.binomtest(50_000, 100_500).pvalue, rel=1e-7)


@pytest.mark.parametrize("free", [4, 9, 29, 200])
def test_tails_are_those_of_students_t(free):
    t = stats.t.ppf(0.975, free) * math.sqrt((free + 1) / free)

    assert tail_of(free + 1) == pytest.approx(stats.norm.sf(t), rel=0.03)


def test_a_bootstrap_of_many_items_is_the_normal_interval():
    values = np.random.default_rng(3).exponential(size=4000)
    error = values.std() / math.sqrt(len(values))

    assert bootstrap(values) == pytest.approx(
        (values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.15 * error
    )


def test_a_bootstrap_counts_weights_as_a_ratio_of_sums():
    """Against scipy's own resampling of (value, weight) pairs."""
    rng = np.random.default_rng(5)
    values, weights = rng.normal(2, 0.5, 300), rng.integers(1, 2000, 300).astype(float)
    expected = stats.bootstrap(
        (values, weights), lambda v, w, axis: (v * w).sum(axis) / w.sum(axis), paired=True, vectorized=True,
        method="percentile", n_resamples=20_000, rng=7,
    )  # fmt: skip
    width = expected.confidence_interval.high - expected.confidence_interval.low

    assert bootstrap(values, weights=weights) == pytest.approx(tuple(expected.confidence_interval), abs=0.08 * width)


@pytest.mark.parametrize("kinds", [2, 7, 400])
def test_no_order_of_items_matters_and_both_ways_to_draw_agree(kinds):
    values = np.random.default_rng(1).integers(0, kinds, 400) / kinds
    shuffled = np.random.default_rng(2).permutation(values)
    drawn = np.random.default_rng(3).choice(values, size=(20_000, 400)).mean(axis=1)
    width = np.quantile(drawn, 0.975) - np.quantile(drawn, 0.025)

    assert bootstrap(values) == bootstrap(shuffled)
    assert bootstrap(values) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.08 * width)


def test_blocks_change_nothing(monkeypatch):
    values = np.random.default_rng(1).normal(size=500)
    expected = bootstrap(values)
    monkeypatch.setattr(intervals, "BLOCK", 700)

    assert bootstrap(values) == expected


@pytest.mark.parametrize(
    "differences", [[0.1, 0.4, -0.2, 0.5, 0.3, 0.7, 0.2, -0.1], [1, 1, 1, 1, -1, 0, 0, 1], [3] * 6]
)
def test_sign_flips_come_to_the_p_value_of_all_flips(differences):
    found = np.array(differences, dtype=float)
    all_sums = [np.dot(signs, found) for signs in itertools.product((-1, 1), repeat=len(found))]
    exact = np.mean([abs(one) >= abs(found.sum()) - 1e-9 for one in all_sums])

    assert sign_flips(found) == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 9999) + 1e-4)
    assert sign_flips(np.zeros(5)) == 1.0


def test_no_p_value_of_random_signs_is_zero():
    assert sign_flips(np.ones(60)) == 1 / 10_000


def coverage(interval, draw, *, truth, times=400):
    rng = np.random.default_rng(17)
    found = [interval(draw(rng)) for _ in range(times)]
    return sum(low <= truth <= high for low, high in found) / times


def test_the_bootstrap_holds_the_truth_in_95_of_100_draws_of_few_items(monkeypatch):
    found = coverage(bootstrap, lambda rng: rng.normal(size=15), truth=0.0, times=1000)
    monkeypatch.setattr(intervals, "tail_of", lambda n: 0.025)
    plain = coverage(bootstrap, lambda rng: rng.normal(size=15), truth=0.0, times=1000)

    assert 0.93 <= found <= 0.97
    assert plain < found - 0.01


@pytest.mark.parametrize(("share_won", "share_lost"), [(0.02, 0.02), (0.1, 0.05)])
def test_tango_holds_the_truth_where_few_items_differ(share_won, share_lost):
    def draw(rng):
        return rng.multinomial(60, [share_won, share_lost, 1 - share_won - share_lost])

    found = coverage(lambda counts: tango(counts[0], counts[1], n=60), draw, truth=share_won - share_lost)

    assert 0.93 <= found <= 0.99


def _log_likelihood(lost, difference, *, wins, losses, n):
    """Of shares lost and won = lost + difference, as Tango's constraint has it."""
    won = lost + difference
    with np.errstate(divide="ignore", invalid="ignore"):
        value = losses * np.log(lost) + (n - wins - losses) * np.log(1 - lost - won)
        value = value + (wins * np.log(won) if wins else 0)
    return np.where(np.isfinite(value) & (won >= 0), value, -np.inf)
