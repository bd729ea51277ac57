"""What outcomes come to: a score with its interval, a paired difference with its p-value, and what may be said of it.

Models are compared on the same items, paired by key. How wide intervals are, and what each costs, stands in
`intervals`: the bootstrap over items, but Wilson's interval where fewer than FEW items are right or wrong or all values
are equal, and Tango's where two models differ on fewer than FEW items in either direction; of shares between 0 and 1,
as F1 is, the difference's interval is then at least as wide as Tango's of no difference. So agreement on five items
is not taken for certainty.
"""

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tessera.errors import SourceError
from tessera.evaluate import intervals
from tessera.evaluate.task import Outcomes, Score, Task

LOWER_IS_BETTER = ("bits_per_byte", "nats")
"""Metrics without an upper bound; all others are shares, 0 to 1."""
WEIGHTED = ("bits_per_byte",)
"""Metrics whose items count by weight; of the others each counts once."""
FEW = 10
MOST = 10**9
"""No number of items above this is named."""


@dataclass(frozen=True)
class Paired:
    """Two models on the same items."""

    metric: str
    n: int
    """Items that both were asked."""
    first: float
    second: float
    """Their (weighted) means over these items."""
    difference: float
    """First minus second, in the metric's unit."""
    low: float
    high: float
    """95 % interval of the difference."""
    p_value: float
    """Two-sided: McNemar's exact one where every outcome is 0 or 1, else by random changes of sign."""
    wins: int
    losses: int
    """Items on which the first is better, and worse."""
    deviation: float
    """Standard deviation of what an item adds to the difference."""
    zero_one: bool
    """Whether every outcome is 0 or 1."""

    @property
    def lower_is_better(self) -> bool:
        return self.metric in LOWER_IS_BETTER

    @property
    def gain(self) -> float:
        """By how much the first is better."""
        return -self.difference if self.lower_is_better else self.difference

    @property
    def gain_low(self) -> float:
        return -self.high if self.lower_is_better else self.low

    @property
    def gain_high(self) -> float:
        return -self.low if self.lower_is_better else self.high


@dataclass(frozen=True)
class NonInferior:
    """Whether a model is at most `margin` worse than another."""

    passed: bool
    needed: int | None
    """About so many items would tell, were the difference to stay; None where the answer is clear."""


@dataclass(frozen=True)
class Correlation:
    """A rank correlation with its 95 % interval; not a number where one side has a single value."""

    value: float
    low: float
    high: float
    n: int


def score_of(outcomes: Outcomes, *, task: Task, metric: str = "", seed: int = 17) -> Score:
    """The mean of a metric over items, with its interval and the task's chance level.

    Args:
        metric: the task's primary one where it is empty.

    Raises:
        SourceError: there is no item, or no such metric.
    """
    metric = metric or task.primary
    values = _values(outcomes, metric=metric)
    weights = _weights(outcomes, metric=metric)
    low, high = mean_interval(values, weights=weights, bounded=metric not in LOWER_IS_BETTER, seed=seed)
    chance = 0.0 if metric in LOWER_IS_BETTER else task.chance
    return Score(metric, value=_mean(values, weights=weights), low=low, high=high, n=len(values), chance=chance)


def mean_interval(
    values: Sequence[float] | np.ndarray,
    *,
    weights: Sequence[float] | np.ndarray | None = None,
    bounded: bool = False,
    seed: int = 17,
) -> tuple[float, float]:
    """The 95 % interval of a (weighted) mean over items.

    Args:
        bounded: values are shares, 0 to 1: where they say too little for a bootstrap, Wilson's interval is taken. Of
            other values that are all equal, or one alone, the interval has no width.
    """
    found = np.asarray(values, dtype=np.float64)
    if not np.isfinite(found).all():
        return math.nan, math.nan
    n, right = len(found), int((found == 1).sum())
    if bounded and (found == found[0]).all():
        return intervals.wilson(float(found[0]), n=n)
    if bounded and weights is None and _zero_one(found) and min(right, n - right) < FEW:
        return intervals.wilson(right / n, n=n)
    return intervals.bootstrap(found, weights=None if weights is None else np.asarray(weights), seed=seed)


