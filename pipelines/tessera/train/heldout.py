"""The loss on held-out text while a run trains."""

from math import log

import torch

from tessera.errors import ShardSetError
from tessera.model.loss import IGNORED, token_nats
from tessera.shard.read.batches import Batch, sequential
from tessera.shard.read.shards import Shards
from tessera.train.job import Job

BATCH = 16
"""Sequences computed at once."""


def measure(job: Job) -> dict[str, float]:
    """Loss and bits per byte of the first held-out sequences; every rank must call it.

    Bits per byte take the labels per byte of the whole split, and so are exact when all sequences are taken.

    Raises:
        ShardSetError: these sequences hold no label.
    """
    ranks, heldout = job.ranks, job.heldout
    total = torch.zeros(2, dtype=torch.float64, device=ranks.device)
    limit = min(job.spec.settings.heldout.sequences, heldout.num_samples)
    job.model.eval()
    with job.methods.evaluation(), job.precision():
        batches = sequential(heldout, batch_size=BATCH, rank=ranks.rank, world_size=ranks.world)
        for first in range(ranks.rank * BATCH, limit + ranks.rank * BATCH, BATCH * ranks.world):
            if first < limit:
                batch = {name: value[: limit - first] for name, value in next(batches).items()}
            elif job.parallel.sharded:
                batch = _blank(heldout)
            else:
                break
            part = {name: value.to(ranks.device) for name, value in batch.items()}
            nats = job.parallel.call(token_nats, part)
            total += torch.stack([nats.double().sum(), (part["labels"] != IGNORED).sum().double()])
    job.model.train()
    nats_sum, tokens = ranks.sum(total).tolist()
    if not tokens:
        raise ShardSetError(
            f"the first {limit} held-out sequences have no token that counts in the loss, of {heldout.num_samples}; "
            "raise train.heldout.sequences"
        )
    per_token = nats_sum / tokens
    labels = job.spec.heldout_labels or heldout.all_labels
    per_byte = per_token / log(2) * labels.tokens / labels.text_bytes
    job.progress.bits_per_byte, job.progress.bits_per_byte_step = per_byte, job.progress.next_step
    if job.progress.next_step == job.first_step:
        job.progress.bits_per_byte_before = per_byte
    return {"heldout_loss": per_token, "heldout_bits_per_byte": per_byte}


def _blank(heldout: Shards) -> Batch:
    """A sequence without labels: what a rank computes that has none left, while others gather the model with it."""
    batch = next(sequential(heldout, batch_size=1))
    return {**batch, "labels": torch.full_like(batch["labels"], IGNORED)}
