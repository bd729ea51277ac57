"""Muon: hidden matrices are moved by their orthogonalised momentum (Jordan et al. 2024).

In plain fp32: `torch.optim.Muon` orthogonalises in bf16, which costs six times as much on a CPU, and does it on every
rank. Here equal-shaped matrices, those of experts among them, are stacked and orthogonalised by batched products,
shared out over the ranks; then every rank gathers the others' share. Momenta are kept on every rank (4 bytes a
parameter), so that any rank can write them and any number of ranks can read them.
"""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tessera.train.method import Method, MethodSettings

if TYPE_CHECKING:
    from torch import Tensor

    from tessera.train.optimizer import Named

# Shapes: M = matrices of one shape in a stack, R x C = its rows and columns, R <= C.

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration."""
NUM_ITERATIONS = 5


class MuonSettings(MethodSettings):
    """Moves hidden matrices by their orthogonalised momentum; without it AdamW moves them too."""

    strength: Literal[0, 1] = 1  # type: ignore[assignment]
    """1 is with it, 0 without."""
    lr: float = Field(0.012, gt=0)
    """Learning rate; an update has spectral norm about 1 x sqrt(max(1, rows / columns)) before it."""
    momentum: float = Field(0.95, ge=0, lt=1)
    """Of Nesterov's kind."""


class Muon(Method[MuonSettings]):
    """Takes the hidden matrices over from AdamW; `train.optimizer.weight_decay` holds for them as before."""

    settings_type = MuonSettings
    place = 60

    def init(self) -> None:
        import torch

        self.matrices = self.job.optimizer.give_up_matrices()
        self.momentum = {name: torch.zeros_like(value) for name, value in self.matrices}
        self.rate = 0.0

    def optimizer(self, factor: float) -> None:
        """Nesterov momentum, orthogonalised; scaled so that tall matrices change as much as square ones."""
        import torch

        self.rate = factor * self.settings.lr
        keep = 1 - self.rate * self.job.spec.settings.optimizer.weight_decay
        with torch.no_grad():
            for group in _by_shape(self.matrices):
                stacks = [_wide(self._nesterov(name, value)) for name, value in group]
                done = torch.split(self._orthogonalized(torch.cat(stacks)), [len(stack) for stack in stacks])
                for (name, value), update in zip(group, done, strict=True):
                    rows, columns = _matrix_shape(name, value)
                    turned = update if rows <= columns else update.mT
                    step = -self.rate * max(1.0, rows / columns) ** 0.5
                    value.mul_(keep)
                    value.add_(self.job.parallel.like(turned.reshape(value.shape), shards=value), alpha=step)

    def end_of_batch(self) -> dict[str, float]:
        return {"learning_rate": self.rate}

    def state(self) -> "dict[str, Tensor]":
        return {f"momentum.{name}": value for name, value in self.momentum.items()}

    def _nesterov(self, name: str, value: "Tensor") -> "Tensor":
        assert value.grad is not None
        momentum = self.momentum[name].lerp_(value.grad, 1 - self.settings.momentum)
        return _stack(name, self.job.parallel.whole(value.grad.lerp(momentum, self.settings.momentum)))

    def _orthogonalized(self, stack_MRC: "Tensor") -> "Tensor":
        """`orthogonalize`, each rank doing an equal share, which the others then gather."""
        ranks = self.job.ranks
        if ranks.world == 1:
            return orthogonalize(stack_MRC)
        share = -(-len(stack_MRC) // ranks.world)
        low = ranks.rank * share
        mine = stack_MRC.new_zeros((share, *stack_MRC.shape[1:]))
        own = stack_MRC[low : low + share]
        if len(own):
            mine[: len(own)] = orthogonalize(own)
        return ranks.gather(mine)[: len(stack_MRC)]


def orthogonalize(stack_MRC: "Tensor") -> "Tensor":
    """Moves the singular values of each matrix to about 1 (0.7 to 1.2), keeping its singular vectors; R <= C.

    Five steps of a quintic Newton-Schulz iteration. A matrix of zeros stays zero.
    """
    a, b, c = COEFFICIENTS
    x: Tensor = stack_MRC / (stack_MRC.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(NUM_ITERATIONS):
        gram = x.bmm(x.mT)
        x = x.baddbmm(gram.baddbmm(gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _stack(name: str, value: "Tensor") -> "Tensor":
    """[M, R, C]: a matrix as a stack of one, those of experts as they are; what is fused of two, as two."""
    return value.reshape(-1, *_matrix_shape(name, value))


def _matrix_shape(name: str, value: "Tensor") -> tuple[int, int]:
    """Rows and columns of one matrix of a parameter."""
    fused = 2 if value.dim() == 3 and name.endswith("gate_up_proj") else 1
    return value.shape[-2] // fused, value.shape[-1]


def _by_shape(matrices: "list[Named]") -> "list[list[Named]]":
    """Groups whose members, laid on their wider side, have one shape; the order depends on names and shapes only."""
    groups: dict[tuple[int, ...], list[Named]] = {}
    for name, value in matrices:
        groups.setdefault(tuple(sorted(_matrix_shape(name, value))), []).append((name, value))
    return [groups[shape] for shape in sorted(groups)]


def _wide(stack: "Tensor") -> "Tensor":
    return stack if stack.shape[1] <= stack.shape[2] else stack.mT