def paired(first: Outcomes, second: Outcomes, *, metric: str, seed: int = 17) -> Paired:
    """The difference of two models over the items that both were asked; of equal items the first meets the first.

    Raises:
        SourceError: no item is common, or one of them lacks the metric.
    """
    mine, theirs = common(first.keys, second.keys)
    if not mine:
        raise SourceError(f"the models have no item with {metric} in common; evaluate both on the same task")
    first, second = take(first, mine), take(second, theirs)
    a, b, weights = _values(first, metric=metric), _values(second, metric=metric), _weights(first, metric=metric)
    change = a - b
    difference = _mean(change, weights=weights)
    shares = np.ones(len(change)) if weights is None else weights / weights.mean()
    zero_one = metric not in LOWER_IS_BETTER and weights is None and _zero_one(a) and _zero_one(b)
    better, worse = int((change > 0).sum()), int((change < 0).sum())
    wins, losses = (worse, better) if metric in LOWER_IS_BETTER else (better, worse)
    low, high = _difference_interval(change, weights=weights, zero_one=zero_one, metric=metric, seed=seed)
    return Paired(
        metric,
        n=len(change),
        first=_mean(a, weights=weights),
        second=_mean(b, weights=weights),
        difference=difference,
        low=low,
        high=high,
        p_value=intervals.mcnemar(wins, losses) if zero_one else intervals.sign_flips(shares * change, seed=seed),
        wins=wins,
        losses=losses,
        deviation=float(np.std(shares * (change - difference))),
        zero_one=zero_one,
    )


def common(first: Sequence[Hashable], second: Sequence[Hashable]) -> tuple[list[int], list[int]]:
    """Places of equal keys, in the order of `first`; the k-th of equal keys meets the k-th."""
    places = {key: place for place, key in enumerate(_numbered(second))}
    found = [(place, places[key]) for place, key in enumerate(_numbered(first)) if key in places]
    return [mine for mine, _ in found], [theirs for _, theirs in found]


def take(outcomes: Outcomes, places: Sequence[int]) -> Outcomes:
    """The outcomes at these places."""
    return replace(
        outcomes,
        keys=tuple(outcomes.keys[place] for place in places),
        values={name: tuple(values[place] for place in places) for name, values in outcomes.values.items()},
        weights=tuple(outcomes.weights[place] for place in places) if outcomes.weights else (),
    )


def non_inferior(found: Paired, *, margin: float) -> NonInferior:
    """Whether the first is less than `margin` worse than the second: the lower 95 % bound of its gain is above -margin.

    Where the gain itself is, and the bound is not, there are too few items to tell. So there are below FEW, but for
    outcomes of 0 and 1, whose interval knows it.
    """
    telling = found.zero_one or found.n >= FEW
    if found.gain_low > -margin and telling:
        return NonInferior(passed=True, needed=None)
    if not found.gain > -margin:
        return NonInferior(passed=False, needed=None)
    return NonInferior(passed=False, needed=_needed(found, room=found.gain + margin, margin=margin))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's (1979) p-values: each holds though all were looked at."""
    ordered = sorted(p_values, key=lambda name: p_values[name])
    adjusted: dict[str, float] = {}
    least = 0.0
    for place, name in enumerate(ordered):
        least = max(least, min(1.0, (len(ordered) - place) * p_values[name]))
        adjusted[name] = least
    return {name: adjusted[name] for name in p_values}


