"""The training loop, top to bottom. What each line does is in `job`, `optimizer`, `schedule` and `checkpoint`."""

import time

import torch

from tessera import failpoints
from tessera.errors import TrainingFailed
from tessera.train.job import Job
from tessera.train.schedule import multiplier


def train(job: Job) -> None:
    """Trains from where the job stands to its last step, and finishes the run.

    The gradient of a step is the mean over all label tokens of the global batch, whatever the ranks and micro-batches:
    every backward pass adds sums of nats, which are divided once by the tokens of all.

    Raises:
        TrainingFailed: the loss or the gradient is not finite; names the step, saves nothing.
        Superseded: a newer attempt owns the run folder.
    """
    settings, ranks, progress = job.spec.settings, job.ranks, job.progress
    if progress.next_step == 0:
        job.log({"step": 0, "tokens": 0, **job.heldout_loss()})
    for step in range(progress.next_step, settings.steps):
        began = time.monotonic()
        job.gradients.zero_()
        counted = torch.zeros(2, dtype=torch.float64, device=ranks.device)
        for part in job.parts(step):
            counted += job.add_gradients(part)
        nats, tokens = ranks.sum(counted).tolist()
        norm = ranks.sum(job.gradients).div_(max(tokens, 1)).norm()
        if not torch.isfinite(norm + nats):
            raise TrainingFailed(
                f"step {step + 1}: the loss is {nats / max(tokens, 1):g} and the gradient's norm {norm:g}; training "
                f"stops, the checkpoint after step {job.last_saved[0]} is kept. Lower train.optimizer.matrix_lr"
            )
        if settings.optimizer.clip_norm is not None:
            job.gradients.mul_((settings.optimizer.clip_norm / norm.clamp(min=1e-12)).clamp(max=1.0))
        factor = multiplier(step, steps=settings.steps, settings=settings.schedule)
        job.optimizer.step(factor)

        progress.next_step, progress.train_tokens = step + 1, progress.train_tokens + int(tokens)
        seconds = time.monotonic() - began
        progress.seconds += seconds
        line = {
            "step": step + 1, "loss": nats / max(tokens, 1), "learning_rate": factor * settings.optimizer.matrix_lr,
            "gradient_norm": float(norm), "tokens": progress.train_tokens, "seconds": round(progress.seconds, 3),
            "tokens_per_second": tokens / seconds,
        }  # fmt: skip
        last, every = step + 1 == settings.steps, settings.heldout.every_steps
        if last or (every and (step + 1) % every == 0):
            line |= job.heldout_loss()
        job.log(line)
        failpoints.hit("train.after_step")
        if not last and job.checkpoint_due():
            job.save()
    if ranks.rank == 0:
        job.finish()
    ranks.wait()
