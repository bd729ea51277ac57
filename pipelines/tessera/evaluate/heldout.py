"""Bits per byte of a run's held-out split: the model's, and those of its baselines. Reads the run's own shards.arrow.

Costs one forward over the split and one pass over the tokens that the model saw.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tessera import lineage
from tessera.errors import CorruptCheckpoint
from tessera.evaluate import baselines
from tessera.evaluate.bits_per_byte import Score, score
from tessera.evaluate.settings import EvaluateSettings
from tessera.home import Home
from tessera.lineage import PrepareRecord, ShardRecord, TrainRecord
from tessera.model import build
from tessera.progress import Tell, silent
from tessera.shard import labels
from tessera.shard.read.batches import batch_at, make_order, open_split, sequential
from tessera.shard.read.shards import Shards
from tessera.shard.run_manifest import ensure_index
from tessera.train.run import RunFolder


@dataclass(frozen=True)
class Scores:
    """What was measured."""

    model: Score
    baselines: dict[str, float]
    """Bits per byte, by name."""


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
    device = device_of(settings)
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


def device_of(settings: EvaluateSettings) -> torch.device:
    """Where the model runs."""
    if settings.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(settings.device)


def _open(run: RunFolder, *, split: str) -> Shards:
    shards = open_split(run.manifest, split=split, shards_root="")
    shards.root = run.home.resolve(shards.info.root)
    return shards


def _as_numpy(batch: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in batch.items()}


def check_weights(checkpoint: Path, *, expected: str) -> None:
    """Raises CorruptCheckpoint when the weights are not those of the record."""
    weights = checkpoint / build.WEIGHTS
    found = lineage.sha256_file(weights) if weights.is_file() else "no file"
    if found != expected:
        raise CorruptCheckpoint(
            f"{weights}: found {found[:12]}, its record says {expected[:12]}; train again: tessera train --fresh"
        )
