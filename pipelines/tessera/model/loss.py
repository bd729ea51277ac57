"""Cross-entropy over a large vocabulary without ever holding all logits.

The projection onto V words is done for `chunk` tokens at a time, and the gradients of that chunk are computed at once,
so memory is chunk x V instead of N x V, for the price of holding one gradient of the weight. The forward pass does
the work of both; backward only scales. After Liger kernels' fused linear cross-entropy, in plain torch.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

# Shapes: B = sequences, T = seq_len, N = B * T tokens, D = width, V = vocabulary, C = chunk.

IGNORED = -100
"""The label of positions that count for nothing."""
CHUNK = 1024
"""Tokens projected at a time."""

CrossEntropy = Callable[..., Tensor]
"""(hidden [N, D], weight [V, D], labels=[N]) -> the sum of nats."""


def chunked_cross_entropy(hidden: Tensor, weight: Tensor, *, labels: Tensor, chunk: int = CHUNK) -> Tensor:
    """The sum over tokens of -log softmax(hidden @ weight.T)[label], in nats.

    Args:
        hidden: [N, D].
        weight: [V, D].
        labels: [N] int64; IGNORED counts for nothing.
        chunk: C, tokens whose logits are held at once.

    Returns:
        a scalar in float32 (float64 for such inputs), differentiable once in `hidden` and `weight`. For the mean
        divide by the count of labels.
    """
    needs_gradient = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    total: Tensor = _ChunkedCrossEntropy.apply(hidden, weight, labels, chunk, needs_gradient)  # type: ignore[no-untyped-call]
    return total


def causal_nats(
    model: nn.Module, batch: dict[str, Tensor], *, cross_entropy: CrossEntropy = chunked_cross_entropy
) -> Tensor:
    """The loss of a batch: sum of nats over its labels, a scalar with gradient.

    Args:
        model: a causal model of `transformers`, as `build` or `load` return it.
        batch: `input_ids`, `labels`, `position_ids`, `document_ids`, each [B, T].
    """
    hidden = hidden_states(model, batch)
    head = model.get_output_embeddings()  # type: ignore[operator]
    return cross_entropy(hidden.flatten(0, 1), head.weight, labels=batch["labels"].flatten())


@torch.no_grad()
def token_nats(model: nn.Module, batch: dict[str, Tensor], *, chunk: int = CHUNK) -> Tensor:
    """The loss of each token in nats, [B, T] float32, 0 where the label is IGNORED; without gradient."""
    hidden = hidden_states(model, batch).flatten(0, 1)
    weight = model.get_output_embeddings().weight  # type: ignore[operator]
    labels = batch["labels"].flatten()
    parts = [
        functional.cross_entropy(
            functional.linear(hidden[low : low + chunk], weight).float(),
            labels[low : low + chunk],
            ignore_index=IGNORED,
            reduction="none",
        )
        for low in range(0, len(labels), chunk)
    ]
    return torch.cat(parts).view(batch["labels"].shape)


def hidden_states(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """[B, T, D]: what the output projection sees; no document attends to another.

    The mask is given whole. With an `attention_mask` of ones `transformers` would let documents see each other.
    """
    body = model.base_model
    output: Any = body(  # type: ignore[operator]
        input_ids=batch["input_ids"],
        position_ids=batch["position_ids"],
        attention_mask=document_mask(batch["document_ids"]),
        use_cache=False,
    )
    hidden: Tensor = output.last_hidden_state
    return hidden


def document_mask(document_ids: Tensor) -> Tensor:
    """[B, 1, T, T] of bool: which tokens (columns) a token (row) sees.

    A token sees itself and what came before it in its own document; padding sees padding, so that no row is empty.
    """
    same: Tensor = document_ids[:, :, None] == document_ids[:, None, :]
    return same.tril_()[:, None]


def whole_cross_entropy(hidden: Tensor, weight: Tensor, *, labels: Tensor) -> Tensor:
    """`chunked_cross_entropy` with all logits at once."""
    logits = functional.linear(hidden, weight).to(sum_dtype(hidden))
    return functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")


def sum_dtype(values: Tensor) -> torch.dtype:
    """What sums over such values are held in."""
    return torch.float64 if values.dtype == torch.float64 else torch.float32


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Loss and gradients chunk by chunk; see `chunked_cross_entropy`."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, chunk: int, needs_gradient: bool) -> Tensor:
        exact = sum_dtype(hidden)
        total = torch.zeros((), dtype=exact, device=hidden.device)
        grad_hidden = torch.zeros_like(hidden) if needs_gradient else None
        grad_weight = torch.zeros(weight.shape, dtype=exact, device=weight.device) if needs_gradient else None
        for low in range(0, len(labels), chunk):
            rows = hidden[low : low + chunk]
            wanted = labels[low : low + chunk]
            counted = wanted != IGNORED
            target = wanted.where(counted, 0)[:, None]
            logits_CV = functional.linear(rows, weight).to(exact)
            logits_CV.sub_(logits_CV.amax(dim=1, keepdim=True))
            chosen = logits_CV.gather(1, target)[:, 0]
            sums = logits_CV.exp_().sum(dim=1)
            total += ((sums.log() - chosen) * counted).sum()
            if grad_hidden is None or grad_weight is None:
                continue
            slope_CV = logits_CV.mul_((counted / sums)[:, None])
            slope_CV.scatter_add_(1, target, -counted.to(slope_CV.dtype)[:, None])
            slope = slope_CV.to(weight.dtype)
            grad_hidden[low : low + chunk] = slope @ weight
            grad_weight.addmm_(slope.T.to(exact), rows.to(exact))
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:  # type: ignore[override]
        grad_hidden, grad_weight = ctx.saved_tensors
        scale = grad_outputs[0]
        return (grad_hidden * scale).to(grad_hidden.dtype), (grad_weight * scale).to(ctx.weight_dtype), None, None, None
