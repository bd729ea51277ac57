"""The one problem: rows of a table as items, held-out ones only, whatever order they lie in."""

import hashlib
import random
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from tessera.errors import ConfigError, SourceError
from tessera.evaluate.problem import read_problem, read_rows
from tessera.evaluate.settings import ProblemSettings
from tessera.evaluate.source_rows import doc_id_of
from tessera.evaluate.task import Choices, Completion, Question, key_of
from tessera.home import Home

ROWS = [
    {"number": i, "subject": f"Subject {i}", "team": f"team {i % 7}", "lang": ("de", "en")[i % 2], "open": i % 3 == 0}
    for i in range(60)
]
GIVEN = {"table": "tickets", "id": "number", "prompt": "{subject}\nTeam:", "reference": "{team}"}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def written(home: Home, rows=ROWS, name: str = "tickets") -> Path:
    path = home.tables / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write_deltalake(path, pa.Table.from_pylist(rows), mode="overwrite")
    return path


def id_of(number: int, *, source: str = "tickets") -> str:
    return hashlib.sha256(f'{source}\n{{"number":{number}}}'.encode()).hexdigest()


HELDOUT = {id_of(number) for number in range(0, 60, 4)}


def problem(home: Home, heldout=HELDOUT, source=None, **given):
    return read_problem(ProblemSettings(**{**GIVEN, **given}), home=home, heldout=heldout, source=source)


def test_only_rows_of_held_out_documents_are_asked(home: Home) -> None:
    written(home)

    task = problem(home)

    assert (task.name, task.kind, task.primary) == ("problem", "generation", "f1")
    assert {item.doc_id for item in task.items} == HELDOUT
    assert {(item.prompt, item.answers) for item in task.items} == {
        (f"Subject {i}\nTeam:", (f"team {i % 7}",)) for i in range(0, 60, 4)
    }


def test_every_row_where_the_split_is_all(home: Home) -> None:
    written(home)

    with_id, without = problem(home, split="all"), problem(home, split="all", id=None)

    assert len(with_id.items) == len(without.items) == 60
    assert {item.doc_id for item in with_id.items} == {id_of(number) for number in range(60)}
    assert {item.doc_id for item in without.items} == {None}


def test_a_source_may_have_another_name_than_its_table(home: Home) -> None:
    written(home)
    heldout = {id_of(3, source="support")}

    assert [item.prompt for item in problem(home, heldout, source="support").items] == ["Subject 3\nTeam:"]
    with pytest.raises(SourceError, match="0 rows of it are of the split heldout"):
        problem(home, heldout)


@pytest.mark.parametrize(
    ("key", "canonical"),
    [
        ({"id": "a.b#2"}, '{"id":"a.b#2"}'),
        ({"id": 'Größe "1"/\\ \n\x1f'}, '{"id":"Größe \\"1\\"/\\\\ \\n\\u001F"}'),
        ({"z": 7, "a": "x"}, '{"a":"x","z":7}'),
        ({"id": True}, '{"id":true}'),
    ],
)
def test_ids_are_those_of_prepare(key, canonical) -> None:
    assert doc_id_of("docs", key=key) == hashlib.sha256(f"docs\n{canonical}".encode()).hexdigest()


def test_a_key_of_another_type_is_refused() -> None:
    with pytest.raises(ConfigError, match="id holds a float"):
        doc_id_of("docs", key={"id": 1.5})


def test_items_and_their_order_do_not_depend_on_the_rows_order(home: Home) -> None:
    written(home)
    first = {metric: problem(home, split="all", limit=20, metric=metric) for metric in ("f1", "choice")}

    written(home, random.Random(1).sample(ROWS, len(ROWS)))

    assert {metric: problem(home, split="all", limit=20, metric=metric) for metric in first} == first
    keys = [key_of(item) for item in problem(home, split="all", limit=60).items]
    assert keys == sorted(keys)
    assert keys[:20] == [key_of(item) for item in first["f1"].items]


def test_a_condition_fits_the_columns_type(home: Home) -> None:
    written(home)

    found = problem(home, split="all", where={"lang": "de", "open": "true"})

    assert {item.prompt for item in found.items} == {f"Subject {i}\nTeam:" for i in range(0, 60, 6)}
    assert len(problem(home, split="all", where={"number": "7"}).items) == 1
    with pytest.raises(ConfigError, match="where: number is of type int64"):
        problem(home, where={"number": "seven"})


def test_rows_without_a_reference_are_counted_and_equal_ones_asked_once(home: Home) -> None:
    rows = [{**ROWS[0], "team": None}, {**ROWS[1], "team": " \n"}, ROWS[2], {**ROWS[2], "number": 99}, ROWS[3]]
    written(home, rows)

    found = read_rows(ProblemSettings(**{**GIVEN, "split": "all"}), home=home, heldout=())

    assert (found.num_rows, found.num_without, len(found.pairs)) == (5, 2, 2)


def test_bits_per_byte_are_of_the_reference_after_the_prompt(home: Home) -> None:
    written(home)

    task = problem(home, metric="bits_per_byte")
    after_line = problem(home, metric="bits_per_byte", prompt="{subject}\n")

    assert (task.kind, task.primary, task.lower_is_better) == ("language_modeling", "bits_per_byte", True)
    assert Completion("Subject 8\nTeam:", " team 1", doc_id=id_of(8)) in task.items
    assert Completion("Subject 8\n", "team 1", doc_id=id_of(8)) in after_line.items


def test_a_choice_is_among_five_references_of_which_one_is_right(home: Home) -> None:
    rows = [*ROWS, {**ROWS[0], "number": 100, "team": "team 6"}]  # the first subject has two right teams
    written(home, rows)

    task = problem(home, split="all", metric="choice")

    assert task.kind == "multiple_choice"
    assert task.chance == pytest.approx(0.2)
    right = {(row["subject"], row["team"]) for row in rows}
    for item in task.items:
        assert isinstance(item, Choices)
        asked = [(context.partition("\n")[0], one.strip()) for context, one in item.pairs]
        assert [pair in right for pair in asked] == [at == item.gold for at in range(5)]
        assert len({one for _, one in asked}) == 5
    assert {item.gold for item in task.items} == {*range(5)}
    other = problem(home, split="all", metric="choice", seed=18)
    assert other.digest != task.digest


def test_too_few_references_for_a_choice_are_counted(home: Home) -> None:
    written(home, [row for row in ROWS if row["team"] in ("team 1", "team 2")])

    with pytest.raises(SourceError, match="2 different references, wanted 5"):
        problem(home, split="all", metric="choice")


def test_a_folder_and_a_version_can_be_named(home: Home) -> None:
    path = written(home)
    written(home, ROWS[:5])

    assert len(problem(home, table=str(path), split="all", version=0).items) == 60
    assert len(problem(home, table=str(path), split="all").items) == 5
    assert isinstance(problem(home, split="all").items[0], Question)


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"table": "none"}, SourceError, "none is no table of the home"),
        ({"reference": "{summary}"}, ConfigError, "the column summary; tickets has lang, number"),
        ({"id": "key"}, ConfigError, "the column key"),
        ({"id": None}, ConfigError, "needs id"),
        ({"where": {"lang": "fr"}}, SourceError, "no row of tickets can be asked: 0 rows"),
    ],
)
def test_what_is_wrong_is_named(home: Home, given, error, said) -> None:
    written(home)

    with pytest.raises(error, match=said):
        problem(home, **given)
