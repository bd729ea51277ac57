"""What decides a training run. Imports pydantic only.

Fields marked EXECUTION cannot change the order of samples, only how the work is shared out: they stay out of the
fingerprint, so that a run may be resumed with others. Sums of floating-point numbers then differ in the last bits,
which the run announces.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from tessera.config import EXECUTION, Section
from tessera.model.settings import ModelSettings
from tessera.train import method

if TYPE_CHECKING:
    AllMethods = method.MethodsSettings
else:
    AllMethods = method.settings_type()


class OptimizerSettings(Section):
    """AdamW, for all parameters that no method updates: beside Muon embeddings, the output projection and gains."""

    matrix_lr: float = Field(0.003, gt=0)
    """Learning rate for hidden matrices, where Muon does not update them."""
    embedding_lr: float = Field(0.08, gt=0)
    """Learning rate for embeddings and the output projection."""
    scalar_lr: float = Field(0.01, gt=0)
    """Learning rate for gains, biases and the routers of a mixture of experts."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """Decay of the mean of gradients."""
    beta2: float = Field(0.99, ge=0, lt=1)
    """Decay of the mean of their squares."""
    epsilon: float = Field(1e-10, gt=0)
    """Added to the root of the mean square."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled decay of matrices and embeddings, times the learning rate; gains and biases never decay."""


class CheckpointSettings(Section):
    """When the state of a run is kept. The last step always is."""

    every_steps: int | None = Field(None, ge=1, json_schema_extra=EXECUTION)
    """Steps between two checkpoints; null goes by time alone."""
    every_seconds: float | None = Field(30.0, gt=0, json_schema_extra=EXECUTION)
    """Seconds between two checkpoints; null goes by steps alone."""
    keep: int = Field(2, ge=1, json_schema_extra=EXECUTION)
    """Checkpoints kept, the newest; two are needed to fall back when the newest is damaged."""
    keep_best: int = Field(0, ge=0, json_schema_extra=EXECUTION)
    """Checkpoints kept besides: those with the fewest held-out bits per byte. See `train.heldout.every_steps`."""


class SpikeSettings(Section):
    """Batches whose loss is far above the recent ones: they are skipped, and what was learned before may be undone."""

    deviations: float | None = Field(10.0, gt=0)
    """A spike lies so many standard deviations above the mean of the recent losses; null takes every batch."""
    least: float = Field(0.25, ge=0)
    """It also lies above the mean by this part of it."""
    window: int = Field(32, ge=2)
    """Losses that are recent; before there are so many, nothing is a spike."""
    patience: int = Field(3, ge=1)
    """Spikes in a row after which the run goes back to its newest checkpoint and leaves out the batches since then."""
    most: int = Field(100, ge=1)
    """Spikes in all before the run is given up."""


class HeldoutSettings(Section):
    """The loss on text that is not trained on, while training. It is also measured before the first and after the last
    step."""

    every_steps: int | None = Field(None, ge=1, json_schema_extra=EXECUTION)
    """Steps between two measurements; null measures at the start and the end only."""
    sequences: int = Field(64, ge=1)
    """Sequences of the held-out split that it takes, from the first; all, if there are fewer."""


