"""The gradients of a global batch: one flat buffer, one sum over the ranks, one norm, one scaling for all.

The sum does not overlap with the backward pass, which a model of a few million parameters does not need.
"""

import torch
from torch import Tensor, nn

from tessera.train.ranks import Ranks


class Gradients:
    """A buffer of which every parameter's `grad` is a view. Backward passes add into it."""

    def __init__(self, model: nn.Module, *, ranks: Ranks) -> None:
        parameters = [value for value in model.parameters() if value.requires_grad]
        self.ranks = ranks
        one, size = parameters[0], sum(value.numel() for value in parameters)
        self.buffer = torch.zeros(size, dtype=one.dtype, device=one.device)
        low = 0
        for value in parameters:
            value.grad = self.buffer[low : low + value.numel()].view_as(value)
            low += value.numel()

    def zero(self) -> None:
        """Before a step; never set a parameter's `grad` to None."""
        self.buffer.zero_()

    def mean(self, tokens: float) -> float:
        """Sums over the ranks, divides by the label tokens of all; the norm."""
        summed: Tensor = self.ranks.sum(self.buffer).div_(max(tokens, 1))
        return float(summed.norm())

    def scale(self, factor: float) -> None:
        self.buffer.mul_(factor)
