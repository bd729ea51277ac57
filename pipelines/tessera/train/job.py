"""Everything that a rank holds while it trains, and what it can do with it. The loop says in which order.

`opening` makes a job from the run folder, restored from its newest checkpoint.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tessera.errors import TrainingFailed
from tessera.model.build import num_parameters
from tessera.model.loss import CrossEntropy, causal_nats, whole_cross_entropy
from tessera.shard.read.batches import Batch, batch_at, make_state
from tessera.shard.read.order import Order
from tessera.shard.read.shards import Shards
from tessera.train import checkpoint, metrics, spikes, utilisation
from tessera.train.arrange import one_document_a_row
from tessera.train.checkpoint import Checkpoint
from tessera.train.method import Methods
from tessera.train.optimizer import AdamW
from tessera.train.parallel import Parallel
from tessera.train.ranks import Ranks
from tessera.train.run import RunFolder, RunResult, RunSpec, to_json, write_durable
from tessera.train.saver import Saver

SEED_STRIDE = 1_000_003
"""Keeps the random numbers of two steps and two seeds apart, should a model draw any."""

ResultT = TypeVar("ResultT")


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
    bits_per_byte_step: int = -1
    """Steps done when it was."""
    micro_batch: int | None = None
    """Sequences computed at once, where memory did not suffice for what was asked for."""
    recent: list[float] = field(default_factory=list)
    """The last losses, in nats a token."""
    skipped: list[int] = field(default_factory=list)
    """Batches of the order that no step took; see `spikes`."""
    spikes_in_a_row: int = 0
    num_spikes: int = 0
    """In all; fewer than the batches skipped, where a run went back."""

    @property
    def next_batch(self) -> int:
        """Counted through the run, from 0: skipped ones lie behind."""
        return self.next_step + len(self.skipped)


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
    optimizer: AdamW
    parallel: Parallel
    """The model's gradients, and how the ranks share both."""
    environment: dict[str, Any]
    """What, if it changes, changes the last bits of sums; see `opening.environment`."""
    flops_per_token: float = 0.0
    """See `model.cost`."""
    peak_flops: float | None = None
    """FLOP/s of the devices of all ranks together, if known; see `utilisation`."""
    progress: Progress = field(default_factory=Progress)
    writer: metrics.Writer | None = None
    last_saved: tuple[int, float] = (0, 0.0)
    """Step and `progress.seconds` of the newest checkpoint."""
    methods: Methods = field(default_factory=lambda: Methods({}))
    arrange: Callable[[Batch], Batch] = one_document_a_row
    """What a method may make of rows as they lie in the shards."""
    saver: Saver = field(default_factory=Saver)
    cross_entropy: CrossEntropy = whole_cross_entropy

    @property
    def first_step(self) -> int:
        """Steps that were done before this run, by the one that it goes on with."""
        origin = self.spec.origin
        return origin.point.step if origin and origin.point else 0

    @property
    def position(self) -> int:
        """The next batch of the order, from 0."""
        return self.progress.next_batch - (self.spec.origin.offset if self.spec.origin else 0)

    @property
    def micro_batch(self) -> int:
        """Sequences that this rank computes at once."""
        settings = self.spec.settings
        asked = settings.micro_batch or settings.batch_size // self.ranks.world
        return min(asked, self.progress.micro_batch or asked)

    def parts(self) -> Iterator[Batch]:
        """This rank's part of the next global batch, in micro-batches, on its device."""
        settings, ranks, number = self.spec.settings, self.ranks, self.progress.next_batch
        ranks.pulse.at(self.progress.next_step + 1)
        torch.manual_seed((settings.seed * SEED_STRIDE + number) * ranks.world + ranks.rank)
        batch = batch_at(
            self.train, self.order, step=self.position, batch_size=settings.batch_size, rank=ranks.rank,
            world_size=ranks.world,
        )  # fmt: skip
        for low in range(0, settings.batch_size // ranks.world, self.micro_batch):
            part = {name: value[low : low + self.micro_batch] for name, value in batch.items()}
            arranged = {name: value.to(ranks.device) for name, value in self.arrange(part).items()}
            yield self.methods.micro_batch(arranged)

    def nats(self, part: Batch) -> Tensor:
        """The loss of a micro-batch: the sum of nats over its labels, with gradient."""
        with self.precision():
            return self.parallel.call(partial(causal_nats, cross_entropy=self.cross_entropy), part)

    def within_memory(self, compute: Callable[[], ResultT]) -> ResultT:
        """What `compute` gives; where the device's memory does not suffice, again with half the micro-batch.

        Raises:
            TrainingFailed: not even one sequence fits.
        """
        while True:
            try:
                return compute()
            except torch.OutOfMemoryError:
                if self.parallel.sharded:
                    raise  # the other ranks are in the middle of a gather
                if self.micro_batch == 1:
                    raise TrainingFailed(
                        "one sequence alone does not fit into the memory of the device; give a smaller train.model, "
                        "or shards with a smaller shard.seq_len"
                    ) from None
            self.progress.micro_batch = -(-self.micro_batch // 2)
            torch.cuda.empty_cache()

    def check_finite(self, *, loss: float, norm: float) -> None:
        """Raises TrainingFailed when the loss or the gradient is not finite; names the step."""
        if not torch.isfinite(torch.tensor(loss + norm)):
            self.saver.wait()
            raise TrainingFailed(
                f"step {self.progress.next_step + 1}: the loss is {loss:g} and the gradient's norm {norm:g}; training "
                f"stops, the newest checkpoint is kept. Lower train.methods.muon.lr"
            )

    def skip_spike(self, loss: float) -> bool:
        """Whether the batch is passed over; see `spikes`. After several in a row the newest checkpoint is restored.

        Raises:
            TrainingFailed: more batches were skipped than the settings allow.
        """
        progress, settings = self.progress, self.spec.settings.spikes
        if not spikes.is_spike(loss, recent=progress.recent, settings=settings):
            progress.spikes_in_a_row = 0
            progress.recent = [*progress.recent, loss][-settings.window :]
            return False
        progress.skipped.append(progress.next_batch)
        progress.spikes_in_a_row, progress.num_spikes = progress.spikes_in_a_row + 1, progress.num_spikes + 1
        if progress.num_spikes > settings.most:
            raise TrainingFailed(
                f"step {progress.next_step + 1}: {progress.num_spikes} batches were skipped for spikes of the loss, "
                f"the last of {loss:.3g} nats a token; lower train.methods.muon.lr, or allow more: train.spikes.most"
            )
        self.note(f"step {progress.next_step + 1}: the loss of batch {progress.skipped[-1] + 1} is {loss:.3g} nats a "
                  f"token, far above the recent ones; it is skipped")  # fmt: skip
        return True

    def speed(self, tokens: float, *, seconds: float) -> dict[str, float]:
        """Of a step over all ranks, and the memory of this one; see `utilisation`."""
        made = utilisation.speed(tokens, seconds=seconds, flops_per_token=self.flops_per_token, peak=self.peak_flops)
        return {**made, "memory_bytes": utilisation.memory_bytes(self.ranks.device)}

    def log(self, line: dict[str, float]) -> None:
        """One line of metrics.jsonl, from rank 0."""
        if self.writer is not None:
            self.writer.write({**line, "time": round(time.time(), 3)})

    def note(self, text: str) -> None:
        """A line of notices.jsonl, from rank 0, which the launcher tells."""
        if self.ranks.rank == 0:
            with self.folder.notices.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"attempt": self.attempt, "notice": text}) + "\n")

    def checkpoint_due(self) -> bool:
        """Whether to save now, by rank 0's clock; where ranks hold parts, all of them hear. Raises what went wrong in
        the last save."""
        self.saver.check()
        if self.parallel.sharded:
            due = torch.tensor([float(self.ranks.rank == 0 and self._is_due())], device=self.ranks.device)
            return bool(self.ranks.sum(due).item())
        return self.ranks.rank == 0 and self._is_due()

    def _is_due(self) -> bool:
        settings, (step, seconds) = self.spec.settings.checkpoint, self.last_saved
        by_steps = settings.every_steps is not None and self.progress.next_step % settings.every_steps == 0
        by_time = settings.every_seconds is not None and self.progress.seconds - seconds >= settings.every_seconds
        return self.progress.next_step > step and (by_steps or by_time)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps besides the weights, by name; restoring copies into them."""
        return {**self.optimizer.state(), **self.methods.state()}

    def save(self) -> None:
        """Rank 0 begins to write a checkpoint of this moment and to remove old ones; ranks with parts give theirs.

        Raises:
            Superseded: a newer attempt owns the folder; of the save before.
        """
        if self.ranks.rank and not self.parallel.sharded:
            return
        step, settings = self.progress.next_step, self.spec.settings.checkpoint
        folder = checkpoint.folder_of(self.folder.checkpoints, step=step)
        values, state = checkpoint.take(self.model, tensors=self.tensors()), self._state()

        def write() -> Checkpoint:
            saved = checkpoint.save(
                folder, model=self.model, values=values, state=state,
                tokenizer_folder=self.folder.home.resolve(self.spec.tokenizer),
                before_commit=lambda: self.folder.check_attempt(self.attempt),
                chats=self.spec.heldout_labels is not None,
            )  # fmt: skip
            checkpoint.prune(self.folder.checkpoints, keep=settings.keep, keep_best=settings.keep_best)
            return saved

        if self.ranks.rank == 0:
            self.saver.start(write)
        self.last_saved = (step, self.progress.seconds)

    def finish(self) -> None:
        """The last checkpoint and the run's own record, which rank 0 writes: now it is finished.

        Raises:
            Superseded: a newer attempt owns the folder; nothing is committed.
        """
        self.save()
        saved = self.saver.wait()
        if self.ranks.rank:
            return
        assert saved is not None
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
            skipped=tuple(self.progress.skipped),
        )
        write_durable(self.folder.record, to_json(result.model_dump(mode="json")))

    def surroundings(self) -> dict[str, Any]:
        """`environment` with what is computed at once."""
        return {**self.environment, "micro_batch": self.micro_batch}

    def precision(self) -> torch.autocast:
        """Matrix products in bfloat16, where the settings say so."""
        enabled = self.spec.settings.precision == "bf16"
        return torch.autocast(self.ranks.device.type, dtype=torch.bfloat16, enabled=enabled)

    def _state(self) -> dict[str, Any]:
        loader = make_state(self.train, self.order, next_step=self.position, batch_size=self.spec.settings.batch_size)
        return {
            "num_steps": self.progress.next_step,
            "progress": asdict(self.progress),
            "loader": loader,
            "random": "drawn anew at each step from (train.seed, batch, rank); nothing to keep",
            "fingerprint": self.spec.fingerprint,
            "attempt": self.attempt,
            "environment": self.surroundings(),
        }
