"""Muon for hidden matrices and AdamW for the rest, in plain fp32 torch.

Why not `torch.optim`: its Muon orthogonalises in bf16, which costs six times as much on a CPU, and does it on every
rank; and importing any of its optimizers pulls in torch._dynamo, 4 s a process. Here equal-shaped matrices are stacked
and orthogonalised by batched products, shared out over the ranks; then every rank gathers the others' share. Momenta
are kept on every rank (4 bytes a parameter), so that any rank can write them and any number of ranks can read them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tessera.train.ranks import Ranks
from tessera.train.settings import OptimizerSettings

# Shapes: M = matrices of one shape in a stack, R x C = its rows and columns, R <= C.

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration, after Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024)."""
NUM_ITERATIONS = 5

Named = tuple[str, nn.Parameter]


@dataclass(frozen=True)
class Kinds:
    """Parameters by how they are updated, each in the order of their names."""

    matrices: list[Named]
    embeddings: list[Named]
    scalars: list[Named]


def split_parameters(model: nn.Module) -> Kinds:
    """Hidden matrices; embeddings with the output projection; everything of fewer than two dimensions."""
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    tables.add(id(model.get_output_embeddings().weight))  # type: ignore[operator]
    named = sorted((name, value) for name, value in model.named_parameters() if value.requires_grad)
    return Kinds(
        matrices=[(name, value) for name, value in named if value.dim() == 2 and id(value) not in tables],
        embeddings=[(name, value) for name, value in named if id(value) in tables],
        scalars=[(name, value) for name, value in named if value.dim() != 2 and id(value) not in tables],
    )


def orthogonalize(stack_MRC: Tensor) -> Tensor:
    """Moves the singular values of each matrix to about 1 (0.7 to 1.2), keeping its singular vectors; R <= C.

    Five steps of a quintic Newton-Schulz iteration. A matrix of zeros stays zero.
    """
    a, b, c = COEFFICIENTS
    x: Tensor = stack_MRC / (stack_MRC.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(NUM_ITERATIONS):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


class Optimizer:
    """Both methods over one model; its state is named tensors.

    Args:
        ranks: share out the orthogonalisation; every rank must call `step` with equal gradients.
    """

    def __init__(self, model: nn.Module, *, settings: OptimizerSettings, ranks: Ranks) -> None:
        self.settings = settings
        self.ranks = ranks
        self.kinds = split_parameters(model)
        self.num_steps = 0
        self.momentum = {name: torch.zeros_like(value) for name, value in self.kinds.matrices}
        others = [*self.kinds.embeddings, *self.kinds.scalars]
        self.mean = {name: torch.zeros_like(value) for name, value in others}
        self.square = {name: torch.zeros_like(value) for name, value in others}

    @torch.no_grad()
    def step(self, multiplier: float) -> None:
        """One update from the parameters' gradients, every learning rate times `multiplier`."""
        self.num_steps += 1
        settings = self.settings
        self._step_matrices(settings.matrix_lr * multiplier)
        self._step_adamw(self.kinds.embeddings, lr=settings.embedding_lr * multiplier, decay=settings.weight_decay)
        self._step_adamw(self.kinds.scalars, lr=settings.scalar_lr * multiplier, decay=0.0)

    def state(self) -> dict[str, Tensor]:
        """Everything but `num_steps`, by name."""
        return {f"{kind}.{name}": value for kind, values in self._moments() for name, value in values.items()}

    def load_state(self, state: Mapping[str, Tensor], *, num_steps: int) -> None:
        """The inverse of `state`; names and shapes must be those of this model."""
        assert set(state) == set(self.state()), sorted(set(state) ^ set(self.state()))[:3]
        for key, value in self.state().items():
            value.copy_(state[key])
        self.num_steps = num_steps

    def _moments(self) -> Iterable[tuple[str, dict[str, Tensor]]]:
        return (("momentum", self.momentum), ("mean", self.mean), ("square", self.square))

    def _step_matrices(self, lr: float) -> None:
        """Muon: Nesterov momentum, orthogonalised; scaled so that tall matrices change as much as square ones."""
        for group in _by_shape(self.kinds.matrices):
            updates = [_wide(self._nesterov(name, value)) for name, value in group]
            for (_, value), update in zip(group, self._orthogonalized(torch.stack(updates)), strict=True):
                rows, columns = value.shape
                value.mul_(1 - lr * self.settings.weight_decay)
                value.add_(update if rows <= columns else update.mT, alpha=-lr * max(1.0, rows / columns) ** 0.5)

    def _nesterov(self, name: str, value: nn.Parameter) -> Tensor:
        gradient = _gradient(value)
        momentum = self.momentum[name].lerp_(gradient, 1 - self.settings.momentum)
        return gradient.lerp(momentum, self.settings.momentum)

    def _orthogonalized(self, stack_MRC: Tensor) -> Tensor:
        """`orthogonalize`, each rank doing an equal share, which the others then gather."""
        world = self.ranks.world
        if world == 1:
            return orthogonalize(stack_MRC)
        share = -(-len(stack_MRC) // world)
        low = self.ranks.rank * share
        mine = torch.zeros((share, *stack_MRC.shape[1:]), dtype=stack_MRC.dtype, device=stack_MRC.device)
        own = stack_MRC[low : low + share]
        if len(own):
            mine[: len(own)] = orthogonalize(own)
        return self.ranks.gather(mine)[: len(stack_MRC)]

    def _step_adamw(self, parameters: list[Named], *, lr: float, decay: float) -> None:
        """Loshchilov and Hutter 2019, with bias correction."""
        beta1, beta2 = self.settings.beta1, self.settings.beta2
        correction1, correction2 = 1 - beta1**self.num_steps, 1 - beta2**self.num_steps
        for name, value in parameters:
            gradient = _gradient(value)
            mean = self.mean[name].lerp_(gradient, 1 - beta1)
            square = self.square[name].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            divisor = (square / correction2).sqrt_().add_(self.settings.epsilon)
            value.mul_(1 - lr * decay)
            value.addcdiv_(mean, divisor, value=-lr / correction1)


def _by_shape(matrices: list[Named]) -> list[list[Named]]:
    """Groups whose members, laid on their wider side, have one shape; the order depends on names and shapes only."""
    groups: dict[tuple[int, ...], list[Named]] = {}
    for name, value in matrices:
        groups.setdefault(tuple(sorted(value.shape)), []).append((name, value))
    return [groups[shape] for shape in sorted(groups)]


def _wide(matrix: Tensor) -> Tensor:
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT


def _gradient(value: nn.Parameter) -> Tensor:
    assert value.grad is not None
    return value.grad
