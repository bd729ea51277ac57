"""`tables/scores`: what each model did on each task, one row each. Numbers and hashes, never text. No JVM, no torch.

A row belongs to (weights, digest): the digest is the task's, joined with what else of the settings decides outcomes. So
a model is asked once, whatever compares it later. Rows are appended and never changed; a twin does no harm, the newest
is taken. Keys are hashes of items: they pair the outcomes of two models.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from deltalake import write_deltalake

from tessera import lineage, publish, tables
from tessera.evaluate.task import Outcomes, Score, Task
from tessera.home import Home

TABLE = "scores"
FORMAT = 1
SCHEMA = pa.schema(
    [
        ("weights_sha256", pa.string()),
        ("digest", pa.string()),
        ("task", pa.string()),
        ("kind", pa.string()),
        ("category", pa.string()),
        ("metric", pa.string()),
        ("n", pa.int64()),
        ("value", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("chance", pa.float64()),
        ("keys", pa.list_(pa.string())),
        ("metrics", pa.list_(pa.string())),
        ("values", pa.list_(pa.list_(pa.float64()))),
        ("weights", pa.list_(pa.float64())),
        ("tokens", pa.int64()),
        ("seconds", pa.float64()),
        ("created", pa.string()),
        ("code", pa.string()),
        ("format", pa.int64()),
    ]
)
"""`value`, `low`, `high` and `chance` are of `metric`; `values` has a list for each of `metrics`, an element a key."""
STATS_COLUMNS = "weights_sha256,digest,task,created"


@dataclass(frozen=True)
class Examined:
    """A task, what the model did, and what that comes to."""

    task: Task
    outcomes: Outcomes
    score: Score
    """Over all items."""


def digest_of(task: Task, *, document_start: bool) -> str:
    """What decides a model's outcomes, besides the model."""
    return lineage.sha256_json({"task": task.digest, "document_start": document_start})


def find(home: Home, *, weights_sha256: str, digests: Sequence[str]) -> dict[str, Outcomes]:
    """The kept outcomes of a model, by digest; those that were never measured are absent.

    Raises:
        FormatError: a newer Tessera wrote them.
        SourceError: the table cannot be read.
    """
    path = home.tables / TABLE
    if not digests or not tables.exists(path):
        return {}
    filters = [("weights_sha256", "=", weights_sha256), ("digest", "in", sorted(set(digests)))]
    rows = tables.read(path, filters=filters).to_pylist()
    return {row["digest"]: _outcomes(row) for row in sorted(rows, key=lambda row: row["created"])}


def keep(home: Home, examined: Mapping[str, Examined], *, weights_sha256: str) -> None:
    """Appends the outcomes of a model, in one commit.

    Args:
        examined: by digest.
    """
    if not examined:
        return
    rows = [_row(one, digest=digest, weights_sha256=weights_sha256) for digest, one in examined.items()]
    path = home.tables / TABLE
    new = not tables.exists(path)
    write_deltalake(
        path, pa.Table.from_pylist(rows, schema=SCHEMA), mode="append",
        configuration={**publish.UNLOGGED_TEXT, "delta.dataSkippingStatsColumns": STATS_COLUMNS} if new else None,
    )  # fmt: skip


def newest(home: Home) -> list[dict[str, Any]]:
    """The scores of all models, without outcomes: the newest row of each (weights, task name), in order of time.

    Of a task whose items have changed only those scores are told that are of the newest items: others do not compare.
    """
    path = home.tables / TABLE
    if not tables.exists(path):
        return []
    columns = [name for name in SCHEMA.names if name not in ("keys", "metrics", "values", "weights")]
    rows = sorted(tables.read(path, columns=columns).to_pylist(), key=lambda row: row["created"])
    newest_of = {row["task"]: row["digest"] for row in rows}
    told = (row for row in rows if row["digest"] == newest_of[row["task"]])
    return list({(row["weights_sha256"], row["task"]): row for row in told}.values())


def _outcomes(row: Mapping[str, Any]) -> Outcomes:
    lineage.check_format(row["format"], known=FORMAT, what=f"tables/{TABLE}", remedy="evaluate again")
    return Outcomes(
        keys=tuple(row["keys"]),
        values={name: tuple(values) for name, values in zip(row["metrics"], row["values"], strict=True)},
        weights=tuple(row["weights"]),
        tokens=row["tokens"],
        seconds=row["seconds"],
    )


def _row(one: Examined, *, digest: str, weights_sha256: str) -> dict[str, Any]:
    outcomes, score = one.outcomes, one.score
    return {
        "weights_sha256": weights_sha256, "digest": digest, "task": one.task.name, "kind": one.task.kind,
        "category": one.task.category, "metric": score.metric, "n": score.n, "value": score.value, "low": score.low,
        "high": score.high, "chance": score.chance, "keys": list(outcomes.keys), "metrics": list(outcomes.values),
        "values": [list(values) for values in outcomes.values.values()], "weights": list(outcomes.weights),
        "tokens": outcomes.tokens, "seconds": outcomes.seconds, "created": lineage.now(),
        "code": lineage.code_version(), "format": FORMAT,
    }  # fmt: skip
