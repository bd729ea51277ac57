"""Evaluates a run: the model and its baselines on the held-out split, a verdict, and one published row.

Reads the checkpoint, the run's own shards.arrow, and the held-out documents at their pinned version. Appends to
`tables/evaluations`, one row and one commit an evaluation, whose record is in the commit; then tells the MLflow run.
Should MLflow be away, what it is to know stays in the run folder for a later command: see `train.replay`.
Costs one forward over the split and one pass over the tokens seen.
"""

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from tessera import lineage, publish
from tessera.errors import Conflict, CorruptCheckpoint
from tessera.evaluate import baselines, stage
from tessera.evaluate.bits_per_byte import Score, score
from tessera.evaluate.gate import Verdict, judge
from tessera.evaluate.settings import EvaluateSettings
from tessera.home import Home
from tessera.lineage import EvaluateRecord, PrepareRecord, ShardRecord, TableVersion, TrainRecord
from tessera.model import build
from tessera.progress import Tell, silent
from tessera.shard import labels
from tessera.shard.read.batches import batch_at, make_order, open_split, sequential
from tessera.shard.read.shards import Shards
from tessera.shard.run_manifest import ensure_index
from tessera.tracking import TrackingSettings
from tessera.train import replay
from tessera.train.run import RunFolder

TABLE = "evaluations"
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


@dataclass(frozen=True)
class Scores:
    """What was measured."""

    model: Score
    baselines: dict[str, float]
    """Bits per byte, by name."""


def evaluate(
    home: Home,
    *,
    train: TrainRecord,
    shard: ShardRecord,
    prepare: PrepareRecord,
    settings: EvaluateSettings,
    tracking: TrackingSettings,
    tell: Tell = silent,
) -> EvaluateRecord:
    """Scores the run's checkpoint, judges it, publishes the row and tells MLflow.

    Raises:
        CorruptCheckpoint: the weights are not those of the record.
        CorruptShard: a file of the set differs from its manifest.
        ShardSetError: the held-out documents are not what the shards were made from.
    """
    _check_weights(home.resolve(train.checkpoint), expected=train.weights_sha256)
    scores = measure(home, train=train, shard=shard, prepare=prepare, settings=settings, tell=tell)
    verdict = judge(scores.model.bits_per_byte, baselines=scores.baselines, settings=settings.gate)
    record = EvaluateRecord(
        fingerprint=stage.fingerprint(train, shard=shard, prepare=prepare, settings=settings),
        inputs=(train.shard_set, prepare.table),
        code=lineage.code_version(),
        created=lineage.now(),
        run_id=train.run_id,
        checkpoint=train.checkpoint,
        weights_sha256=train.weights_sha256,
        bits_per_byte=scores.model.bits_per_byte,
        baselines=scores.baselines,
        passed=verdict.passed,
        reasons=verdict.reasons,
        table=TableVersion(name=TABLE, path=home.relative(home.evaluations), version=0),
    )
    record = publish_row(home, record=record, train=train, score=scores.model)
    tell("telling MLflow")
    try:
        log_to_mlflow(record, train=train, verdict=verdict, home=home, tracking=tracking, tell=tell)
    except Exception as error:  # whatever it is, the evaluation is published
        tell(f"MLflow was not told ({type(error).__name__}); the evaluation is in {record.table.path}")
    return record


def measure(
    home: Home, *, train: TrainRecord, shard: ShardRecord, prepare: PrepareRecord, settings: EvaluateSettings,
    tell: Tell = silent,
) -> Scores:  # fmt: skip
    """The model's sum over the labels of the held-out split, and the baselines' bits per byte of the same text.

    Where not every token is a label, that text is what the labels stand for: see `shard.labels`.
    """
    run = RunFolder(home.resolve(train.run))
    ensure_index(run.manifest)
    heldout = _open(run, split="heldout")
    tell("gzip of the held-out text")
    counted = run.read_spec().heldout_labels or heldout.all_labels
    if labels.all_count(shard):
        texts = baselines.heldout_texts(
            home.resolve(prepare.table.path), version=prepare.table.version, text_bytes=counted.text_bytes
        )
    else:
        texts = labels.texts(home, shard, split="heldout")
    found = {"gzip": baselines.gzip_bits_per_byte(texts, text_bytes=counted.text_bytes)}
    tell("n-grams of the tokens that the model saw")
    found |= baselines.ngram_bits_per_byte(
        seen=batches_seen(run),
        heldout=lambda: (_as_numpy(batch) for batch in sequential(heldout, batch_size=settings.batch_size)),
        end_id=heldout.info.end_id,
        vocab_size=heldout.info.vocab_size,
        text_bytes=counted.text_bytes,
    )
    tell("loading the model")
    device = _device(settings)
    model = build.load(home.resolve(train.checkpoint)).to(device)
    scored = score(
        model,
        batches=sequential(heldout, batch_size=settings.batch_size),
        text_bytes=counted.text_bytes,
        workers=len(os.sched_getaffinity(0)) if device.type == "cpu" else 1,
        progress=lambda done: tell("held-out tokens", done, counted.tokens),
    )
    return Scores(model=scored, baselines=found)


def batches_seen(run: RunFolder) -> Iterator[dict[str, Any]]:
    """The training batches that the run took, as numpy arrays, each sample once: see `baselines`."""
    spec = run.read_spec()
    shards = _open(run, split="train")
    order = make_order(shards, seed=spec.settings.seed, block_shards=spec.block_shards)
    size = spec.settings.batch_size
    wanted = min(spec.settings.steps * size, shards.num_samples)
    for first in range(0, wanted, size):
        batch = _as_numpy(batch_at(shards, order, step=first // size, batch_size=size))
        yield {name: array[: wanted - first] for name, array in batch.items()}


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
    record: EvaluateRecord, *, train: TrainRecord, verdict: Verdict, home: Home, tracking: TrackingSettings,
    tell: Tell = silent,
) -> None:  # fmt: skip
    """Adds scores as metrics at the last step, and the verdict as tags, to the run that trained the model.

    They are kept in the run folder first, and sent after what MLflow lacks of the training itself.
    """
    folder = RunFolder(home.resolve(train.run))
    baselines_of = {f"eval/{name}_bits_per_byte": bits for name, bits in record.baselines.items()}
    replay.keep_evaluation(
        folder, fingerprint=record.fingerprint, run_id=record.run_id, step=train.steps, time=time.time(),
        metrics={"eval/bits_per_byte": record.bits_per_byte, **baselines_of},
        tags={
            "tessera.gate": "passed" if verdict.passed else "failed",
            "tessera.gate_reasons": "; ".join(verdict.reasons),
        },
    )  # fmt: skip
    replay.send(folder, settings=tracking, notice=tell, seconds=tracking.flush_seconds)


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


def _open(run: RunFolder, *, split: str) -> Shards:
    shards = open_split(run.manifest, split=split, shards_root="")
    shards.root = run.home.resolve(shards.info.root)
    return shards


def _check_weights(checkpoint: Path, *, expected: str) -> None:
    weights = checkpoint / build.WEIGHTS
    found = lineage.sha256_file(weights) if weights.is_file() else "no file"
    if found != expected:
        raise CorruptCheckpoint(
            f"{weights}: found {found[:12]}, its record says {expected[:12]}; train again: tessera train --fresh"
        )


def _device(settings: EvaluateSettings) -> torch.device:
    if settings.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(settings.device)


def _as_numpy(batch: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in batch.items()}