class TrainSettings(Section):
    """Everything about a training run except its shards and its tokenizer."""

    model: ModelSettings = ModelSettings()
    from_: str | None = Field(None, alias="from", min_length=1)
    """What the run starts from. RUN or RUN@STEP, a run of this home, with which it goes on: weights, optimizer, step
    and order of samples. models:/NAME@ALIAS or models:/NAME/VERSION, a registered model, or a local folder in Hugging
    Face format, of which it takes the weights. The dimensions of `model` are then not used."""
    only_new: bool = False
    """With a run in `from`: train on no document but those that were added to the set since."""
    steps: int = Field(320, ge=1)
    """Optimizer steps; those of the run in `from` count."""
    batch_size: int = Field(8, ge=1)
    """Sequences of a global batch, over all ranks; a multiple of `ranks`."""
    seed: int = Field(17, ge=0, lt=2**31)
    """Decides the first values of the weights and the order of the samples."""
    purpose: str | None = Field(None, min_length=1, json_schema_extra=EXECUTION)
    """What the model is trained for: a set with documents of a source that does not allow it is refused."""
    resume_data: Literal["same", "ignore"] = Field("same", json_schema_extra=EXECUTION)
    """`ignore` lets a run go on from a checkpoint whose set, seed, order, batch or tokenizer is another: samples may
    then come twice or never. Each difference is told."""
    ranks: int = Field(2, ge=1, json_schema_extra=EXECUTION)
    """Processes that train together, one a GPU, or sharing out the cores."""
    min_ranks: int = Field(1, ge=1, json_schema_extra=EXECUTION)
    """Where machines of a cluster are lost, the run goes on with fewer ranks, but not with fewer than these. The order
    of samples stays as it is."""
    parallel: Literal["ddp", "fsdp"] = Field("ddp", json_schema_extra=EXECUTION)
    """What a rank keeps: the whole model, or with FSDP2 a part of every parameter, gradient and moment."""
    activation_checkpointing: bool = Field(False, json_schema_extra=EXECUTION)
    """Keep the inputs of each layer only, and compute it again in the backward pass: less memory, a third more work."""
    placement: Literal["local", "cluster"] = Field("local", json_schema_extra=EXECUTION)
    """Where the ranks run: beside the driver, or on the cluster's executors, which must see the home at its path."""
    max_restarts: int = Field(0, ge=0, json_schema_extra=EXECUTION)
    """How often ranks that failed are started again, from the newest checkpoint, before the run is given up."""
    beat_seconds: float = Field(2.0, gt=0, json_schema_extra=EXECUTION)
    """On a cluster, a rank that has not seen its launcher's heartbeat file change for so long ends. Raise it where the
    shared storage shows changes late."""
    threads: int | None = Field(None, ge=1, json_schema_extra=EXECUTION)
    """Threads of a rank; null shares out the machine's cores, or on a cluster takes what Spark gives a task."""
    micro_batch: int | None = Field(None, ge=1, json_schema_extra=EXECUTION)
    """Sequences that a rank computes at once; null takes its whole part of the batch."""
    memory_bytes: int | None = Field(None, ge=2**20, json_schema_extra=EXECUTION)
    """What a rank on a CPU may take: its micro-batch is lowered to what fits, by a measurement of one sequence. On a
    GPU the micro-batch is halved whenever memory does not suffice."""
    peak_flops: float | None = Field(None, gt=0, json_schema_extra=EXECUTION)
    """Dense FLOP/s of one rank's device in the precision used, from which utilisation is told; null knows common
    GPUs in bf16, and tells none of others."""
    device: Literal["auto", "cpu", "cuda"] = Field("auto", json_schema_extra=EXECUTION)
    """Where the model runs; `auto` takes a GPU for every rank if there are enough."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of matrix products; weights and sums stay fp32. bf16 pays on GPUs only."""
    deterministic: bool = Field(False, json_schema_extra=EXECUTION)
    """On a GPU: refuse operations whose sums come in no fixed order, and give the same weights every time, more slowly.
    A CPU does so anyway."""
    compile: bool = Field(False, json_schema_extra=EXECUTION)
    """torch.compile: 1.16 times as fast on CPU after 40 CPU-seconds of compiling."""
    timeout_seconds: float = Field(600.0, gt=0, json_schema_extra=EXECUTION)
    """How long a rank waits for another before it gives up."""
    stall_seconds: float = Field(300.0, gt=0, json_schema_extra=EXECUTION)
    """How long all ranks may stand still before the one that holds them up is named and ended. Give more than the
    longest micro-batch, compiling, a held-out measurement and writing a checkpoint take."""
    optimizer: OptimizerSettings = OptimizerSettings()
    methods: AllMethods = AllMethods()
    checkpoint: CheckpointSettings = CheckpointSettings()
    heldout: HeldoutSettings = HeldoutSettings()
    spikes: SpikeSettings = SpikeSettings()

    @model_validator(mode="after")
    def _divisible(self) -> "TrainSettings":
        if self.batch_size % self.ranks:
            raise ValueError(
                f"train.batch_size is {self.batch_size}, which train.ranks ({self.ranks}) does not divide; "
                f"give a multiple of {self.ranks}"
            )
        if self.memory_bytes is not None and self.parallel == "fsdp":
            raise ValueError("train.memory_bytes cannot be measured with train.parallel=fsdp; set train.micro_batch")
        return self


def of_format_1(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as run.json of format 1 has them, in today's terms: schedule, clipping and Muon are methods now."""
    optimizer = dict(values["optimizer"])
    norm = optimizer.pop("clip_norm")
    methods = {
        "wsd": values["schedule"],
        "clipping": {"strength": 0} if norm is None else {"norm": norm},
        "muon": {"lr": optimizer.pop("matrix_lr"), "momentum": optimizer.pop("momentum")},
    }
    kept = {name: value for name, value in values.items() if name != "schedule"}
    return {**kept, "optimizer": optimizer, "methods": methods}
