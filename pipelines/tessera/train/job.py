"""Everything that a rank holds while it trains: made from the run folder, restored from its newest checkpoint.

The loop only says what happens in which order; this says how. Ranks read run.json, shards.json and shards.arrow, and no
more than that.
"""

import json
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from math import log
from typing import Any

import torch
from torch import Tensor, nn

from tessera.errors import ShardSetError
from tessera.lineage import code_version
from tessera.model.build import build, num_parameters
from tessera.model.loss import IGNORED, causal_nats, token_nats
from tessera.shard.read.batches import MEANINGS, batch_at, make_order, make_state, open_split, resume_step, sequential
from tessera.shard.read.order import Order
from tessera.shard.read.shards import Shards
from tessera.train import checkpoint, metrics
from tessera.train.checkpoint import Checkpoint
from tessera.train.optimizer import Optimizer
from tessera.train.ranks import Ranks, flat_gradients
from tessera.train.run import RunFolder, RunResult, RunSpec, to_json, write_durable

Batch = dict[str, Tensor]

HELDOUT_BATCH = 16
"""Held-out sequences computed at once."""
SEED_STRIDE = 1_000_003
"""Keeps the random numbers of two steps and two seeds apart, should a model draw any."""


@dataclass
class Progress:
    """How far a run is; all of it is in every checkpoint."""

    next_step: int = 0
    train_tokens: int = 0
    seconds: float = 0.0
    """Of training, over all attempts."""
    bits_per_byte_before: float = 0.0
    """Held-out, of the untrained model."""
    bits_per_byte: float = 0.0
    """Held-out, as last measured."""


@dataclass
class Job:
    """One rank's part of a run."""

    folder: RunFolder
    spec: RunSpec
    attempt: int
    ranks: Ranks
    train: Shards
    heldout: Shards
    order: Order
    model: nn.Module
    optimizer: Optimizer
    gradients: Tensor
    """All gradients in one buffer; see `flat_gradients`."""
    progress: Progress = field(default_factory=Progress)
    writer: metrics.Writer | None = None
    last_saved: tuple[int, float] = (0, 0.0)
    """Step and `progress.seconds` of the newest checkpoint."""

    def parts(self, step: int) -> Iterator[Batch]:
        """This rank's part of global batch `step`, in micro-batches, on its device."""
        torch.manual_seed((self.spec.settings.seed * SEED_STRIDE + step) * self.ranks.world + self.ranks.rank)
        size = self.spec.settings.batch_size
        batch = batch_at(
            self.train, self.order, step=step, batch_size=size, rank=self.ranks.rank, world_size=self.ranks.world
        )
        share = size // self.ranks.world
        micro = self.spec.settings.micro_batch or share
        for low in range(0, share, micro):
            yield {name: value[low : low + micro].to(self.ranks.device) for name, value in batch.items()}

    def add_gradients(self, part: Batch) -> Tensor:
        """Adds the gradients of a micro-batch's summed loss to the buffer; [nats, tokens] in float64."""
        with self._precision():
            nats = causal_nats(self.model, part)
        nats.backward()  # type: ignore[no-untyped-call]
        tokens = (part["labels"] != IGNORED).sum()
        return torch.stack([nats.detach().double(), tokens.double()])

    def heldout_loss(self) -> dict[str, float]:
        """Loss and bits per byte of the first held-out sequences; every rank must call it.

        Bits per byte take the labels per byte of the whole split, and so are exact when all sequences are taken.

        Raises:
            ShardSetError: these sequences hold no label.
        """
        total = torch.zeros(2, dtype=torch.float64, device=self.ranks.device)
        limit = min(self.spec.settings.heldout.sequences, self.heldout.num_samples)
        self.model.eval()
        batches = sequential(self.heldout, batch_size=HELDOUT_BATCH, rank=self.ranks.rank, world_size=self.ranks.world)
        for number, batch in enumerate(batches):
            first = (number * self.ranks.world + self.ranks.rank) * HELDOUT_BATCH
            if first >= limit:
                break
            part = {name: value[: limit - first].to(self.ranks.device) for name, value in batch.items()}
            with self._precision():
                nats = token_nats(self.model, part)
            total += torch.stack([nats.double().sum(), (part["labels"] != IGNORED).sum().double()])
        self.model.train()
        nats_sum, tokens = self.ranks.sum(total).tolist()
        if not tokens:
            raise ShardSetError(
                f"the first {limit} held-out sequences have no token that counts in the loss, of "
                f"{self.heldout.num_samples}; raise train.heldout.sequences"
            )
        per_token = nats_sum / tokens
        labels = self.spec.heldout_labels or self.heldout.all_labels
        per_byte = per_token / log(2) * labels.tokens / labels.text_bytes
        self.progress.bits_per_byte = per_byte
        if self.progress.next_step == 0:
            self.progress.bits_per_byte_before = per_byte
        return {"heldout_loss": per_token, "heldout_bits_per_byte": per_byte}

    def log(self, line: dict[str, float]) -> None:
        """One line of metrics.jsonl, from rank 0."""
        if self.writer is not None:
            self.writer.write({**line, "time": round(time.time(), 3)})

    def checkpoint_due(self) -> bool:
        """Whether rank 0 should save now; other ranks need not know."""
        settings, (step, seconds) = self.spec.settings.checkpoint, self.last_saved
        by_steps = settings.every_steps is not None and self.progress.next_step % settings.every_steps == 0
        by_time = settings.every_seconds is not None and self.progress.seconds - seconds >= settings.every_seconds
        return self.ranks.rank == 0 and self.progress.next_step > step and (by_steps or by_time)

    def save(self) -> Checkpoint:
        """Commits a checkpoint of this moment and removes old ones; rank 0 only.

        Raises:
            Superseded: a newer attempt owns the folder; nothing is committed.
        """
        step = self.progress.next_step
        folder = checkpoint.folder_of(self.folder.checkpoints, step=step)
        saved = checkpoint.save(
            folder,
            model=self.model,
            optimizer=self.optimizer,
            tokenizer_folder=self.folder.home.resolve(self.spec.tokenizer),
            state=self._state(),
            before_commit=lambda: self.folder.check_attempt(self.attempt),
            chats=self.spec.heldout_labels is not None,
        )
        checkpoint.prune(self.folder.checkpoints, keep=self.spec.settings.checkpoint.keep)
        self.last_saved = (step, self.progress.seconds)
        return saved

    def finish(self) -> None:
        """The last checkpoint and the run's own record: now it is finished. Rank 0 only."""
        saved = self.save()
        result = RunResult(
            steps=self.progress.next_step,
            ranks=self.ranks.world,
            parameters=num_parameters(self.model),
            train_tokens=self.progress.train_tokens,
            bits_per_byte_before=self.progress.bits_per_byte_before,
            bits_per_byte_after=self.progress.bits_per_byte,
            checkpoint=saved.folder.relative_to(self.folder.root).as_posix(),
            weights_sha256=saved.weights_sha256,
            seconds=round(self.progress.seconds, 3),
        )
        write_durable(self.folder.record, to_json(result.model_dump(mode="json")))

    def _precision(self) -> torch.autocast:
        enabled = self.spec.settings.precision == "bf16"
        return torch.autocast(self.ranks.device.type, dtype=torch.bfloat16, enabled=enabled)

    def _state(self) -> dict[str, Any]:
        loader = make_state(
            self.train, self.order, next_step=self.progress.next_step, batch_size=self.spec.settings.batch_size
        )
        return {
            "num_steps": self.progress.next_step,
            "progress": vars(self.progress),
            "loader": loader,
            "random": "drawn anew at each step from (train.seed, step, rank); nothing to keep",
            "fingerprint": self.spec.fingerprint,
            "attempt": self.attempt,
            "environment": environment(self.spec, ranks=self.ranks),
        }


