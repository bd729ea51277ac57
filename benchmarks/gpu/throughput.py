"""Training throughput on one device: whole steps of our own loss and optimizer on random tokens, in bf16.

A step is forward, backward and update, as `tessera.train.loop` does them; packed documents, four to a sequence, with
their mask. Batches are made beforehand: reading is measured by benchmarks/loader.py. Steps before the clock starts warm
up the allocator, cuBLAS and the compiler.
"""

import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from tessera.model.build import build, num_parameters
from tessera.model.cost import flops_per_token
from tessera.model.loss import causal_nats
from tessera.model.settings import ModelSettings
from tessera.train.methods.muon import Muon, MuonSettings
from tessera.train.optimizer import AdamW
from tessera.train.parallel import Replicated
from tessera.train.ranks import Ranks
from tessera.train.settings import TrainSettings
from tessera.train.utilisation import peak_flops

# Shapes: B = sequences, T = seq_len.
Batch = dict[str, Tensor]

DOCUMENTS = 4
"""Documents in a sequence."""


@dataclass(frozen=True)
class Size:
    """What is trained, and how long it is watched."""

    name: str
    model: ModelSettings
    vocab_size: int
    seq_len: int
    batch_size: int
    warmup_steps: int = 5
    steps: int = 20


SIZES = (
    Size(
        "w512-l8",
        ModelSettings(layers=8, width=512, heads=8, kv_heads=4, ffn_width=1536),
        vocab_size=16_384, seq_len=1024, batch_size=32,
    ),
    Size(
        "w1024-l12",
        ModelSettings(layers=12, width=1024, heads=16, kv_heads=8, ffn_width=3072),
        vocab_size=32_768, seq_len=1024, batch_size=16,
    ),
)  # fmt: skip
SMALL = (
    Size(
        "w64-l2",
        ModelSettings(layers=2, width=64, heads=2, kv_heads=1, ffn_width=128),
        vocab_size=512, seq_len=64, batch_size=4, warmup_steps=3, steps=3,
    ),
)  # fmt: skip


def measure(size: Size, *, device: str, compiled: bool) -> dict[str, Any]:
    """Tokens a second of `size.steps` steps after the warm-up, peak memory, and utilisation where the peak is known."""
    clock = Clock(device)
    model = build(size.model, vocab_size=size.vocab_size, seq_len=size.seq_len, end_id=0, seed=1).to(device).train()
    optimizer = Both(model, device=device)
    if compiled:
        model.base_model.compile()  # type: ignore[operator,union-attr]
    batches = [random_batch(size, seed=seed, device=device) for seed in range(4)]
    began = clock.now()
    losses = [step(model, batch=batches[i % 4], optimizer=optimizer, clock=clock)["loss"]
              for i in range(size.warmup_steps)]  # fmt: skip
    warm = clock.now()
    timed = [step(model, batch=batches[i % 4], optimizer=optimizer, clock=clock)
             for i in range(size.steps)]  # fmt: skip
    seconds = clock.now() - warm
    assert torch.isfinite(torch.tensor([*losses, *[one["loss"] for one in timed]])).all(), "the loss is not finite"
    tokens_per_second = size.steps * size.batch_size * size.seq_len / seconds
    flops = flops_per_token(model, seq_len=size.seq_len)
    peak = peak_flops(torch.device(device), settings=TrainSettings())
    return {
        "size": size.name,
        "compiled": compiled,
        "parameters": num_parameters(model),
        "tokens_per_second": round(tokens_per_second),
        "warmup_seconds": round(warm - began, 2),
        "step_seconds": seconds / size.steps,
        "optimizer_share": sum(one["optimizer_seconds"] for one in timed) / seconds,
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else None,
        "tflops": flops * tokens_per_second / 1e12,
        "utilisation": flops * tokens_per_second / peak if peak else None,
    }


class Both:
    """Muon and AdamW over one model, as a run has them."""

    def __init__(self, model: nn.Module, *, device: str) -> None:
        settings, ranks = TrainSettings(), Ranks(device=torch.device(device))
        self.adamw = AdamW(model, settings=settings.optimizer)
        self.gradients = Replicated(model, ranks=ranks)
        job: Any = SimpleNamespace(
            optimizer=self.adamw, ranks=ranks, parallel=self.gradients, spec=SimpleNamespace(settings=settings)
        )
        self.muon = Muon(MuonSettings(), job=job)
        self.muon.init()
        self.number = 0

    def step(self) -> None:
        self.number += 1
        self.adamw.step(1.0, number=self.number)
        self.muon.optimizer(1.0)


def step(model: nn.Module, *, batch: Batch, optimizer: Both, clock: "Clock") -> dict[str, float]:
    """One step, waited for; its loss a token, and the seconds of the update."""
    optimizer.gradients.zero()
    with torch.autocast(batch["input_ids"].device.type, dtype=torch.bfloat16):
        nats = causal_nats(model, batch)
    nats.backward()  # type: ignore[no-untyped-call]
    norm = optimizer.gradients.mean(batch["labels"].numel())
    optimizer.gradients.scale(min(1.0, 1.0 / max(norm, 1e-12)))
    updating = clock.now()
    optimizer.step()
    return {"loss": float(nats.detach()) / batch["labels"].numel(), "optimizer_seconds": clock.now() - updating}


def random_batch(size: Size, *, seed: int, device: str) -> Batch:
    """[B, T] random tokens in documents of equal length."""
    generator = torch.Generator().manual_seed(seed)
    shape = (size.batch_size, size.seq_len)
    tokens = torch.randint(size.vocab_size, (size.batch_size, size.seq_len + 1), generator=generator)
    length = size.seq_len // DOCUMENTS
    place = torch.arange(size.seq_len).expand(shape)
    arrays = {
        "input_ids": tokens[:, :-1],
        "labels": tokens[:, 1:],
        "position_ids": place % length,
        "document_ids": (place // length).int(),
    }
    return {name: value.contiguous().to(device) for name, value in arrays.items()}


class Clock:
    """Seconds, read when the device has done what it was given; peak memory is counted from its making on."""

    def __init__(self, device: str) -> None:
        self._cuda = device == "cuda"
        if self._cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def now(self) -> float:
        if self._cuda:
            torch.cuda.synchronize()
        return time.perf_counter()
