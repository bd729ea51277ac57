"""The training loop, top to bottom. What a line does is in `job`, `parallel`, `method` or `checkpoint`."""

import time

import torch
from torch import Tensor

from tessera import failpoints
from tessera.model.loss import IGNORED
from tessera.train import heldout
from tessera.train.job import Job
from tessera.train.opening import rewind


def train(job: Job) -> None:
    """Trains from where the job stands to its last step, and finishes the run.

    The gradient of a step is the mean over all label tokens of the global batch, whatever the ranks and micro-batches:
    every backward pass adds sums of nats, which are divided once by the tokens of all.

    Raises:
        TrainingFailed: the loss or the gradient is not finite; names the step, saves nothing.
        Superseded: a newer attempt owns the run folder.
    """
    settings, ranks, progress, methods = job.spec.settings, job.ranks, job.progress, job.methods
    with job.saver:
        if progress.next_step == job.first_step:
            job.log({"step": progress.next_step, "tokens": progress.train_tokens, **heldout.measure(job)})
        while progress.next_step < settings.steps:
            began = time.monotonic()
            nats, tokens = ranks.sum(job.within_memory(lambda: add_gradients(job))).tolist()
            loss, norm = nats / max(tokens, 1), job.parallel.mean(tokens)
            job.check_finite(loss=loss, norm=norm)
            if job.skip_spike(loss):
                if progress.spikes_in_a_row == settings.spikes.patience:
                    rewind(job)
                continue
            methods.backward(norm=norm)
            factor = methods.schedule(progress.next_step)
            job.optimizer.step(factor, number=progress.next_step + 1)
            methods.optimizer(factor)

            progress.next_step, progress.train_tokens = progress.next_step + 1, progress.train_tokens + int(tokens)
            seconds = time.monotonic() - began
            progress.seconds += seconds
            line = {
                "step": progress.next_step, "loss": loss, "gradient_norm": norm, "tokens": progress.train_tokens,
                "learning_rate": factor * settings.optimizer.matrix_lr, "seconds": round(progress.seconds, 3),
                **job.speed(tokens, seconds=seconds), **methods.end_of_batch(),
            }  # fmt: skip
            last, every = progress.next_step == settings.steps, settings.heldout.every_steps
            if last:
                methods.end()
            if last or (every and progress.next_step % every == 0):
                line |= heldout.measure(job)
            job.log(line)
            failpoints.hit("train.after_step")
            if not last and job.checkpoint_due():
                job.save()
        job.finish()
        ranks.wait()


def add_gradients(job: Job) -> Tensor:
    """The gradients of this rank's part of the next batch; [nats, label tokens] in float64."""
    job.parallel.zero()
    job.methods.batch()
    counted = torch.zeros(2, dtype=torch.float64, device=job.ranks.device)
    for part in job.parts():
        with job.methods.forward():
            nats = job.nats(part)
            loss = job.methods.loss(nats, part)
        loss.backward()  # type: ignore[no-untyped-call]
        counted += torch.stack([nats.detach().double(), (part["labels"] != IGNORED).sum().double()])
    return counted
