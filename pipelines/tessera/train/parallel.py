"""How ranks share the work: here each holds the whole model, and its gradients in one flat buffer (DDP).

One sum over the ranks, one norm, one scaling for all parameters. The sum does not overlap with the backward pass, which
a model of a few million parameters does not need. `sharding.Sharded` does the same for a model in parts.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from tessera.shard.read.batches import Batch
from tessera.train.ranks import Ranks

OfModel = Callable[[nn.Module, Batch], Tensor]


class Parallel(Protocol):
    """A model that ranks share, and its gradients."""

    sharded: bool
    """Whether a rank holds parts only: then every rank must take part in whatever asks for all of a tensor."""

    def call(self, function: OfModel, part: Batch) -> Tensor:
        """What a function of the model gives, computed as a forward pass."""

    def zero(self) -> None:
        """Before a step; backward passes add to the gradients."""

    def mean(self, tokens: float) -> float:
        """Makes the gradients those of all ranks, divided by the label tokens of all; their norm."""

    def scale(self, factor: float) -> None:
        """Multiplies the gradients."""

    def whole(self, value: Tensor) -> Tensor:
        """All of a parameter, or of a tensor that is shared as one."""

    def like(self, value: Tensor, *, shards: Tensor) -> Tensor:
        """A whole tensor, equal on all ranks, shared as another is."""


class Replicated:
    """Every parameter's `grad` is a view of one buffer; never set it to None."""

    sharded = False

    def __init__(self, model: nn.Module, *, ranks: Ranks) -> None:
        parameters = [value for value in model.parameters() if value.requires_grad]
        self.model, self.ranks = model, ranks
        one, size = parameters[0], sum(value.numel() for value in parameters)
        self.buffer = torch.zeros(size, dtype=one.dtype, device=one.device)
        low = 0
        for value in parameters:
            value.grad = self.buffer[low : low + value.numel()].view_as(value)
            low += value.numel()

    def call(self, function: OfModel, part: Batch) -> Tensor:
        return function(self.model, part)

    def zero(self) -> None:
        self.buffer.zero_()

    def mean(self, tokens: float) -> float:
        summed: Tensor = self.ranks.sum(self.buffer).div_(max(tokens, 1))
        return float(summed.norm())

    def scale(self, factor: float) -> None:
        self.buffer.mul_(factor)

    def whole(self, value: Tensor) -> Tensor:
        return value

    def like(self, value: Tensor, *, shards: Tensor) -> Tensor:
        return value
