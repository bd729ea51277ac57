"""The gauntlet: the file as people write it, the means by hand, and nothing that is missing passed over."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.errors import ConfigError
from tessera.evaluate.gauntlet import Failure, read_gauntlet, summarise
from tessera.evaluate.settings import BUILT_IN, TaskSettings
from tessera.evaluate.task import Score

CONF = Path(__file__).parents[2] / "conf"
BOOLQ = TaskSettings(name="boolq", path="boolq.jsonl", category="understanding")


def score(value, *, chance=0.25, low=None, metric="acc"):
    return Score(metric, value, low=value - 0.05 if low is None else low, high=value + 0.05, n=100, chance=chance)


def written(tmp_path, text):
    path = tmp_path / "gauntlet.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_file_that_we_give_holds_every_built_in_benchmark_once():
    gauntlet = read_gauntlet(CONF / "gauntlet.yaml")

    assert sorted(gauntlet.names) == sorted(BUILT_IN)
    assert sorted(gauntlet.built_in) == sorted(BUILT_IN)
    assert list(gauntlet.categories) == ["reading", "knowledge", "logic"]


def test_its_examples_can_be_taken_out_of_their_comments(tmp_path):
    text = (CONF / "gauntlet.yaml").read_text(encoding="utf-8")
    lines = [line.replace("# ", "", 1) if line.startswith(("# tasks", "#   ", "  # un")) else line
             for line in text.splitlines()]  # fmt: skip
    gauntlet = read_gauntlet(written(tmp_path, "\n".join(lines)))

    assert gauntlet.categories["understanding"] == ("boolq", "winograd", "tickets")
    assert [task.shots for task in gauntlet.tasks] == [0, 0, 3]


def test_tasks_of_the_settings_join_by_name_or_category(tmp_path):
    path = written(tmp_path, "categories: {logic: [dyck, copa]}\ntasks: [{name: mine, path: m.jsonl, category: own}]\n")
    gauntlet = read_gauntlet(path, tasks=[BOOLQ, TaskSettings(name="copa", path="c.jsonl")])

    assert gauntlet.categories == {"logic": ("dyck", "copa"), "own": ("mine",), "understanding": ("boolq",)}
    assert [task.name for task in gauntlet.tasks] == ["mine"]
    assert gauntlet.built_in == ("dyck",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("categories: {logic: [dick]}", "logic names dick, which is no benchmark; did you mean dyck"),
        ("categories: {logic: [dyck], words: [dyck]}", "dyck stands in logic and in words"),
        ("categories: {logic: [dyck, dyck]}", "dyck stands in logic and in logic"),
        ("categories: {logic: []}", "logic is empty"),
        ("categories: {overall: [dyck]}", "called overall"),
        ("tasks: []", "found no category"),
        ("categorys: {logic: [dyck]}", "unknown key categorys; did you mean 'categories'"),
        ("categories: {logic: [dyck]}\ntasks: [{name: a, path: a, shot: 3}]", "tasks.0.shot; did you mean 'shots'"),
        ("categories: {logic: [dyck]}\ntasks: [{name: a}]", "give path or table"),
        ("categories: {logic: [dyck]}\ntasks: [{name: a, path: a}]", "a stands in no category"),
        ("tasks: [{name: a, path: a, category: c, metric: nats}]", "a is measured in nats, which is no accuracy"),
        ("tasks: [{name: a, path: a, category: c, kind: perplexity}]", "a is measured in bits_per_byte"),
    ],
)
def test_a_wrong_file_is_refused_with_what_is_wrong(tmp_path, text, said):
    with pytest.raises(ConfigError, match=r"gauntlet\.yaml") as refusal:
        read_gauntlet(written(tmp_path, text))

    assert said in str(refusal.value)


def test_a_benchmark_counts_what_is_above_chance():
    found = summarise(
        {"reading": ["a", "b"], "logic": ["c"]},
        {"a": score(0.625, chance=0.25), "b": score(1.0, chance=0.5), "c": score(0.1, chance=0.2)},
    )

    assert [one.value for one in found.categories] == pytest.approx([(0.5 + 1) / 2, -0.125])
    assert found.overall == pytest.approx((0.75 - 0.125) / 2)
    assert found.values == {"reading": 0.75, "logic": pytest.approx(-0.125), "overall": pytest.approx(0.3125)}


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 0.99)), min_size=1, max_size=6))
def test_guessing_everywhere_is_zero_and_right_everywhere_is_one(pairs):
    names = [str(place) for place in range(len(pairs))]
    chances = dict(zip(names, (chance for _, chance in pairs), strict=True))

    assert summarise({"c": names}, {n: score(chances[n], chance=chances[n]) for n in names}).overall == 0
    assert summarise({"c": names}, {n: score(1.0, chance=chances[n]) for n in names}).overall == pytest.approx(1)


@pytest.mark.parametrize(
    ("given_", "why"),
    [
        ({}, "not run"),
        ({"b": Failure("no such table")}, "no such table"),
        ({"b": score(float("nan"))}, "its acc is nan"),
        ({"b": score(1.0, chance=1.0)}, "chance is 1"),
    ],
)
def test_a_missing_benchmark_makes_its_category_incomplete_and_the_whole(given_, why):
    found = summarise({"reading": ["a", "b"], "logic": ["c"]}, {"a": score(0.9), "c": score(0.5), **given_})
    said = list(found.sentences())

    assert found.values == {"reading": None, "logic": pytest.approx(1 / 3), "overall": None}
    assert list(found.missing) == ["b"]
    assert why in found.missing["b"]
    assert f"reading: incomplete (b: {found.missing['b']})" in said
    assert "overall: incomplete (reading)" in said


def test_what_is_not_above_chance_is_said():
    found = summarise({"logic": ["dyck", "ordering"]}, {"dyck": score(0.28), "ordering": score(0.4)})
    said = [line for line in found.sentences() if "chance" in line]

    assert said == ["dyck is not above chance: acc 0.280 (0.230 to 0.330, 100 items), chance 0.250"]


@pytest.mark.parametrize("metric", ["nats", "bits_per_byte"])
def test_what_is_no_accuracy_is_refused_by_name(metric):
    with pytest.raises(ConfigError, match=f"tickets is measured in {metric}.*take it out of own"):
        summarise({"own": ["tickets"]}, {"tickets": score(1.2, metric=metric)})