def spearman(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray, *, seed: int = 17) -> Correlation:
    """Spearman's rank correlation, equal values sharing their mean rank; its interval by bootstrap over pairs.

    Resamples in which a side has a single value say nothing and are left out.
    """
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    assert a.shape == b.shape
    assert a.ndim == 1
    rng, n = np.random.default_rng(seed), len(a)
    value = _correlation(a, b) if n else math.nan
    if math.isnan(value):
        return Correlation(value, low=math.nan, high=math.nan, n=n)
    drawn = [_correlation(a[places], b[places]) for places in rng.integers(0, n, size=(intervals.RESAMPLES, n))]
    tail = intervals.tail_of(n)
    low, high = np.nanquantile(drawn, [tail, 1 - tail])
    return Correlation(value, low=float(low), high=float(high), n=n)


def ranks(values: np.ndarray) -> np.ndarray:
    """From 1, equal values sharing their mean rank."""
    ordered = np.sort(values)
    return (ordered.searchsorted(values) + ordered.searchsorted(values, side="right") + 1) / 2


def _difference_interval(
    change: np.ndarray, *, weights: np.ndarray | None, zero_one: bool, metric: str, seed: int
) -> tuple[float, float]:
    if not np.isfinite(change).all():
        return math.nan, math.nan
    n, better, worse = len(change), int((change > 0).sum()), int((change < 0).sum())
    if zero_one and min(better, worse) < FEW:
        return intervals.tango(better, worse, n=n)
    low, high = intervals.bootstrap(change, weights=weights, seed=seed)
    if metric in LOWER_IS_BETTER or min(better, worse) >= FEW:
        return low, high
    mean, width = _mean(change, weights=weights), _least_width(n)
    return max(-1.0, min(low, mean - width)), min(1.0, max(high, mean + width))


def _needed(found: Paired, *, room: float, margin: float) -> int:
    """The least number of items at which the bound would be above -margin, were they like those of `found`."""

    def enough(n: int) -> bool:
        if found.zero_one:
            low, _ = intervals.tango(found.wins * n / found.n, found.losses * n / found.n, n=n)
            return low > -margin
        least = 0.0 if found.lower_is_better else _least_width(n)
        return n >= FEW and max(intervals.Z * found.deviation / math.sqrt(n), least) < room

    few, many = found.n, found.n + 1
    while not enough(many) and many < MOST:
        few, many = many, 2 * many
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if enough(middle) else (middle, many)
    return min(many, MOST)


def _least_width(n: int) -> float:
    """By how much a share of n items that are all alike may be off."""
    return intervals.Z**2 / (n + intervals.Z**2)


def _values(outcomes: Outcomes, *, metric: str) -> np.ndarray:
    if metric not in outcomes.values:
        raise SourceError(f"found outcomes in {', '.join(outcomes.values)}, wanted {metric}; evaluate the task again")
    values = np.asarray(outcomes.values[metric], dtype=np.float64)
    if not len(values):
        raise SourceError(f"found no item with {metric}, wanted at least one; give the task more items")
    return values


def _weights(outcomes: Outcomes, *, metric: str) -> np.ndarray | None:
    weighted = metric in WEIGHTED and bool(outcomes.weights)
    return np.asarray(outcomes.weights, dtype=np.float64) if weighted else None


def _mean(values: np.ndarray, *, weights: np.ndarray | None) -> float:
    return float(values.mean() if weights is None else (values * weights).sum() / weights.sum())


def _zero_one(values: np.ndarray) -> bool:
    return bool(((values == 0) | (values == 1)).all())


def _numbered(keys: Sequence[Hashable]) -> list[tuple[Hashable, int]]:
    """Each key with how often it was there before."""
    seen: Counter[Hashable] = Counter()
    found = []
    for key in keys:
        found.append((key, seen[key]))
        seen[key] += 1
    return found


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    x, y = ranks(a), ranks(b)
    x, y = x - x.mean(), y - y.mean()
    size = math.sqrt(float((x * x).sum()) * float((y * y).sum()))
    return float((x * y).sum()) / size if size else math.nan
