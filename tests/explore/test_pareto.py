"""Against the definition: every pair of points is compared."""

from hypothesis import example, given
from hypothesis import strategies as st

from tessera.explore.pareto import front

small = st.integers(0, 6).map(float)  # few values, so that ties and equal points are common
wide = st.floats(0.001, 1e9)
points = st.lists(st.tuples(small, small), max_size=25) | st.lists(st.tuples(wide, wide), max_size=25)


def dominates(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one[0] <= other[0] and one[1] <= other[1] and one != other


@given(points)
@example([(1.0, 1.0), (1.0, 1.0), (2.0, 1.0), (1.0, 2.0)])
def test_the_front_is_what_no_point_dominates(found):
    undominated = [n for n, point in enumerate(found) if not any(dominates(other, point) for other in found)]

    assert sorted(front(found)) == undominated


@given(points)
def test_the_front_is_ordered_by_cost_and_then_place(found):
    order = front(found)

    assert order == sorted(order, key=lambda n: (found[n][0], n))
    qualities = [found[n][1] for n in order]
    assert qualities == sorted(qualities, reverse=True)


def test_no_points_have_no_front():
    assert front([]) == []
