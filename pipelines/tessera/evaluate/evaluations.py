"""`tables/evaluations`: one row and one commit an evaluation, whose record is in the commit; and what MLflow is told.

Should MLflow be away, what it is to know stays in the run folder for a later command: see `train.replay`.
"""

import math
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pyarrow as pa

from tessera import publish
from tessera import tracking as mlflow_runs
from tessera.errors import Conflict
from tessera.evaluate.bits_per_byte import Score
from tessera.home import Home
from tessera.lineage import EvaluateRecord, TrainRecord
from tessera.progress import Tell, silent
from tessera.tracking import TrackingSettings
from tessera.train import replay
from tessera.train.run import RunFolder
from tessera.train.ship import known_run_id

TABLE = "evaluations"
ARTIFACTS = "evaluation"
"""Folder of the pages in an MLflow run."""
PAUSES = (0.1, 0.2, 0.4, 0.8, 1.6)
"""Seconds before appending again after a lost race."""

SCHEMA = pa.schema(
    [
        ("run_id", pa.string()),
        ("run", pa.string()),
        ("checkpoint", pa.string()),
        ("weights_sha256", pa.string()),
        ("fingerprint", pa.string()),
        ("shard_set", pa.string()),
        ("shard_set_version", pa.int64()),
        ("documents_version", pa.int64()),
        ("split", pa.string()),
        ("tokens", pa.int64()),
        ("text_bytes", pa.int64()),
        ("nats", pa.float64()),
        ("bits_per_byte", pa.float64()),
        ("gzip", pa.float64()),
        ("unigram", pa.float64()),
        ("bigram", pa.float64()),
        ("trigram", pa.float64()),
        ("passed", pa.bool_()),
        ("reasons", pa.list_(pa.string())),
        ("created", pa.string()),
        ("code", pa.string()),
        ("format", pa.int64()),
    ]
)
STATS_COLUMNS = "run_id,weights_sha256,bits_per_byte,created"


def publish_row(home: Home, *, record: EvaluateRecord, train: TrainRecord, score: Score) -> EvaluateRecord:
    """Appends the row in a commit of its own; returns the record with the version that it became.

    Rows of different evaluations do not exclude one another: whoever loses a race appends to what the other left.

    Raises:
        Conflict: the race was lost again and again.
    """
    home.tables.mkdir(parents=True, exist_ok=True)
    for pause in PAUSES:
        with suppress(Conflict):
            return _append(home, record=record, train=train, score=score)
        time.sleep(pause)
    return _append(home, record=record, train=train, score=score)


def log_to_mlflow(
    record: EvaluateRecord, *, train: TrainRecord, pages: Sequence[Path], home: Home, tracking: TrackingSettings,
    tell: Tell = silent,
) -> None:  # fmt: skip
    """Adds scores as metrics at the last step, the verdict as tags, and pages, to the run that trained the model.

    Metrics and tags are kept in the run folder first, and sent after what MLflow lacks of the training itself. Pages
    are sent where MLflow answers; they stay in the home in any case.
    """
    folder = RunFolder(home.resolve(train.run))
    replay.keep_evaluation(
        folder, fingerprint=record.fingerprint, run_id=record.run_id, step=train.steps, time=time.time(),
        metrics=_metrics(record),
        tags={
            "tessera.gate": "passed" if record.passed else "failed",
            "tessera.gate_reasons": "; ".join(record.reasons),
        },
    )  # fmt: skip
    answered = replay.send(folder, settings=tracking, notice=tell, seconds=tracking.flush_seconds)
    run_id = known_run_id(folder) or record.run_id
    if answered and run_id:
        store = mlflow_runs.client(mlflow_runs.tracking_uri(tracking, home=home))
        with mlflow_runs.patient():
            for page in pages:
                store.log_artifact(run_id, str(page), ARTIFACTS)


def _metrics(record: EvaluateRecord) -> dict[str, float]:
    """What MLflow keeps; what is not finite or not complete is left out."""
    found = {"eval/bits_per_byte": record.bits_per_byte}
    found |= {f"eval/{name}_bits_per_byte": bits for name, bits in record.baselines.items()}
    for name, score in record.scores.items():
        found |= {f"eval/{name}/{score.metric}": score.value, f"eval/{name}/low": score.low,
                  f"eval/{name}/high": score.high}  # fmt: skip
    found |= {f"gauntlet/{name}": value for name, value in record.gauntlet.items() if value is not None}
    found |= {f"safety/{name}": value for name, value in record.safety.items()}
    if record.latency_ms is not None:
        found["eval/next_token_ms"] = record.latency_ms
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _append(home: Home, *, record: EvaluateRecord, train: TrainRecord, score: Score) -> EvaluateRecord:
    publication = publish.begin(home.evaluations, name=record.table.path)
    table = record.table.model_copy(update={"version": publication.version})
    record = record.model_copy(update={"table": table})
    row = {
        **{name: getattr(record, name) for name in SCHEMA.names if hasattr(record, name)},
        **record.baselines,
        "run": train.run,
        "shard_set": train.shard_set.name,
        "shard_set_version": train.shard_set.version,
        "documents_version": record.inputs[-1].version,
        "split": "heldout",
        "tokens": score.tokens,
        "text_bytes": score.text_bytes,
        "nats": score.nats,
    }
    data = pa.Table.from_pylist([row], schema=SCHEMA)
    publish.commit(publication, data, record=record, stats_columns=STATS_COLUMNS, mode="append")
    return record
