"""What a token costs a model: the parameters that it uses and the operations of a training step.

Arithmetic on shapes, of no price; nothing is run. Recomputed activations, the optimizer, norms and lookups count for
nothing, so that utilisation made of these figures is that of the model, not of the hardware.
"""

from typing import Any

from torch import Tensor, nn

from tessera.model.build import num_parameters
from tessera.model.experts import is_stacked


def num_active_parameters(model: nn.Module) -> int:
    """Parameters that one token uses: all of them, less the experts that its router leaves out in each layer.

    Embeddings count as in `num_parameters`; for a dense model the two are equal.
    """
    return num_parameters(model) - sum(_num_idle(model, name, value) for name, value in model.named_parameters())


def flops_per_token(model: nn.Module, *, seq_len: int) -> int:
    """Operations of forward and backward for one token of a sequence, a multiplication and an addition counted as two.

    6 x N + 12 x layers x heads x head_dim x T (PaLM, Chowdhery et al. 2022, appendix B), where N is what a token uses
    of the matrices: router, active experts and output projection (tied or not) are in it, embeddings that are looked
    up are not. T is `seq_len`: the whole square of attention is counted, as PaLM does and as a product under a mask
    computes it, neither the causal half nor the shorter documents of a packed sequence.

    Args:
        model: a causal model of `transformers`, its keys and values of one width.
        seq_len: T, in tokens.
    """
    config: Any = model.config
    output = model.get_output_embeddings().weight  # type: ignore[operator]
    looked_up = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)} - {id(output)}
    num_multiplied = sum(
        value.numel() - _num_idle(model, name, value)
        for name, value in model.named_parameters()
        if value.dim() >= 2 and id(value) not in looked_up
    )
    heads = int(config.num_attention_heads)
    head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    return 6 * num_multiplied + 12 * int(config.num_hidden_layers) * heads * head_dim * seq_len


def _num_idle(model: nn.Module, name: str, value: Tensor) -> int:
    """Numbers of a parameter that belong to experts which a token does not visit."""
    if not is_stacked(name):
        return 0
    config: Any = model.config
    return value[0].numel() * (value.shape[0] - int(config.num_experts_per_tok))
