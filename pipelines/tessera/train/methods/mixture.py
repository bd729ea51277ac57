"""What keeps a mixture of experts in use: balance and z-loss of its routers, the load of each expert, an alarm.

The balance loss is experts x sum over them of (share of tokens) x (mean probability), 1 when all are used alike (Fedus
et al. 2021, "Switch Transformers"), here with the shares of the step before, of the whole global batch: so it is a sum
over tokens, equal for any number of ranks and micro-batches, and looks at more than one sequence (Qiu et al. 2025,
"Demons in the detail"). The z-loss keeps the routers' logits small (Zoph et al. 2022, "ST-MoE"). Does nothing to a
dense model.
"""

from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from pydantic import Field

from tessera.train.method import Method, MethodSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

    from tessera.shard.read.batches import Batch

# Shapes: L = layers with a router, E = experts, N = tokens of a micro-batch.

ROUTER = "TopKRouter"
"""How the class of a router ends; it gives logits [N, E], weights [N, k] and experts [N, k]."""


class MixtureSettings(MethodSettings):
    """Keeps the experts of a mixture in use; leaves dense models alone."""

    balance: float = Field(0.01, ge=0)
    """Weight of the balance loss beside the nats of a token."""
    router_z: float = Field(0.001, ge=0)
    """Weight of the square of the log-sum-exp of a router's logits."""
    idle_share: float = Field(0.02, ge=0, lt=1)
    """An expert with less than this part of an even load is idle."""
    alarm_steps: int = Field(50, ge=1)
    """Steps for which an expert is idle before its layer is told of, as collapsed."""
    record_steps: int = Field(20, ge=1)
    """Steps between two records of the load of each expert; the most and the least are recorded at every one."""


class Mixture(Method[MixtureSettings]):
    """Listens to the routers while a micro-batch is computed; recomputed and held-out passes are not heard."""

    settings_type = MixtureSettings
    place = 30

    def init(self) -> None:
        import torch

        model, device = self.job.model, self.job.ranks.device
        routers = [module for module in model.modules() if type(module).__name__.endswith(ROUTER)]
        self._logits: list[Tensor] = []
        self._chosen: list[Tensor] = []
        self._hears = False
        self.told: set[int] = set()
        for router in routers:
            router.register_forward_hook(self._hear)
        count = int(getattr(model.config, "num_experts", 0) or getattr(model.config, "num_local_experts", 0) or 0)
        self.shape = (len(routers), count if routers else 0)
        self.counts = torch.zeros(self.shape, device=device)
        """Tokens of this step by layer and expert."""
        self.shares = torch.full(self.shape, 1 / max(count, 1), device=device)
        """Of the step before, [L, E], each row adding up to 1."""
        self.idle = torch.zeros(self.shape, device=device)
        """Steps in a row for which an expert was idle."""

    def batch(self) -> None:
        self.counts.zero_()

    def forward(self) -> AbstractContextManager[None]:
        return self._listening()

    def loss(self, nats: "Tensor", part: "Batch") -> "Tensor":
        import torch

        from tessera.model.loss import sum_dtype

        if not self._logits:
            return nats
        real = (part["document_ids"] >= 0).flatten()
        experts = self.shape[1]
        for layer, (logits, chosen) in enumerate(zip(self._logits, self._chosen, strict=True)):
            logits_NE = logits[real].to(sum_dtype(logits))
            self.counts[layer] += torch.bincount(chosen[real].flatten(), minlength=experts)
            balance = experts * (logits_NE.softmax(1) @ self.shares[layer].to(logits_NE.dtype)).sum()
            z = logits_NE.logsumexp(1).square().sum()
            added = self.settings.balance * balance + self.settings.router_z * z
            nats = nats + self.settings.strength / self.shape[0] * added
        return nats

    def end_of_batch(self) -> dict[str, float]:
        """Most and least loaded experts, 1 being an even load; now and then each one's, by layer."""
        if not self.shape[0]:
            return {}
        counts = self.job.ranks.sum(self.counts)
        self.shares.copy_(counts / counts.sum(1, keepdim=True).clamp(min=1))
        load_LE = self.shares * self.shape[1]
        self.idle.add_(1).mul_(load_LE < self.settings.idle_share)
        self._alarm()
        line = {"expert_load_most": float(load_LE.max()), "expert_load_least": float(load_LE.min())}
        if self.job.progress.next_step % self.settings.record_steps == 0:
            for layer, loads in enumerate(load_LE.tolist()):
                line |= {f"expert_load/layer_{layer}/{expert}": load for expert, load in enumerate(loads)}
        return line

    def state(self) -> "dict[str, Tensor]":
        return {"shares": self.shares, "idle": self.idle} if self.shape[0] else {}

    @contextmanager
    def _listening(self) -> "Iterator[None]":
        self._logits, self._chosen, self._hears = [], [], True
        try:
            yield
        finally:
            self._logits, self._chosen, self._hears = [], [], False

    def _hear(self, router: "nn.Module", given: Any, output: "tuple[Tensor, Tensor, Tensor]") -> None:
        if self._hears:
            self._logits.append(output[0])
            self._chosen.append(output[2])

    def _alarm(self) -> None:
        collapsed = (self.idle >= self.settings.alarm_steps).sum(1).tolist()
        for layer, idle in enumerate(collapsed):
            if idle and layer not in self.told:
                self.told.add(layer)
                self.job.note(
                    f"layer {layer}: {int(idle)} of {self.shape[1]} experts have had hardly a token for "
                    f"{self.settings.alarm_steps} steps; raise train.methods.mixture.balance"
                )
