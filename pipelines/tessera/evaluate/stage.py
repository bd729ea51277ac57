"""The evaluate stage as the pipeline sees it: its fingerprint, and whether a recorded result still holds. No torch."""

from tessera import lineage, tables
from tessera.evaluate.settings import EvaluateSettings
from tessera.home import Home
from tessera.lineage import EvaluateRecord, PrepareRecord, ShardRecord, TrainRecord

SEMANTICS = 1
"""Raised when the same checkpoint and text give other scores."""


def fingerprint(train: TrainRecord, *, shard: ShardRecord, prepare: PrepareRecord, settings: EvaluateSettings) -> str:
    """Over the weights, the run (which samples it saw), the held-out text and the gate."""
    inputs = {
        "weights": train.weights_sha256,
        "train": train.fingerprint,
        "shard": shard.fingerprint,
        "documents": prepare.fingerprint,
    }
    return lineage.fingerprint(stage="evaluate", semantics=SEMANTICS, inputs=inputs, config=settings.identity())


def verify(record: EvaluateRecord, *, home: Home) -> bool:
    """Whether the table of evaluations opens at the version that holds this one, with all its files."""
    path = home.resolve(record.table.path)
    if not tables.exists(path) or tables.open_table(path).version() < record.table.version:
        return False
    return not tables.missing_files(path, version=record.table.version)
