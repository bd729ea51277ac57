"""Benchmarks from files and tables: the formats that the field has, and what is wrong with a row."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from tessera.errors import ConfigError, SourceError
from tessera.evaluate.settings import TaskSettings
from tessera.evaluate.task import Choices, Completion, Passage, Program, Question
from tessera.evaluate.task_files import read_task
from tessera.home import Home

SHARED = Path(__file__).parents[3] / "shared" / "data" / "eval"
NEEDED = pytest.mark.skipif(not SHARED.is_dir(), reason="the evaluation files of shared/data are not here")
CHOICES = [{"query": f"Question {i}", "choices": ["no", "yes", f"maybe {i}"], "gold": i % 3} for i in range(6)]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def written(folder: Path, rows, name: str = "task.jsonl") -> str:
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(folder / name)


def task_of(home: Home, rows, **given):
    path = written(home.root.parent, rows)
    return read_task(TaskSettings(name="t", path=path, **given), home=home)


def test_multiple_choice(home: Home) -> None:
    task = task_of(home, CHOICES, category="logic")

    assert (task.kind, task.category, task.primary, len(task.items)) == ("multiple_choice", "logic", "acc", 6)
    assert task.items[4] == Choices(
        (("Question 4", " no"), ("Question 4", " yes"), ("Question 4", " maybe 4")), gold=1
    )  # fmt: skip
    assert task.chance == pytest.approx(1 / 3)


def test_the_other_kinds(home: Home) -> None:
    schema = {"context_options": ["A because A", "A because B"], "continuation": "left.", "gold": 1}
    assert task_of(home, [schema]).items == (
        Choices((("A because A", " left."), ("A because B", " left.")), gold=1),
    )  # fmt: skip
    modelling = {"context": "2+2=", "continuation": "4", "doc_id": "d"}
    assert task_of(home, [modelling], delimiter="").items == (Completion("2+2=", "4", doc_id="d"),)
    question = {"context": "How many?", "answer": "18", "aliases": ["18", "eighteen"], "chain_of_thought": "..."}
    task = task_of(home, [question], metric="last_number", max_tokens=9, stop=["Q:"], temperature=0.5, seed=3)
    assert task.items == (Question("How many?", ("18", "eighteen")),)
    assert (task.primary, task.decoding.max_tokens, task.decoding.stop) == ("last_number", 9, ("Q:",))
    program = {"prompt": "def f():", "test": "assert f()", "entry_point": "f", "task_id": "x"}
    task = task_of(home, [program], samples=5, ks=[1, 5], temperature=0.8, metric="pass_at_5")
    assert task.items == (Program("def f():", "assert f()", "f"),)
    assert task_of(home, [{"text": "some text"}]).items == (Passage("some text"),)


def test_solved_examples_are_others_and_the_same_for_almost_all(home: Home) -> None:
    task = task_of(home, CHOICES, shots=2, shot_delimiter="\n--\n")

    beginnings = []
    for place, item in enumerate(task.items):
        *shots, own = item.pairs[0][0].split("\n--\n")
        assert own == f"Question {place}"
        assert len(shots) == 2
        assert all(not shot.startswith(own) for shot in shots)
        assert all(shot in [f"{row['query']} {row['choices'][row['gold']]}" for row in CHOICES] for shot in shots)
        beginnings.append(tuple(shots))
    assert max(beginnings.count(one) for one in beginnings) == 4
    assert task.items != task_of(home, CHOICES, shots=2, shot_delimiter="\n--\n", seed=18).items
    assert task == task_of(home, CHOICES, shots=2, shot_delimiter="\n--\n")


def test_a_template_and_a_limit(home: Home) -> None:
    rows = [{**row, "topic": f"t{i}"} for i, row in enumerate(CHOICES)]
    task = task_of(home, rows, prompt="[{topic}] {query}\nAnswer:", limit=2, shots=1)

    assert len(task.items) == 2
    assert task.items[1].pairs[0][0].endswith("\n\n[t1] Question 1\nAnswer:")
    with pytest.raises(SourceError, match="names tpic; the columns are choices, gold, query, topic"):
        task_of(home, rows, prompt="{tpic}")


def test_a_table_at_a_version(home: Home) -> None:
    for first in (0, 3):
        write_deltalake(home.tables / "facts", pa.Table.from_pylist(CHOICES[first : first + 3]), mode="overwrite")

    old = read_task(TaskSettings(name="facts", table="facts", version=0), home=home)
    new = read_task(TaskSettings(name="facts", path=str(home.tables / "facts")), home=home)

    assert sorted(item.pairs[0][0] for item in old.items) == ["Question 0", "Question 1", "Question 2"]
    assert sorted(item.pairs[0][0] for item in new.items) == ["Question 3", "Question 4", "Question 5"]


def test_paths_are_looked_for_near_the_gauntlet_first(home: Home, tmp_path: Path, monkeypatch) -> None:
    near, here = tmp_path / "conf", tmp_path / "work"
    for folder, text in ((near, "near"), (here, "here")):
        folder.mkdir()
        written(folder, [{"text": text}])
    monkeypatch.chdir(here)

    assert read_task(TaskSettings(name="t", path="task.jsonl"), home=home, near=near).items == (Passage("near"),)
    assert read_task(TaskSettings(name="t", path="task.jsonl"), home=home).items == (Passage("here"),)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "has no rows"),
        (['{"query": "x"'], "line 1 is not JSON"),
        ([CHOICES[0], "[1]"], "line 2 holds a list"),
        ([{"question": "x"}], "the keys question are of no kind of task"),
        ([CHOICES[0], {"query": "x", "choices": ["a", "b"]}], "row 2 has no gold"),
        ([{"query": "x", "choices": ["a", "b"], "gold": 2}], "gold is 2, wanted the place of a choice, 0 to 1"),
        ([{"query": "x", "choices": ["a", "b"], "gold": -1}], "gold is -1"),
        ([{"query": "x", "choices": ["a", "b"], "gold": True}], "gold is True"),
        ([{"query": "x", "choices": ["a", "b"], "gold": "a"}], "gold is str"),
        ([{"query": "x", "choices": ["a"], "gold": 0}], "no list of at least two texts"),
        ([{"query": 3, "choices": ["a", "b"], "gold": 0}], "query is a int, wanted text"),
        ([{"text": None}], "has no text|of no kind"),
    ],
)
def test_bad_rows_are_named_without_their_text(home: Home, rows, said: str) -> None:
    with pytest.raises(SourceError, match=said):
        task_of(home, rows)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"shots": 6}, "6 solved examples out of 6 rows"),
        ({"metric": "f1"}, "metric f1 is none of multiple_choice's: acc, acc_norm"),
    ],
)
def test_settings_that_fit_no_such_rows(home: Home, given, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        task_of(home, CHOICES, **given)


def test_an_absent_file_and_another_encoding(home: Home, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="is no file and no table"):
        read_task(TaskSettings(name="t", path="absent.jsonl"), home=home)
    (tmp_path / "latin.jsonl").write_bytes('{"text": "größe"}'.encode("latin-1"))
    with pytest.raises(SourceError, match=r"is not UTF-8 \(byte 12\)"):
        read_task(TaskSettings(name="t", path=str(tmp_path / "latin.jsonl")), home=home)


def test_a_digest_knows_items_and_decoding_and_nothing_else(home: Home) -> None:
    one = task_of(home, CHOICES)
    assert one.digest == task_of(home, CHOICES[::-1], category="x", metric="acc_norm").digest
    assert one.digest != task_of(home, CHOICES[:5]).digest
    questions = [{"context": "x", "answer": "y"}]
    assert task_of(home, questions).digest != task_of(home, questions, max_tokens=3).digest


@NEEDED
@pytest.mark.parametrize(
    ("name", "kind", "rows", "chance"),
    [
        ("arc_easy", "multiple_choice", 2376, 0.25),
        ("boolq", "multiple_choice", 3270, 0.5),
        ("copa", "multiple_choice", 100, 0.5),
        ("winograd_wsc", "schema", 273, 0.5),
        ("lambada_openai", "language_modeling", 5153, 0.0),
        ("bigbench_dyck_languages", "language_modeling", 1000, 0.0),
        ("gsm8k", "generation", 1319, 0.0),
    ],
)
def test_real_files(home: Home, name: str, kind: str, rows: int, chance: float) -> None:
    task = read_task(TaskSettings(name=name, path=str(SHARED / f"{name}.jsonl")), home=home)

    assert (task.kind, len(task.items)) == (kind, rows)
    assert task.chance == pytest.approx(chance, abs=0.01)
