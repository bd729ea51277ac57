"""Fully sharded data parallel (FSDP2): each rank keeps a part of every parameter, gradient and moment.

Each decoder layer is gathered when it is computed and let go after it; embeddings, norm and output projection stay
whole from the forward pass to the backward pass. What a rank keeps are `DTensor`s, on which AdamW works as on any
tensor. Importing torch's own takes 4 s a process, so only a run that asks for it imports this file. Gradients are
summed, never averaged: the mean over tokens is ours.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from tessera.shard.read.batches import Batch
from tessera.train.parallel import OfModel
from tessera.train.ranks import Ranks


class Sharded:
    """A model, equal on all ranks, that is sharded in place; see `parallel.Parallel`."""

    sharded = True

    def __init__(self, model: nn.Module, *, ranks: Ranks) -> None:
        self.ranks = ranks
        mesh = init_device_mesh(ranks.device.type, (ranks.world,))
        for layer in _layers(model):
            fully_shard(layer, mesh=mesh)
        self._root = _Calls(model)
        fully_shard(self._root, mesh=mesh, reshard_after_forward=False)
        for module in self._root.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)  # gloo knows no other sum
        self._parameters = [value for value in model.parameters() if value.requires_grad]

    def call(self, function: OfModel, part: Batch) -> Tensor:
        given: Tensor = self._root(function, part)
        return given

    def zero(self) -> None:
        for value in self._parameters:
            value.grad = None

    def mean(self, tokens: float) -> float:
        squares = torch.zeros((), dtype=torch.float64, device=self.ranks.device)
        for value in self._parameters:
            if value.grad is None:
                value.grad = torch.zeros_like(value)
            squares += _local(value.grad).div_(max(tokens, 1)).double().square().sum()
        return math.sqrt(float(self.ranks.sum(squares)))

    def scale(self, factor: float) -> None:
        for value in self._parameters:
            assert value.grad is not None
            _local(value.grad).mul_(factor)

    def whole(self, value: Tensor) -> Tensor:
        return value.full_tensor() if isinstance(value, DTensor) else value

    def like(self, value: Tensor, *, shards: Tensor) -> Tensor:
        if not isinstance(shards, DTensor):
            return value
        return distribute_tensor(value, shards.device_mesh, shards.placements, src_data_rank=None)


class _Calls(nn.Module):
    """Calls a function of a model as its own forward pass, around which FSDP gathers what lies in no layer."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: OfModel, part: Batch) -> Tensor:
        return function(self.model, part)


def _local(value: Tensor) -> Tensor:
    assert isinstance(value, DTensor)
    local: Tensor = value.to_local()
    return local


def _layers(model: nn.Module) -> list[nn.Module]:
    """The blocks of a decoder: the longest list of modules."""
    lists: list[Any] = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return list(max(lists, key=len, default=[]))
