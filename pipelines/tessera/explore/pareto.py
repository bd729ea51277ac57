"""The Pareto front: the points that no other point beats. O(n log n)."""

from collections.abc import Sequence
from math import inf

Point = tuple[float, float]
"""What it costs and how bad it is; less is better in both."""


def front(points: Sequence[Point]) -> list[int]:
    """The places in `points` of those that none dominates, cheapest first.

    A point dominates another when it is no worse in either and better in one; so equal points stay together, on the
    front or off it. Ties are ordered by place.
    """
    order = sorted(range(len(points)), key=lambda place: (*points[place], place))
    found: list[int] = []
    best = inf
    for place in order:
        if points[place][1] < best or (found and points[place] == points[found[-1]]):
            found.append(place)
            best = points[place][1]
    return found
