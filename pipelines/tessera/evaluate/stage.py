"""The evaluate stage as the pipeline sees it: its fingerprint, and whether a recorded result still holds. No torch."""

from collections.abc import Mapping
from typing import Any

from tessera import lineage, tables
from tessera.evaluate.rival import Rival
from tessera.evaluate.settings import EvaluateSettings
from tessera.home import Home
from tessera.lineage import EvaluateRecord, PrepareRecord, ShardRecord, TrainRecord

SEMANTICS = 2
"""Raised when the same checkpoint and text give other scores.

2: tasks, and the champion of the moment."""


def fingerprint(
    train: TrainRecord, *, shard: ShardRecord, prepare: PrepareRecord, settings: EvaluateSettings,
    tasks: Mapping[str, Any] | None = None,
) -> str:  # fmt: skip
    """Over the weights, the run (which samples it saw), the held-out text, the tasks and the gate.

    Args:
        tasks: what they are made of: see `Gathering.identity`.
    """
    inputs = {
        "weights": train.weights_sha256,
        "train": train.fingerprint,
        "shard": shard.fingerprint,
        "documents": prepare.fingerprint,
        "tasks": tasks,
    }
    return lineage.fingerprint(stage="evaluate", semantics=SEMANTICS, inputs=inputs, config=settings.identity())


def verify(record: EvaluateRecord, *, home: Home, champion: Rival | None = None) -> bool:
    """Whether the table of evaluations opens at the version that holds this one, with all its files.

    A result that was held against a champion holds while that one is champion, or this model itself.
    """
    if record.met is not None:
        now = champion.weights_sha256 if champion is not None else ""
        if now not in (record.met, record.weights_sha256):
            return False
    path = home.resolve(record.table.path)
    if not tables.exists(path) or tables.open_table(path).version() < record.table.version:
        return False
    return not tables.missing_files(path, version=record.table.version)
