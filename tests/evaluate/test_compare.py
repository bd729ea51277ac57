"""Two models on the same tasks: what is left out, what is said, against counts by hand and scipy."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from tessera.evaluate.compare import Side, compare
from tessera.evaluate.task import Choices, Outcomes, Question, Task, key_of


def quiz(name, *, n=100, choices=4, metric=""):
    """Different items for each name; the first half has four choices, the others two."""
    items = tuple(
        Choices(tuple((f"{name} {place}", f" {c}") for c in range(choices if place < n // 2 else 2)), gold=0)
        for place in range(n)
    )
    return Task(name, kind="multiple_choice", items=items, category="logic", metric=metric)


def side(name, answers, *, tasks, seen=(), **more):
    outcomes = {
        task: Outcomes(tuple(map(key_of, tasks[task].items)), {"acc": tuple(map(float, values))})
        for task, values in answers.items()
    }
    return Side(name, name * 64, outcomes, seen=frozenset(seen), **more)


def test_a_task_is_compared_by_its_pairs():
    tasks = {"dyck": quiz("dyck")}
    a, b = [1] * 70 + [0] * 30, [1] * 50 + [0] * 45 + [1] * 5
    (found,) = compare(side("a", {"dyck": a}, tasks=tasks), side("b", {"dyck": b}, tasks=tasks), tasks=tasks).tasks

    assert (found.paired.wins, found.paired.losses) == (20, 5)
    assert found.paired.p_value == pytest.approx(stats.binomtest(20, 25).pvalue)
    assert (found.a.value, found.b.value, found.n, found.left_out, found.absent) == (0.7, 0.55, 100, 0, 0)
    assert found.verdict == "better"
    assert found.category == "logic"


def test_items_that_either_side_was_trained_on_do_not_count():
    tasks = {"dyck": quiz("dyck")}
    keys = [key_of(item) for item in tasks["dyck"].items]
    a = side("a", {"dyck": [1] * 100}, tasks=tasks, seen=keys[:20])
    b = side("b", {"dyck": [0] * 50 + [1] * 50}, tasks=tasks, seen=keys[10:50])
    (found,) = compare(a, b, tasks=tasks).tasks

    assert (found.n, found.left_out) == (50, 50)
    assert found.b.value == 1.0
    assert found.a.chance == 0.5  # of the fifty that are left, with two choices each
    assert found.verdict == "no difference shown"


def test_items_that_are_left_out_of_the_outcomes_already_are_counted_as_absent():
    tasks = {"dyck": quiz("dyck")}
    full = side("a", {"dyck": [1, 0] * 50}, tasks=tasks)
    outcomes = full.outcomes["dyck"]
    fewer = Outcomes(outcomes.keys[:5:-1], {"acc": outcomes.values["acc"][:5:-1]})
    (found,) = compare(full, Side("b", "b" * 64, {"dyck": fewer}), tasks=tasks).tasks

    assert (found.n, found.absent, found.left_out) == (94, 6, 0)
    assert (found.paired.wins, found.paired.losses) == (0, 0)


def test_of_many_tasks_without_a_difference_one_is_seldom_called_better():
    """Twenty tasks of equal models, fifteen times: a plain p would find about one each time."""
    rng = np.random.default_rng(17)
    tasks = {f"t{place}": quiz(f"t{place}", n=200) for place in range(20)}
    plain = corrected = 0
    for _ in range(15):
        a, b = (
            side(name, {task: rng.random(200) < 0.5 for task in tasks}, tasks=tasks) for name in ("a", "b")
        )  # fmt: skip
        found = compare(a, b, tasks=tasks).tasks
        plain += any(one.paired.p_value < 0.05 for one in found)
        corrected += any(one.verdict != "no difference shown" for one in found)

    assert plain >= 4
    assert corrected <= 2


def test_the_one_problem_comes_first_and_keeps_its_own_p_value():
    tasks = {name: quiz(name) for name in ("dyck", "ordering", "problem")}
    a, b = [1] * 12 + [0] * 88, [0] * 12 + [1] * 2 + [0] * 86
    sides = [side(name, dict.fromkeys(tasks, v), tasks=tasks) for name, v in (("a", a), ("b", b))]
    problem, *others = compare(sides[0], sides[1], tasks=tasks).tasks

    assert problem.task == "problem"
    assert problem.holm_p == problem.paired.p_value == pytest.approx(stats.binomtest(12, 14).pvalue)
    assert [one.holm_p for one in others] == pytest.approx([2 * problem.paired.p_value] * 2)
    assert problem.verdict == "better"


def test_what_cannot_be_compared_is_said_with_its_reason():
    tasks = {"dyck": quiz("dyck"), "problem": quiz("problem"), "coding": quiz("coding")}
    all_seen = [key_of(item) for item in tasks["dyck"].items]
    a = side("a", {"dyck": [1] * 100, "problem": [1] * 100}, tasks=tasks, seen=all_seen)
    b = side("b", {"dyck": [1] * 100}, tasks=tasks, failures={"problem": "no such table", "ordering": "no cores"})
    found = compare(a, b, tasks=tasks)

    assert found.tasks == ()
    assert found.missing == {
        "problem": "b: no such table",
        "dyck": "all 100 items are of documents that a model was trained on",
        "coding": "a: was not asked; evaluate it on this task",
        "ordering": "b: no cores",
    }
    assert "4 tasks could not be compared" in found.sentence()


def test_rows_are_plain_and_their_texts_are_not_the_items():
    items = tuple(Question(f"secret {place}", ("secret",)) for place in range(30))
    tasks = {"problem": Task("problem", kind="generation", items=items, metric="f1")}
    keys = tuple(map(key_of, items))
    rng = np.random.default_rng(1)
    base = rng.random(30)
    a = Side("a", "a" * 64, {"problem": Outcomes(keys, {"f1": tuple(base)})})
    b = Side("b", "b" * 64, {"problem": Outcomes(keys, {"f1": tuple(base / 2)})})
    (row,) = compare(a, b, tasks=tasks).to_rows()

    assert row["difference"] == pytest.approx(base.mean() / 2)
    assert row["verdict"] == "better"
    assert "secret" not in json.dumps(row)
    nan = Side("b", "b" * 64, {"problem": Outcomes(keys, {"f1": (math.nan,) * 30})})
    (row,) = compare(a, nan, tasks=tasks).to_rows()
    assert row["b"] is None
    assert row["verdict"] == "no difference shown"
