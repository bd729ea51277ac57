"""A challenger, the champion and the gate: on a real small set, without Spark and without a registry."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from deltalake import write_deltalake

from tessera.errors import ConfigError
from tessera.evaluate import card, gathering, score_table, stage
from tessera.evaluate.card import Card
from tessera.evaluate.gathering import Gathering, read_documents
from tessera.evaluate.gauntlet import Failure
from tessera.evaluate.rival import Rival
from tessera.evaluate.settings import EvaluateSettings, GateSettings
from tessera.home import Home
from tessera.lineage import TableVersion, sha256_file
from tessera.model import build
from tessera.model.loss import causal_nats
from tessera.shard import tokenizer
from tessera.train.run import RunResult

from .test_scoring import doc_id, made, make_texts, write_spec  # noqa: F401

GATE = GateSettings(max_bits_per_byte=20.0, beat=[], not_worse=[{"task": "heldout", "margin": 0.05}])


@pytest.fixture(scope="module")
def better(made, tmp_path_factory):  # noqa: F811
    """The checkpoint of a model that has learned from the training texts."""
    checkpoint = made.home.resolve(made.train.checkpoint)
    folder = made.run.checkpoints / "step-00000009"
    model, loaded = build.load(checkpoint), tokenizer.load(checkpoint)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for text in made.texts["train"][:60]:
        ids = [loaded.end_id, *loaded.encode_batch([text])[0], loaded.end_id]
        length = len(ids) - 1
        batch = {
            "input_ids": torch.tensor([ids[:-1]]), "labels": torch.tensor([ids[1:]]),
            "position_ids": torch.arange(length)[None], "document_ids": torch.zeros(1, length, dtype=torch.int64),
        }  # fmt: skip
        optimizer.zero_grad()
        (causal_nats(model, batch) / length).backward()
        optimizer.step()
    folder.mkdir()
    for file in checkpoint.iterdir():
        if "token" in file.name:
            (folder / file.name).write_bytes(file.read_bytes())
    build.export(model.eval(), folder=folder)
    write_spec(made.run, steps=8)
    return made.train.model_copy(
        update={
            "checkpoint": made.home.relative(folder), "weights_sha256": sha256_file(folder / "model.safetensors"),
            "fingerprint": "better",
        }
    )  # fmt: skip


def rival(made, train, name="docs version 1") -> Rival:  # noqa: F811
    return Rival(name, train.weights_sha256, train.run, checkpoint=lambda: made.home.resolve(train.checkpoint))


def gathered(made, settings, conf: Path) -> Gathering:  # noqa: F811
    return Gathering(made.home, settings=settings, documents=made.prepare.table, sources=[], conf=conf)


def test_a_worse_challenger_is_refused_with_the_reason_and_a_better_one_passes(made, better, tmp_path) -> None:  # noqa: F811
    settings = EvaluateSettings(batch_size=3, gate=GATE)
    tasks = gathered(made, settings, tmp_path)

    worse = made.evaluate(settings=settings, tasks=tasks, champion=rival(made, better))
    good = made.evaluate(settings=settings, train=better, tasks=tasks, champion=rival(made, made.train))

    assert worse.scores["heldout"].value > good.scores["heldout"].value + 0.5
    assert worse.scores["heldout"].n == 40
    assert (worse.passed, good.passed) == (False, True)
    assert "is not above -0.05, the margin (40 items)" in worse.reasons[-1]
    assert "docs version 1" in worse.reasons[-1]
    assert (worse.met, good.met) == (better.weights_sha256, made.train.weights_sha256)
    page = (made.home.reports / "against-champion.html").read_text()
    assert "docs version 1" in page
    assert not any(text in page for text in made.texts["heldout"])


def test_a_verdict_holds_while_its_champion_is_champion_or_it_is_itself(made, better, tmp_path) -> None:  # noqa: F811
    settings = EvaluateSettings(batch_size=3, gate=GATE)
    tasks = gathered(made, settings, tmp_path)
    first = made.evaluate(settings=settings, tasks=tasks)

    assert first.met == ""
    assert first.reasons[-1] == "heldout: there is no champion yet"
    assert stage.verify(first, home=made.home)
    assert stage.verify(first, home=made.home, champion=rival(made, made.train))
    assert not stage.verify(first, home=made.home, champion=rival(made, better))


def test_a_champion_that_was_asked_before_is_not_loaded_again(made, better, tmp_path) -> None:  # noqa: F811
    settings = EvaluateSettings(batch_size=3, gate=GATE)
    tasks = gathered(made, settings, tmp_path)
    made.evaluate(settings=settings, tasks=tasks, champion=rival(made, better))

    def gone() -> Path:
        raise AssertionError("its files are not needed")

    champion = Rival("docs version 1", better.weights_sha256, better.run, checkpoint=gone)
    assert not made.evaluate(settings=settings, tasks=tasks, champion=champion).passed


def test_tasks_scores_categories_and_failures_are_in_the_record(made, tmp_path) -> None:  # noqa: F811
    (tmp_path / "gauntlet.yaml").write_text("categories:\n  logic: [dyck, mine]\n  knowledge: [knowledge]\n")
    planted = made.texts["train"][0].rpartition(" ")
    rows = [
        {"query": planted[0], "choices": [planted[2], "other"], "gold": 0},
        {"query": "so new that nobody has ever seen it in any", "choices": ["document here", "other"], "gold": 1},
    ]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = EvaluateSettings(
        batch_size=3,
        gauntlet="gauntlet.yaml",
        items=12,
        gate=GateSettings(max_bits_per_byte=20, beat=[], at_least={"logic": 1}),
        tasks=[{"name": "mine", "path": "mine.jsonl"}, {"name": "gone", "path": "gone.jsonl"}],
    )
    tasks = gathered(made, settings, tmp_path)

    record = made.evaluate(settings=settings, tasks=tasks)

    assert set(record.scores) == {"dyck", "mine"}
    assert (record.scores["mine"].n, record.scores["mine"].chance) == (2, 0.5)
    assert "wanted" in record.failures["knowledge"] or "column" in record.failures["knowledge"]
    assert "gone.jsonl is no file" in record.failures["gone"]
    assert record.gauntlet["knowledge"] is None
    assert record.gauntlet["overall"] is None
    assert record.gauntlet["logic"] == pytest.approx(
        ((record.scores["dyck"].value - 0.25) / 0.75 + (record.scores["mine"].value - 0.5) / 0.5) / 2
    )
    assert not record.passed
    kept = {row["task"] for row in score_table.newest(made.home) if row["weights_sha256"] == made.train.weights_sha256}
    assert {"dyck", "mine"} <= kept


def test_a_planted_item_is_reported_and_no_other(made, tmp_path) -> None:  # noqa: F811
    long = next(text for text in made.texts["train"] if len(text.split()) >= 8)
    rows = [{"text": long}, {"text": "so new that nobody has ever seen it in any document"}]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = EvaluateSettings(batch_size=3, tasks=[{"name": "mine", "path": "mine.jsonl"}],
                                gate=GateSettings(max_bits_per_byte=20, beat=[]))  # fmt: skip

    assert made.evaluate(settings=settings, tasks=gathered(made, settings, tmp_path)).contaminated == {"mine": 1}


def test_what_tasks_are_made_of_is_in_the_fingerprint(made, tmp_path) -> None:  # noqa: F811
    settings = EvaluateSettings(tasks=[{"name": "mine", "path": "mine.jsonl"}])
    tasks = gathered(made, settings, tmp_path)
    found = [tasks.identity()]
    for text in ("one", "two"):
        (tmp_path / "mine.jsonl").write_text(json.dumps({"text": text}))
        found.append(tasks.identity())
    assert len({json.dumps(one) for one in found}) == 3


@pytest.mark.parametrize("name", ["dyck", "mine", "heldout", "problem"])
def test_two_tasks_of_one_name_are_refused(made, tmp_path, name: str) -> None:  # noqa: F811
    settings = EvaluateSettings(
        built_in=["dyck"], tasks=[{"name": "mine", "path": "a.jsonl"}, {"name": name, "path": "b.jsonl"}]
    )
    with pytest.raises(ConfigError, match=f"two tasks are called {name}"):
        gathered(made, settings, tmp_path)


def test_the_card_tells_lineage_scores_and_what_is_not_known(made, better, tmp_path) -> None:  # noqa: F811
    settings = EvaluateSettings(batch_size=3, built_in=["dyck"], items=12, gate=GATE)
    record = made.evaluate(settings=settings, tasks=gathered(made, settings, tmp_path))
    result = RunResult(
        steps=8, ranks=1, parameters=1, train_tokens=1, bits_per_byte_before=8, bits_per_byte_after=3, checkpoint="x",
        weights_sha256="w", seconds=7200,
    )  # fmt: skip

    text = card.to_markdown(
        Card(record, train=made.train, prepare=made.prepare, spec=made.run.read_spec(), result=result)
    )

    assert f"weights `{made.train.weights_sha256[:16]}`" in text
    assert "tables/documents@0" in text
    score = record.scores["dyck"]
    assert f"| dyck | acc | {score.value:.4f} | {score.low:.4f} to {score.high:.4f} | 0.250" in text
    assert "Not measured: whether training text comes out word for word (extraction)." in text
    assert "about 20.0 Wh, an estimate: 2.00 core hours" in text
    assert "Passed" in text
    assert not any(one in text for one in (*made.texts["train"], *made.texts["heldout"]))
    assert doc_id(made.texts["train"][0]) not in text


def test_held_out_conversations_count_by_what_the_assistant_says(tmp_path, monkeypatch) -> None:
    home = Home(tmp_path)
    turn = [{"role": "user", "content": "asked"}, {"role": "assistant", "content": "said"}]
    rows = [
        {"doc_id": "b", "split": "heldout", "text": None, "messages": [*turn, *turn], "chosen": None},
        {"doc_id": "a", "split": "heldout", "text": "written", "messages": None, "chosen": None},
        {"doc_id": "c", "split": "heldout", "text": None, "messages": None, "chosen": "liked"},
        {"doc_id": "d", "split": "train", "text": "learned", "messages": None, "chosen": None},
    ]
    write_deltalake(home.documents, pa.Table.from_pylist(rows))
    documents = TableVersion(name="documents", path="tables/documents", version=0)

    found = read_documents(home, table=documents, sources=[])

    assert [(one.doc_id, one.text) for one in found] == [("a", "written"), ("b", "said\n\nsaid"), ("c", "liked")]
    monkeypatch.setattr(gathering, "MOST_DOCUMENTS", 2)
    assert [one.doc_id for one in read_documents(home, table=documents, sources=[])] == ["a", "b"]


def test_without_held_out_documents_the_task_fails_with_its_reason(tmp_path) -> None:
    home = Home(tmp_path)
    rows = [{"doc_id": "d", "split": "train", "text": "learned"}]
    write_deltalake(home.documents, pa.Table.from_pylist(rows))
    documents = TableVersion(name="documents", path="tables/documents", version=0)

    tasks = Gathering(
        home, settings=EvaluateSettings(gate=GATE), documents=documents, sources=[], conf=tmp_path
    ).tasks()

    assert tasks == {"heldout": Failure("no document is held out")}
