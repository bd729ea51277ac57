"""A rank's job, made from the run folder and restored from its newest checkpoint.

Ranks read run.json, shards.json and shards.arrow, and no more than that.
"""

import platform
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

from tessera.lineage import code_version
from tessera.model.build import assign, build, read_weights
from tessera.model.cost import flops_per_token
from tessera.shard.read.batches import MEANINGS, make_order, open_split, resume_step
from tessera.shard.read.shards import Shards
from tessera.train import checkpoint, memory, method, metrics
from tessera.train.checkpoint import Checkpoint
from tessera.train.job import Job
from tessera.train.optimizer import AdamW
from tessera.train.parallel import Parallel, Replicated
from tessera.train.ranks import Ranks
from tessera.train.run import RunFolder
from tessera.train.settings import TrainSettings
from tessera.train.utilisation import peak_flops


def open_job(folder: RunFolder, *, attempt: int, ranks: Ranks) -> Job:
    """A rank's job, restored from the newest checkpoint that is whole; rank 0 cuts the metrics back to it.

    Raises:
        ShardSetError: the checkpoint belongs to another set, seed or batch size.
        ModelError: a pretrained folder does not fit.
    """
    spec = folder.read_spec()
    settings = spec.settings
    train = _open(folder, split="train")
    info = train.info
    notices: list[str] = []
    found = _newest(folder, ranks=ranks, notice=notices.append)
    shape = settings.model
    if found is not None or spec.origin is not None:
        begun = found.folder if found is not None else folder.home.resolve(spec.origin.folder)  # type: ignore[union-attr]
        shape = shape.model_copy(update={"path": str(begun)})
    model = build(shape, vocab_size=info.vocab_size, seq_len=info.seq_len, end_id=info.end_id, seed=settings.seed)
    model.to(ranks.device).train()
    if settings.activation_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    flops, peak = flops_per_token(model, seq_len=info.seq_len), peak_flops(ranks.device, settings=settings)
    parallel = _share(model, settings=settings, ranks=ranks)
    job = Job(
        folder=folder, spec=spec, attempt=attempt, ranks=ranks, train=train, heldout=_open(folder, split="heldout"),
        order=make_order(train, seed=settings.seed, block_shards=spec.block_shards), model=model, parallel=parallel,
        optimizer=AdamW(model, settings=settings.optimizer), flops_per_token=flops,
        peak_flops=peak and peak * ranks.world,
        environment=environment(ranks, settings=settings),
    )  # fmt: skip
    job.methods = method.make(settings.methods, job=job)
    job.methods.init()
    for notice in notices:
        job.note(notice)
    if found is not None:
        _resume(job, found)
    else:
        _go_on(job)
    if settings.memory_bytes is not None and ranks.device.type == "cpu" and job.progress.micro_batch is None:
        memory.fit(job, budget_bytes=settings.memory_bytes)
    if ranks.rank == 0:
        metrics.cut_back(folder.metrics, step=found.state["num_steps"] if found else -1)
        job.writer = metrics.Writer(folder.metrics)
    if settings.compile:
        model.base_model.compile()  # type: ignore[operator,union-attr]
    return job


def rewind(job: Job) -> None:
    """Back to the newest checkpoint; no batch that came after it, skipped or not, is taken again.

    Nothing happens where there is none, or ranks hold parts of the model.
    """
    job.saver.wait()
    last, spikes = job.progress.next_batch, job.progress.num_spikes
    job.progress.spikes_in_a_row = 0
    found = None if job.parallel.sharded else _newest(job.folder, ranks=job.ranks, notice=job.note)
    if found is None:
        return
    assign(job.model, read_weights(found.folder), origin=found.folder)
    _resume(job, found)
    progress = job.progress
    progress.skipped += range(progress.next_batch, last)
    progress.spikes_in_a_row, progress.num_spikes = 0, spikes
    if job.writer is not None:
        job.writer.close()
        metrics.cut_back(job.folder.metrics, step=progress.next_step)
        job.writer = metrics.Writer(job.folder.metrics)


def _newest(folder: RunFolder, *, ranks: Ranks, notice: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that is whole: rank 0 chooses it, all open it."""
    found = checkpoint.newest(folder.checkpoints, notice=notice) if ranks.rank == 0 else None
    chosen = int(ranks.sum(torch.tensor([found.state["num_steps"] if found else 0], device=ranks.device)).item())
    if not chosen:
        return None
    return found or checkpoint.open_checkpoint(checkpoint.folder_of(folder.checkpoints, step=chosen))


def _share(model: nn.Module, *, settings: TrainSettings, ranks: Ranks) -> Parallel:
    if settings.parallel == "fsdp" and ranks.world > 1:
        from tessera.train.sharding import Sharded

        return Sharded(model, ranks=ranks)
    return Replicated(model, ranks=ranks)


def _resume(job: Job, found: Checkpoint) -> None:
    """All but the weights of a checkpoint of this run."""
    checkpoint.restore_tensors(found, tensors=job.tensors(), like=job.parallel.like)
    vars(job.progress).update(found.state["progress"])
    _check_order(job, found)
    step = job.progress.next_step
    job.last_saved = (step, job.progress.seconds)
    job.note(f"resumed after step {step}")
    for difference in _differences(found.state["environment"], job.surroundings()):
        job.note(difference)


def _go_on(job: Job) -> None:
    """Takes over the run that this one goes on with, if there is one: all but the weights.

    Raises:
        ShardSetError: its order is another: another seed, batch or set.
        CorruptCheckpoint: its checkpoint is gone or damaged, or of other methods.
    """
    origin = job.spec.origin
    if origin is None or origin.point is None:
        return
    found = checkpoint.open_checkpoint(job.folder.home.resolve(origin.folder))
    checkpoint.restore_tensors(found, tensors=job.tensors(), like=job.parallel.like)
    vars(job.progress).update({**found.state["progress"], "seconds": 0.0, "micro_batch": None})
    if origin.new_order:  # other text: what was skipped and what its losses were says nothing
        job.progress.skipped, job.progress.recent, job.progress.spikes_in_a_row = [], [], 0
    else:
        _check_order(job, found)
    job.note(f"goes on from {origin.point.run} after step {origin.point.step}")


def environment(ranks: Ranks, *, settings: TrainSettings) -> dict[str, Any]:
    """What, if it changes, changes the last bits of sums but not the order of samples."""
    return {
        "ranks": ranks.world,
        "threads": ranks.threads,
        "device": ranks.device.type,
        "compile": settings.compile,
        "parallel": settings.parallel,
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
