"""AdamW in plain fp32 torch, over all parameters that no method updates otherwise.

Why not `torch.optim`: importing any of its optimizers pulls in torch._dynamo, 4 s a process.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tessera.model.experts import ROUTER
from tessera.train.settings import OptimizerSettings

Named = tuple[str, nn.Parameter]


@dataclass(frozen=True)
class Kinds:
    """Parameters by what they do, each in the order of their names."""

    matrices: list[Named]
    embeddings: list[Named]
    scalars: list[Named]


def split_parameters(model: nn.Module) -> Kinds:
    """Hidden matrices, also in stacks; embeddings with the output projection; gains, biases and routers.

    The router of a mixture has two dimensions, but each row is an expert's own vector.
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    tables.add(id(model.get_output_embeddings().weight))  # type: ignore[operator]
    named = sorted((name, value) for name, value in model.named_parameters() if value.requires_grad)
    hidden = [(name, value) for name, value in named if id(value) not in tables]
    return Kinds(
        matrices=[(name, value) for name, value in hidden if value.dim() > 1 and not name.endswith(ROUTER)],
        embeddings=[(name, value) for name, value in named if id(value) in tables],
        scalars=[(name, value) for name, value in hidden if value.dim() < 2 or name.endswith(ROUTER)],
    )


class AdamW:
    """Loshchilov and Hutter 2019, with bias correction; its state is named tensors."""

    def __init__(self, model: nn.Module, *, settings: OptimizerSettings) -> None:
        self.settings = settings
        self.kinds = split_parameters(model)
        self.mean = {name: torch.zeros_like(value) for name, value in self._all()}
        self.square = {name: torch.zeros_like(value) for name, value in self._all()}

    def give_up_matrices(self) -> list[Named]:
        """The hidden matrices, which from now on the caller updates."""
        given, self.kinds = self.kinds.matrices, Kinds([], self.kinds.embeddings, self.kinds.scalars)
        for name, _ in given:
            del self.mean[name], self.square[name]
        return given

    @torch.no_grad()
    def step(self, factor: float, *, number: int) -> None:
        """One update from the parameters' gradients.

        Args:
            factor: multiplies every learning rate.
            number: of this update, from 1: the means are young at first.
        """
        settings, kinds = self.settings, self.kinds
        rates = (settings.matrix_lr, settings.embedding_lr, settings.scalar_lr)
        decays = (settings.weight_decay, settings.weight_decay, 0.0)
        for kind, rate, decay in zip((kinds.matrices, kinds.embeddings, kinds.scalars), rates, decays, strict=True):
            self._update(kind, lr=rate * factor, decay=decay, number=number)

    def state(self) -> dict[str, Tensor]:
        """The means by name."""
        moments = (("mean", self.mean), ("square", self.square))
        return {f"{kind}.{name}": value for kind, values in moments for name, value in values.items()}

    def _update(self, parameters: list[Named], *, lr: float, decay: float, number: int) -> None:
        beta1, beta2 = self.settings.beta1, self.settings.beta2
        correction1, correction2 = 1 - beta1**number, 1 - beta2**number
        for name, value in parameters:
            assert value.grad is not None
            mean = self.mean[name].lerp_(value.grad, 1 - beta1)
            square = self.square[name].mul_(beta2).addcmul_(value.grad, value.grad, value=1 - beta2)
            divisor = (square / correction2).sqrt_().add_(self.settings.epsilon)
            value.mul_(1 - lr * decay)
            value.addcdiv_(mean, divisor, value=-lr / correction1)

    def _all(self) -> Iterator[Named]:
        yield from (*self.kinds.matrices, *self.kinds.embeddings, *self.kinds.scalars)
