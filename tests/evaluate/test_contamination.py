"""Benchmark items in the training split: what was planted is found, what was not is not."""

import random
import re
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from tessera.evaluate import contamination
from tessera.evaluate.contamination import find
from tessera.evaluate.task import Choices, Completion, Passage, Program, Question, Task, key_of

WORDS = [f"{a}{b}" for a in "bcdfghjklmnprst" for b in ("ala", "evo", "iru", "opa", "une", "ylt")]


def text(*, seed: object, words: int) -> str:
    return " ".join(random.Random(str(seed)).choices(WORDS, k=words))


def table(folder: Path, *, train=(), heldout=(), rows=()) -> Path:
    """A table of documents, as far as they are looked at."""
    given = [{"split": "train", "text": one} for one in train] + [{"split": "heldout", "text": one} for one in heldout]
    schema = pa.schema([
        ("split", pa.string()), ("text", pa.string()),
        ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("prompt", pa.string()), ("chosen", pa.string()), ("rejected", pa.string()),
    ])  # fmt: skip
    write_deltalake(folder / "documents", pa.Table.from_pylist([*given, *rows], schema=schema), mode="overwrite")
    return folder / "documents"


def questions(n: int, *, words: int) -> Task:
    """Each with a template around its own words."""
    prompts = [f"Question: {text(seed=f'q{i}', words=words)}?\nAnswer:" for i in range(n)]
    items = tuple(Question(prompt, (text(seed=f"a{i}", words=2),)) for i, prompt in enumerate(prompts))
    return Task("questions", kind="generation", items=items)


def own(item: Question) -> str:
    return re.fullmatch(r"Question: (.*)\?\nAnswer:", item.prompt)[1]


@pytest.mark.parametrize("words", [40, 13, 9, 6])
def test_planted_items_are_reported_and_no_others(tmp_path: Path, words) -> None:
    task = questions(30, words=words)
    planted = {3, 17, 29}
    train = [
        f"{text(seed=i, words=50)} {own(item).upper().replace(' ', ', ') if i in planted else ''}. And on."
        for i, item in enumerate(task.items)
    ]
    path = table(tmp_path, train=train, heldout=[item.prompt for item in task.items])

    found = find({"questions": task}, documents=path, version=0)

    assert found["questions"].keys == tuple(key_of(task.items[at]) for at in sorted(planted))
    assert (found["questions"].items, found["questions"].found, found["questions"].too_short) == (30, 3, 0)


def test_a_run_of_thirteen_words_is_enough_and_one_of_twelve_is_not(tmp_path: Path) -> None:
    task = questions(10, words=40)
    words = [own(item).split() for item in task.items]
    train = [
        " ".join(words[2][20:33]),
        " ".join(words[5][20:32]),
        " ".join([*words[7][5:15], "other", *words[7][15:25]]),
    ]
    path = table(tmp_path, train=train)

    assert find({"t": task}, documents=path, version=0)["t"].keys == (key_of(task.items[2]),)
    assert find({"t": task}, documents=path, version=0, words=10)["t"].found == 3


def test_a_short_item_is_found_whole_only(tmp_path: Path) -> None:
    task = questions(10, words=8)
    words = [own(item).split() for item in task.items]
    path = table(tmp_path, train=[" ".join(words[1][:7]), " ".join(words[2][1:]), " ".join(words[4])])

    assert find({"t": task}, documents=path, version=0)["t"].keys == (key_of(task.items[4]),)


def test_items_of_few_words_are_counted_as_such(tmp_path: Path) -> None:
    task = questions(10, words=3)
    sums = Task("sums", kind="language_modeling", items=tuple(Completion(f"{i} + 1 =", f" {i + 1}") for i in range(9)))
    path = table(tmp_path, train=[item.prompt for item in task.items] + [f"{i} + 1 = {i + 1}" for i in range(9)])

    found = find({"t": task, "sums": sums}, documents=path, version=0)

    assert [(one.found, one.too_short, one.items) for one in found.values()] == [(0, 10, 10), (0, 9, 9)]


