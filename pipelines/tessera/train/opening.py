"""A rank's job, made from the run folder and restored from its newest checkpoint.

Ranks read run.json, shards.json and shards.arrow, and no more than that.
"""

import platform
from importlib.metadata import version
from typing import Any

import torch

from tessera.lineage import code_version
from tessera.model.build import build
from tessera.model.cost import flops_per_token
from tessera.shard.read.batches import MEANINGS, make_order, open_split, resume_step
from tessera.shard.read.shards import Shards
from tessera.train import checkpoint, method, metrics
from tessera.train.checkpoint import Checkpoint
from tessera.train.gradients import Gradients
from tessera.train.job import Job
from tessera.train.optimizer import AdamW
from tessera.train.ranks import Ranks
from tessera.train.run import RunFolder


def open_job(folder: RunFolder, *, attempt: int, ranks: Ranks) -> Job:
    """A rank's job, restored from the newest checkpoint that is whole; rank 0 cuts the metrics back to it.

    Raises:
        ShardSetError: the checkpoint belongs to another set, seed or batch size.
        ModelError: a pretrained folder does not fit.
    """
    spec = folder.read_spec()
    settings = spec.settings
    train = _open(folder, split="train")
    order = make_order(train, seed=settings.seed, block_shards=spec.block_shards)
    info = train.info
    shape = settings.model
    if spec.origin is not None:
        shape = shape.model_copy(update={"path": str(folder.home.resolve(spec.origin.folder))})
    model = build(shape, vocab_size=info.vocab_size, seq_len=info.seq_len, end_id=info.end_id, seed=settings.seed)
    model.to(ranks.device).train()
    job = Job(
        folder=folder, spec=spec, attempt=attempt, ranks=ranks, train=train, heldout=_open(folder, split="heldout"),
        order=order, model=model, optimizer=AdamW(model, settings=settings.optimizer),
        gradients=Gradients(model, ranks=ranks), environment=environment(ranks, compiled=settings.compile),
        flops_per_token=flops_per_token(model, seq_len=info.seq_len),
    )  # fmt: skip
    job.methods = method.make(settings.methods, job=job)
    job.methods.init()
    if not (restored := restore(job)):
        go_on(job)
    if ranks.rank == 0:
        metrics.cut_back(folder.metrics, step=restored if restored else -1)
        job.writer = metrics.Writer(folder.metrics)
    if settings.compile:
        model.base_model.compile()  # type: ignore[operator,union-attr]
    return job


def go_on(job: Job) -> None:
    """Takes over the run that this one goes on with, if there is one.

    Raises:
        ShardSetError: its order is another: another seed, batch or set.
        CorruptCheckpoint: its checkpoint is gone or damaged, or of other methods.
    """
    origin = job.spec.origin
    if origin is None or origin.point is None:
        return
    found = checkpoint.open_checkpoint(job.folder.home.resolve(origin.folder))
    checkpoint.restore(found, model=job.model, tensors=job.tensors())
    vars(job.progress).update({**found.state["progress"], "seconds": 0.0, "micro_batch": None})
    if origin.offset == origin.point.step:  # another order, of which nothing was skipped yet
        job.progress.skipped = []
    else:
        _check_order(job, found)
    job.note(f"goes on from {origin.point.run} after step {origin.point.step}")


def restore(job: Job) -> int:
    """Brings every rank to the newest checkpoint, which rank 0 chooses; its step, 0 where there is none.

    Raises:
        ShardSetError: the checkpoint belongs to another set, seed or batch size.
    """
    folder, ranks = job.folder, job.ranks
    found = checkpoint.newest(folder.checkpoints, notice=job.note) if ranks.rank == 0 else None
    chosen = int(ranks.sum(torch.tensor([found.state["num_steps"] if found else 0], device=ranks.device)).item())
    if not chosen:
        return 0
    found = found or checkpoint.open_checkpoint(checkpoint.folder_of(folder.checkpoints, step=chosen))
    checkpoint.restore(found, model=job.model, tensors=job.tensors())
    vars(job.progress).update(found.state["progress"])
    _check_order(job, found)
    job.last_saved = (chosen, job.progress.seconds)
    job.note(f"resumed after step {chosen}")
    for difference in _differences(found.state["environment"], job.surroundings()):
        job.note(difference)
    return chosen


def rewind(job: Job) -> None:
    """Back to the newest checkpoint; no batch that came after it, skipped or not, is taken again."""
    last = job.progress.next_batch
    job.saver.wait()
    if not (step := restore(job)):
        return
    progress = job.progress
    progress.skipped += range(progress.next_batch, last)
    progress.spikes_in_a_row = 0
    if job.writer is not None:
        job.writer.close()
        metrics.cut_back(job.folder.metrics, step=step)
        job.writer = metrics.Writer(job.folder.metrics)


def environment(ranks: Ranks, *, compiled: bool) -> dict[str, Any]:
    """What, if it changes, changes the last bits of sums but not the order of samples."""
    return {
        "ranks": ranks.world,
        "threads": ranks.threads,
        "device": ranks.device.type,
        "compile": compiled,
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "code": code_version(),
    }


def _check_order(job: Job, found: Checkpoint) -> None:
    settings = job.spec.settings
    resume_step(
        found.state["loader"], shards=job.train, order=job.order, batch_size=settings.batch_size,
        allow=MEANINGS if settings.resume_data == "ignore" else (), notice=job.note,
    )  # fmt: skip


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    changed = [f"{key} {before.get(key)} -> {value}" for key, value in now.items() if before.get(key) != value]
    if not changed:
        return []
    return [f"order exact, sums not: {', '.join(changed)} since the checkpoint was written"]


def _open(folder: RunFolder, *, split: str) -> Shards:
    shards = open_split(folder.manifest, split=split, shards_root="")
    shards.root = folder.home.resolve(shards.info.root)
    return shards
