"""What a model is asked once and looked up ever after; documents that it was trained on do not count."""

from collections.abc import Mapping
from dataclasses import replace

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from tessera.errors import FormatError, PromptError
from tessera.evaluate import examination, score_table
from tessera.evaluate.examination import ask_here, examine_all
from tessera.evaluate.gauntlet import Failure
from tessera.evaluate.task import Choices, Outcomes, Passage, Task, key_of
from tessera.home import Home
from tessera.train import seen

ITEMS = tuple(Choices(((f"q {i}", " a"), (f"q {i}", " b")), gold=i % 2, doc_id=f"d{i}") for i in range(10))
TASK = Task("t", kind="multiple_choice", items=ITEMS, category="logic")


def knowing(task: Task) -> Outcomes:
    """Right on every third item."""
    right = tuple(float(int(item.pairs[0][0].split()[1]) % 3 == 0) for item in task.items)
    keys = tuple(map(key_of, task.items))
    return Outcomes(keys=keys, values={"acc": right, "acc_norm": right[::-1]}, tokens=7, seconds=0.5)


class Asked:
    """Counts what a model is asked."""

    def __init__(self) -> None:
        self.tasks: list[str] = []

    def __call__(self, tasks: Mapping[str, Task]) -> dict[str, Outcomes | Failure]:
        self.tasks += tasks
        return {name: Failure("too long") if name == "long" else knowing(task) for name, task in tasks.items()}


@pytest.fixture
def home(tmp_path) -> Home:
    return Home(tmp_path)


def do(home: Home, tasks, ask, *, weights="w", run="", start=False, fresh=False):
    return examine_all(home, tasks=tasks, weights_sha256=weights, run=run, document_start=start, ask=ask, fresh=fresh)


def trained_on(home: Home, run: str, doc_ids: list[str]) -> None:
    rows = [{"run": run, "run_id": "r", "shard_set": "s", "doc_id": one, "source": "x", "times": 1, "first_step": 1}
            for one in doc_ids]  # fmt: skip
    write_deltalake(seen.path(home), pa.Table.from_pylist(rows), mode="append")


def test_a_model_is_asked_once_whatever_the_order_name_and_category(home: Home) -> None:
    ask = Asked()
    first = do(home, {"t": TASK}, ask)
    other = replace(TASK, name="renamed", category="x", items=ITEMS[::-1])

    again = do(home, {"renamed": other}, ask)

    assert ask.tasks == ["t"]
    assert again.outcomes["renamed"].keys == tuple(map(key_of, other.items))
    assert again.outcomes["renamed"].values["acc"] == knowing(other).values["acc"]
    assert again.scores["renamed"].value == first.scores["t"].value == 0.4
    (row,) = score_table.newest(home)
    assert (row["task"], row["n"], row["value"], row["tokens"]) == ("t", 10, 0.4, 7)


def test_it_is_asked_again_for_other_weights_items_or_beginnings_and_when_told_to(home: Home) -> None:
    ask = Asked()
    do(home, {"t": TASK}, ask)
    do(home, {"t": TASK}, ask, weights="v")
    do(home, {"t": replace(TASK, items=ITEMS[:9])}, ask)
    do(home, {"t": TASK}, ask, start=True)
    do(home, {"t": TASK}, ask, fresh=True)
    do(home, {"t": TASK}, ask)
    assert ask.tasks == ["t"] * 5


def test_only_scores_of_the_newest_items_of_a_task_are_listed(home: Home) -> None:
    do(home, {"t": TASK}, Asked(), weights="old")
    do(home, {"t": TASK}, Asked(), weights="both")
    changed = replace(TASK, items=ITEMS[:9])
    do(home, {"t": changed}, Asked(), weights="both")
    do(home, {"t": changed}, Asked(), weights="new")

    assert [(row["weights_sha256"], row["n"]) for row in score_table.newest(home)] == [("both", 9), ("new", 9)]


def test_a_task_without_a_score_stops_no_other(home: Home) -> None:
    tasks = {"gone": Failure("no such file"), "long": replace(TASK, name="long", items=ITEMS[:3]), "t": TASK}

    found = do(home, tasks, Asked())

    assert {name: one.why for name, one in found.failures.items()} == {"gone": "no such file", "long": "too long"}
    assert [*found.scores] == ["t"]
    assert [row["task"] for row in score_table.newest(home)] == ["t"]


def test_documents_that_the_run_was_trained_on_do_not_count(home: Home) -> None:
    trained_on(home, "run-1", ["d0", "d3", "d4"])
    trained_on(home, "run-2", [item.doc_id for item in ITEMS])

    one = do(home, {"t": TASK}, Asked(), run="runs/run-1")
    none = do(home, {"t": TASK}, Asked(), run="runs/run-2")

    assert (one.scores["t"].n, one.left_out, one.scores["t"].value) == (7, {"t": 3}, pytest.approx(2 / 7))
    assert one.seen == {key_of(ITEMS[place]) for place in (0, 3, 4)}
    assert one.task_scores()["t"].left_out == 3
    assert none.failures["t"].why == "all 10 items are of documents that the model was trained on"
    assert do(home, {"t": TASK}, Asked(), run="runs/other").scores["t"].n == 10


def test_no_text_reaches_the_table_or_its_log(home: Home) -> None:
    task = Task("p", kind="perplexity", items=(Passage("a very private text", doc_id="d"),))
    did = Outcomes(keys=tuple(map(key_of, task.items)), values={"bits_per_byte": (2.0,)}, weights=(19.0,))

    do(home, {"p": task}, lambda tasks: {"p": did})

    held = b"".join(path.read_bytes() for path in (home.tables / "scores").rglob("*") if path.is_file())
    assert b"private" not in held
    assert b"private" not in str(DeltaTable(home.tables / "scores").to_pyarrow_table().to_pylist()).encode()


def test_a_newer_format_is_refused(home: Home, monkeypatch) -> None:
    monkeypatch.setattr(score_table, "FORMAT", 9)
    do(home, {"t": TASK}, Asked())
    monkeypatch.setattr(score_table, "FORMAT", 1)
    with pytest.raises(FormatError, match="tables/scores has format 9"):
        do(home, {"t": TASK}, Asked())


def test_a_question_that_does_not_fit_is_a_failure_with_its_reason(monkeypatch) -> None:
    def examine(subject, task):
        if task.name == "long":
            raise PromptError("a continuation has 9 tokens; the model takes at most 3")
        return knowing(task)

    monkeypatch.setattr(examination.outcomes, "examine", examine)

    found = ask_here({"long": replace(TASK, name="long"), "t": TASK}, subject=lambda: None)

    assert found["long"] == Failure("a continuation has 9 tokens; the model takes at most 3")
    assert found["t"].seconds < 0.5  # its own time
