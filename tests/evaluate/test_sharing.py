"""Items shared out over ranks: together they give what one process gives."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.errors import EvaluationFailed
from tessera.evaluate import sharing
from tessera.evaluate.examination import ask_here
from tessera.evaluate.gauntlet import Failure
from tessera.evaluate.sharing import ModelOnRanks
from tessera.evaluate.subject import open_subject
from tessera.evaluate.task import Choices, Completion, Decoding, Outcomes, Passage, Program, Question, Task
from tessera.home import Home
from tessera.lineage import sha256_file
from tessera.model import build

from .subjects import make_subject

TASKS = {
    "choices": Task(
        "choices", kind="multiple_choice",
        items=tuple(Choices(((f"the cat {i}", " sat"), (f"the cat {i}", " went home")), gold=0) for i in range(7)),
    ),
    "words": Task("words", kind="language_modeling", items=tuple(Completion("the", f" dog {i}") for i in range(5))),
    "answers": Task(
        "answers", kind="generation", items=tuple(Question(f"river {i}", ("a", "größe")) for i in range(4)),
        decoding=Decoding(max_tokens=4, temperature=0.9, samples=2),
    ),
    "texts": Task("texts", kind="perplexity", items=(Passage("the sun", doc_id="d"), Passage("a tree in the house"))),
    "code": Task("code", kind="code", items=(Program("x = 1 #", "assert x"),), decoding=Decoding(max_tokens=2)),
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelOnRanks:
    folder = tmp_path_factory.mktemp("checkpoint")
    build.export(make_subject(folder).model, folder=folder)
    return ModelOnRanks(
        checkpoint=str(folder), weights_sha256=sha256_file(folder / "model.safetensors"), document_start=False,
        batch_tokens=512, device="cpu", ranks=2,
    )  # fmt: skip


def in_one(model: ModelOnRanks):
    return ask_here(TASKS, subject=lambda: open_subject(Path(model.checkpoint), batch_tokens=512))


def same(found, expected) -> None:
    for name, one in expected.items():
        assert found[name].keys == one.keys
        assert found[name].weights == one.weights
        assert found[name].tokens == one.tokens
        for metric, values in one.values.items():
            assert found[name].values[metric] == pytest.approx(values, rel=1e-4)


@given(st.lists(st.floats(0, 1), max_size=20), st.integers(1, 6))
def test_outcomes_come_together_in_the_order_of_the_items(values: list[float], ranks: int) -> None:
    task = Task("t", kind="perplexity", items=tuple(Passage(f"{i}") for i in range(len(values))))
    parts = [sharing.part(task, rank=rank, ranks=ranks) for rank in range(ranks)]
    told = [
        {"keys": [item.text for item in part.items], "values": {"m": [values[int(item.text)] for item in part.items]},
         "weights": [], "tokens": 1, "seconds": 1.0}
        for part in parts
    ]  # fmt: skip

    whole = sharing._merged(task, told)

    assert whole == Outcomes(tuple(item.text for item in task.items), {"m": tuple(values)}, (), ranks, 1.0)


def test_what_is_asked_comes_back_as_it_was(tmp_path: Path, model: ModelOnRanks) -> None:
    sharing.write_asked(tmp_path, tasks=TASKS, model=model)
    assert sharing.read_asked(tmp_path) == (model, TASKS)


def test_two_ranks_give_what_one_process_gives(tmp_path: Path, model: ModelOnRanks) -> None:
    """The ranks' own entry, without a launcher."""
    sharing.write_asked(tmp_path, tasks=TASKS, model=model)
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tessera.evaluate.worker", str(tmp_path)],
            env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"},
        )
        for rank in range(2)
    ]  # fmt: skip
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]

    same(sharing.read_outcomes(tmp_path, tasks=TASKS, ranks=2), in_one(model))


def test_a_rank_without_a_result_is_named_and_a_failure_is_kept(tmp_path: Path) -> None:
    did = Outcomes(keys=("k",), values={"m": (1.0,)})
    sharing.write_outcomes(tmp_path, rank=0, asked={"t": did})
    tasks = {"t": TASKS["words"]}
    with pytest.raises(EvaluationFailed, match="rank 1 of 2 ended without a result"):
        sharing.read_outcomes(tmp_path, tasks=tasks, ranks=2)
    sharing.write_outcomes(tmp_path, rank=1, asked={"t": Failure("too long")})
    assert sharing.read_outcomes(tmp_path, tasks=tasks, ranks=2) == {"t": Failure("too long")}


@pytest.mark.spark
@pytest.mark.distributed
def test_torch_distributor_runs_the_ranks_and_leaves_no_text(spark, tmp_path: Path, model: ModelOnRanks) -> None:
    from tessera.evaluate.launch import ask_on_ranks

    home = Home(tmp_path / "home")

    found = ask_on_ranks(TASKS, home=home, spark=lambda: spark, model=model)

    same(found, in_one(model))
    assert [*home.cache.iterdir()] == []
