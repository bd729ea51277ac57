"""The results of earlier stages, found again: in the ledger, and in the commits that published them. No JVM."""

import json
from collections.abc import Callable
from typing import TypeVar

from tessera import publish
from tessera.errors import UserError
from tessera.home import Home
from tessera.lineage import (
    KINDS,
    EvaluateRecord,
    PrepareRecord,
    Record,
    ServeRecord,
    ShardRecord,
    TableVersion,
    TrainRecord,
)
from tessera.tables import Ledger

RecordT = TypeVar("RecordT", bound=Record)


class Results:
    """What the stages of one home gave; looking costs a read of the ledger."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.ledger = Ledger(home.ledger)

    def repair(self, notice: Callable[[str], None]) -> list[Record]:
        """Adds to the ledger what was published and, after a kill, not yet written there; the records that it added.

        A slice of answers with rows to go is passed over: its run may be at work in another terminal, or have failed
        and said so. The next score finds its rows.
        """
        added: list[Record] = []
        tables = (self.home.tables / "python_docs", self.home.documents, *self.home.shards.glob("*/manifest"))
        for table in (*tables, self.home.evaluations, self.home.answers):
            record = publish.read_record(table)
            if record is None or record.get("remaining"):
                continue
            lost = KINDS[record["stage"]].model_validate(record)
            if self.ledger.repair(lost):
                notice(f"ledger: the row of a published {record['stage']} was missing and is added")
                added.append(lost)
        return added

    def newest(self, kind: type[RecordT], *, set_name: str | None = None) -> RecordT:
        """The newest finished result of a stage, for the stage after it.

        Args:
            set_name: of shard sets, the one of this name.

        Raises:
            UserError: there is none yet.
        """
        stage = kind.model_fields["stage"].default
        for row in reversed(self.ledger.rows()):
            if row["stage"] == stage and row["status"] in ("done", "reused"):
                record = kind.from_json(row["record"])
                if not isinstance(record, ShardRecord) or set_name in (None, record.name):
                    return record
        raise UserError(f"{self.home.root} has no result of {stage} yet; make one: tessera {stage}")

    def evaluation_of(self, serve: ServeRecord) -> EvaluateRecord:
        """The newest evaluation of the weights that a model version serves."""
        for row in reversed(self.ledger.rows()):
            if row["stage"] == "evaluate" and row["status"] == "done":
                record = EvaluateRecord.from_json(row["record"])
                if record.weights_sha256 == serve.weights_sha256:
                    return record
        raise UserError(f"the evaluation of {serve.model} version {serve.version} is not in the ledger")

    def train_of(self, evaluate: EvaluateRecord) -> TrainRecord:
        """The run that an evaluation scored."""
        for row in reversed(self.ledger.rows()):
            if row["stage"] == "train" and row["status"] == "done" and row["run_id"] == evaluate.run_id:
                record = TrainRecord.from_json(row["record"])
                if record.weights_sha256 == evaluate.weights_sha256:
                    return record
        raise UserError(f"the run of {evaluate.checkpoint} is not in the ledger; train again: tessera train")

    def shard_of(self, train: TrainRecord) -> ShardRecord:
        """The shard set, at its version, that a run was trained on."""
        return self._published(ShardRecord, train.shard_set)

    def prepare_of(self, shards: ShardRecord) -> PrepareRecord:
        """The documents, at their version, that a shard set was written from.

        Raises:
            UserError: it was imported, so there is no such table.
        """
        if shards.imported:
            raise UserError(
                f"shard set {shards.name} was imported from {shards.inputs[0].path}; without a documents table it "
                "can be trained on, not evaluated or registered. Write a set from tables: tessera shard"
            )
        return self._published(PrepareRecord, shards.inputs[0])

    def sources_of(self, shards: ShardRecord) -> tuple[TableVersion, ...]:
        """The source tables, at their versions, that a shard set comes from; none for one that was imported."""
        return () if shards.imported else self.prepare_of(shards).inputs

    def bytes_per_token(self) -> float | None:
        """Of the newest shard set; None where there is none."""
        try:
            shards = self.newest(ShardRecord)
        except UserError:
            return None
        tokens = sum(split.tokens for split in shards.splits.values())
        return sum(split.num_bytes for split in shards.splits.values()) / tokens if tokens else None

    def _published(self, kind: type[RecordT], table: TableVersion) -> RecordT:
        record = publish.read_record(self.home.resolve(table.path), version=table.version)
        if record is None:
            raise UserError(f"{table.path}@{table.version} has no record any more; run its stage again")
        return kind.model_validate(record)

    def tables_read(self) -> list[TableVersion]:
        """The source tables at all versions that earlier stages read."""
        rows = [row for row in self.ledger.rows() if row["stage"] == "prepare"]
        return [TableVersion.model_validate(table) for row in rows for table in json.loads(row["inputs"])]