def environment(spec: RunSpec, *, ranks: Ranks) -> dict[str, Any]:
    """What, if it changes, changes the last bits of sums but not the order of samples."""
    return {
        "ranks": ranks.world,
        "threads": ranks.threads,
        "micro_batch": spec.settings.micro_batch or spec.settings.batch_size // ranks.world,
        "device": ranks.device.type,
        "compile": spec.settings.compile,
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "code": code_version(),
    }


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
    model = build(
        settings.model, vocab_size=info.vocab_size, seq_len=info.seq_len, end_id=info.end_id, seed=settings.seed
    )
    model.to(ranks.device).train()
    job = Job(
        folder=folder, spec=spec, attempt=attempt, ranks=ranks, train=train, heldout=_open(folder, split="heldout"),
        order=order, model=model, optimizer=Optimizer(model, settings=settings.optimizer, ranks=ranks),
        gradients=flat_gradients(model),
    )  # fmt: skip
    _restore(job)
    if settings.compile:
        model.base_model.compile()  # type: ignore[operator,union-attr]
    return job


def _restore(job: Job) -> None:
    """Rank 0 chooses the checkpoint; all load it."""
    folder, ranks = job.folder, job.ranks
    notices: list[str] = []
    found = checkpoint.newest(folder.checkpoints, notice=notices.append) if ranks.rank == 0 else None
    chosen = int(ranks.sum(torch.tensor([found.state["num_steps"] if found else 0], device=ranks.device)).item())
    if chosen:
        at = checkpoint.folder_of(folder.checkpoints, step=chosen)
        found = found or checkpoint.open_checkpoint(at)
        checkpoint.restore(found, model=job.model, optimizer=job.optimizer)
        job.progress = Progress(**found.state["progress"])
        job.progress.next_step = resume_step(
            found.state["loader"], shards=job.train, order=job.order, batch_size=job.spec.settings.batch_size,
            allow=MEANINGS if job.spec.settings.resume_data == "ignore" else (), notice=notices.append,
        )  # fmt: skip
        job.last_saved = (chosen, job.progress.seconds)
        notices.append(f"resumed after step {chosen}")
        notices += _differences(found.state["environment"], environment(job.spec, ranks=ranks))
    if ranks.rank == 0:
        metrics.cut_back(folder.metrics, step=chosen if chosen else -1)
        job.writer = metrics.Writer(folder.metrics)
        with folder.notices.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps({"attempt": job.attempt, "notice": notice}) + "\n" for notice in notices)


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    changed = [f"{key} {before.get(key)} -> {value}" for key, value in now.items() if before.get(key) != value]
    if not changed:
        return []
    return [f"order exact, sums not: {', '.join(changed)} since the checkpoint was written"]


def _open(folder: RunFolder, *, split: str) -> Shards:
    shards = open_split(folder.manifest, split=split, shards_root="")
    shards.root = folder.home.resolve(shards.info.root)
    return shards
