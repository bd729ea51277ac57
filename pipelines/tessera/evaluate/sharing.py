"""Items shared out over processes, and their outcomes put together again.

A folder holds what is asked (`asked.json`), and for each rank what came out (`rank-N.json`). Rank r of N takes items r,
r + N, r + 2N, ... of each task, so that all have about as much to do; the outcomes do not depend on N. The folder holds
row text while ranks run, lies in the home's cache, and is removed by who made it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tessera.errors import EvaluationFailed
from tessera.evaluate.gauntlet import Failure
from tessera.evaluate.task import Choices, Completion, Decoding, Item, Outcomes, Passage, Program, Question, Task
from tessera.files import write_whole

ITEMS: Mapping[str, type[Item]] = {kind.__name__: kind for kind in (Choices, Completion, Question, Program, Passage)}
Asked = Mapping[str, Outcomes | Failure]


@dataclass(frozen=True)
class ModelOnRanks:
    """How ranks open the model."""

    checkpoint: str
    weights_sha256: str
    document_start: bool
    batch_tokens: int
    device: str
    ranks: int


def write_asked(folder: Path, *, tasks: Mapping[str, Task], model: ModelOnRanks) -> None:
    """Notes what ranks are to ask."""
    told = {name: {**asdict(task), "items": [_told(item) for item in task.items]} for name, task in tasks.items()}
    write_whole(folder / "asked.json", json.dumps({"model": asdict(model), "tasks": told}).encode())


def read_asked(folder: Path) -> tuple[ModelOnRanks, dict[str, Task]]:
    """The inverse."""
    found = json.loads((folder / "asked.json").read_bytes())
    return ModelOnRanks(**found["model"]), {name: _task(told) for name, told in found["tasks"].items()}


def part(task: Task, *, rank: int, ranks: int) -> Task:
    """The items of one rank."""
    return replace(task, items=task.items[rank::ranks])


def write_outcomes(folder: Path, *, rank: int, asked: Asked) -> None:
    """Notes what a rank found."""
    told = {name: {"why": one.why} if isinstance(one, Failure) else asdict(one) for name, one in asked.items()}
    write_whole(folder / f"rank-{rank}.json", json.dumps(told).encode())


def read_outcomes(folder: Path, *, tasks: Mapping[str, Task], ranks: int) -> Asked:
    """The outcomes of all ranks as those of one; a task that one of them could not ask has failed.

    Raises:
        EvaluationFailed: a rank left nothing.
    """
    paths = [folder / f"rank-{rank}.json" for rank in range(ranks)]
    if absent := [str(rank) for rank, path in enumerate(paths) if not path.is_file()]:
        raise EvaluationFailed(
            f"rank {', '.join(absent)} of {ranks} ended without a result; what it printed is in {folder.name}.log in "
            "the home's cache. With evaluate.ranks=1 the error comes by itself"
        )
    found = [json.loads(path.read_bytes()) for path in paths]
    return {name: _merged(task, [of_rank[name] for of_rank in found]) for name, task in tasks.items()}


def _merged(task: Task, told: Sequence[Mapping[str, Any]]) -> Outcomes | Failure:
    if failed := [of_rank["why"] for of_rank in told if "why" in of_rank]:
        return Failure(failed[0])
    return Outcomes(
        keys=tuple(_woven([of_rank["keys"] for of_rank in told])),
        values={metric: tuple(_woven([of_rank["values"][metric] for of_rank in told])) for metric in told[0]["values"]},
        weights=tuple(_woven([of_rank["weights"] for of_rank in told])),
        tokens=sum(of_rank["tokens"] for of_rank in told),
        seconds=max(of_rank["seconds"] for of_rank in told),
    )


def _woven(parts: Sequence[Sequence[Any]]) -> list[Any]:
    """The inverse of taking every N-th."""
    whole: list[Any] = [None] * sum(map(len, parts))
    for rank, found in enumerate(parts):
        whole[rank :: len(parts)] = found
    return whole


def _told(item: Item) -> list[Any]:
    return [type(item).__name__, asdict(item)]


def _task(told: Mapping[str, Any]) -> Task:
    decoding = Decoding(**{**told["decoding"], "stop": tuple(told["decoding"]["stop"])})
    return Task(**{**told, "items": tuple(map(_item, told["items"])), "decoding": decoding, "ks": tuple(told["ks"])})


def _item(told: Sequence[Any]) -> Item:
    name, values = told
    if name == "Choices":
        values = {**values, "pairs": tuple(map(tuple, values["pairs"]))}
    if name == "Question":
        values = {**values, "answers": tuple(values["answers"])}
    return ITEMS[name](**values)