def test_a_template_in_the_training_data_is_no_item(tmp_path: Path) -> None:
    """Neither what all prompts begin with, nor solved examples that almost all share."""
    told = text(seed="template", words=20)
    shots = [text(seed=f"shots{i}", words=30) for i in range(2)]
    items = tuple(
        Completion(f"{told}\n{shots[i == 4]}\n{text(seed=i, words=15)}", f" {text(seed=-i, words=1)}")
        for i in range(12)
    )
    path = table(tmp_path, train=[told, shots[0], text(seed=8, words=15)])

    assert find({"t": Task("t", kind="language_modeling", items=items)}, documents=path, version=0)["t"].keys == (
        key_of(items[8]),
    )


def test_every_kind_of_item_and_of_document_is_looked_at(tmp_path: Path) -> None:
    long = {name: text(seed=name, words=20) for name in ("choices", "schema", "passage", "test", "wrong", "question")}
    context = "what comes after"
    tasks = {
        "choices": Choices(((context, f" {long['wrong']}"), (context, f" {long['choices']}")), gold=1),
        "schema": Choices(((long["schema"], " yes"), (long["wrong"], " yes")), gold=0),
        "passage": Passage(long["passage"]),
        "test": Program("def f(): pass", f"'''{long['test']}'''"),
        "wrong": Choices(((context, f" {long['wrong']}"), (context, " no")), gold=1),
        "question": Question(long["question"], ("yes",)),
    }
    kinds = ("multiple_choice", "schema", "perplexity", "code", "multiple_choice", "generation")
    rows = [
        {
            "split": "train",
            "messages": [{"role": "user", "content": "ask"}, {"role": "assistant", "content": long["choices"]}],
        },
        {"split": "train", "prompt": long["schema"], "chosen": long["passage"], "rejected": long["test"]},
        {"split": "train", "text": long["wrong"]},
        {"split": "heldout", "text": long["question"]},
    ]
    path = table(tmp_path, rows=rows)

    asked = {
        name: Task(name, kind=kind, items=(item,)) for (name, item), kind in zip(tasks.items(), kinds, strict=True)
    }
    found = find(asked, documents=path, version=0)

    assert {name: one.found for name, one in found.items()} == {
        "choices": 1, "schema": 1, "passage": 1, "test": 1, "wrong": 0, "question": 0,
    }  # fmt: skip


def test_the_version_that_is_named_is_read(tmp_path: Path) -> None:
    task = questions(5, words=20)
    table(tmp_path, train=["nothing of it"])
    path = table(tmp_path, train=[task.items[0].prompt])

    assert [find({"t": task}, documents=path, version=version)["t"].found for version in (0, 1)] == [0, 1]


def test_batches_and_tasks_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a search for every run of words in every document, as text."""
    draw = random.Random(5)
    train = [text(seed=i, words=draw.randint(3, 60)) for i in range(200)]
    items = []
    for number in range(80):
        cut = draw.randint(0, 10)
        piece = draw.choice(train).split()[cut : cut + draw.randint(5, 20)] if draw.random() < 0.6 else []
        items.append(Passage(" ".join([*piece, *text(seed=f"own{number}", words=draw.randint(0, 8)).split()])))
    path = table(tmp_path, train=train)
    expected = {key_of(item) for item in items if _stands_in(item.text.split(), train=train)}
    assert 10 < len(expected) < 50

    for size in (7, 2048):
        monkeypatch.setattr(contamination, "BATCH", size)
        halves = {str(at): Task("t", kind="perplexity", items=tuple(items[at::2])) for at in range(2)}
        found = find(halves, documents=path, version=0)
        assert {key for one in found.values() for key in one.keys} == expected


def test_nothing_to_look_for(tmp_path: Path) -> None:
    path = table(tmp_path, train=["a text"])

    assert find({}, documents=path, version=0) == {}
    assert find({"t": Task("t", kind="perplexity", items=())}, documents=path, version=0)["t"].items == 0


def _stands_in(words: list[str], *, train: list[str]) -> bool:
    if len(words) < 6:
        return False
    runs = [" ".join(words[at : at + 13]) for at in range(max(1, len(words) - 12))]
    return any(f" {run} " in f" {document} " for run in runs for document in train)
