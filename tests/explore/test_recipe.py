import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.explore.recipe import differing, mask, recipe_of, short_names


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://user:hunter2@host/x", "https://***@host/x"),
        ("postgresql+pg8000://mlflow:hunter2@db:5432/x", "postgresql+pg8000://***@db:5432/x"),
        ("https://hunter2@host", "https://***@host"),
        ("s3://u:hunt/er2@bucket/t", "s3://u:***@bucket/t"),
        ("jdbc:x://host/d?user=u&password=hunter2&ssl=true", "jdbc:x://host/d?user=u&password=***&ssl=true"),
        ("https://a.b/c?sv=1&sig=hunter2", "https://a.b/c?sv=1&sig=***"),
        ("['https://u:hunter2@a', 'https://u:hunter2@b']", "['https://***@a', 'https://***@b']"),
    ],
)
def test_passwords_are_masked(text, shown):
    assert "hunter2" not in shown
    assert mask(text) == shown


@pytest.mark.parametrize("text", ["0.012", "docs@3", "tables/docs@3", "s3://bucket/table@3", "models:/x@champion", ""])
def test_what_is_no_password_stays(text):
    assert mask(text) == text


def test_only_what_can_change_a_result_is_recipe():
    params = {"train.steps": "3", "spark.master": "local", "tracking.uri": "u", "serve.port": "1", "shard.seq_len": "8"}
    tags = {"tessera.code": "c", "tessera.fingerprint": "f"}

    assert recipe_of(params, tags=tags) == {"train.steps": "3", "shard.seq_len": "8", "tessera.code": "c"}


def test_a_setting_differs_when_two_runs_have_two_values():
    recipes = [{"a": "1", "b": "1", "new": "1"}, {"a": "1", "b": "2", "new": "1"}, {"a": "1", "b": "1"}]

    assert differing(recipes) == ["b"]
    assert differing([]) == []


keys = st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map(".".join), unique=True, max_size=8)


@given(keys)
def test_short_names_are_ends_and_unique(found):
    names = short_names(found)

    assert len(set(names.values())) == len(found)
    assert all(f".{key}".endswith(f".{name}") for key, name in names.items())


def test_a_short_name_is_as_short_as_it_can_be():
    names = short_names(["train.steps", "train.model.width", "train.seed", "shard.seed"])

    assert list(names.values()) == ["steps", "width", "train.seed", "shard.seed"]
