"""The experts of a mixture: stacked in memory for one grouped product, one by one on disk under the names others read.

`transformers` 5 holds a layer's experts in two tensors; hub checkpoints, vLLM and `transformers` 4 name the matrices of
each. `split` gives views under those names: it copies nothing, and what is written to a view is in the stacked tensor,
so that loading and exporting hold no copy of their own. Names and order after `transformers.conversion_mapping` 5.17.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

# Shapes: E = experts, I = inner width of one, D = width of the residual stream.

GATE_UP = "gate_up_proj"
"""[E, 2I, D]: gates, then ups, in the last part of the parameter's name."""
DOWN = "down_proj"
"""[E, D, I]."""
ROUTER = "mlp.gate.weight"
"""[E, D]: how the router's parameter ends in every layout below, in memory."""


@dataclass(frozen=True)
class Layout:
    """Names on disk."""

    block: str
    """Of the feed-forward part, `mlp` in memory."""
    gate: str
    up: str
    down: str


QWEN = Layout(block="mlp", gate="gate_proj", up="up_proj", down="down_proj")
MIXTRAL = Layout(block="block_sparse_moe", gate="w1", up="w3", down="w2")
LAYOUTS = {"qwen2_moe": QWEN, "qwen3_moe": QWEN, "olmoe": QWEN, "mixtral": MIXTRAL}
"""By model_type. Other mixtures are read and written as they are in memory."""


def split(weights: Mapping[str, Tensor], *, model_type: str) -> dict[str, Tensor]:
    """`weights` under the names of a file: a stacked tensor becomes 2E or E views, [I, D] or [D, I], contiguous.

    Names that are already those of a file stay, so a file of either kind comes out as one of views.

    Args:
        weights: a model's state dict, or the contents of its file.
        model_type: as in config.json; one without a layout changes nothing.
    """
    layout = LAYOUTS.get(model_type)
    if layout is None:
        return dict(weights)
    found: dict[str, Tensor] = {}
    for name, value in weights.items():
        name = name.replace(".mlp.", f".{layout.block}.")
        if is_stacked(name) and value.dim() == 3:
            found |= _experts(name, value, layout)
        else:
            found[name] = value
    return found


def is_stacked(name: str) -> bool:
    """Whether a parameter's first dimension is experts."""
    module, _, _ = name.rpartition(".")
    return module.endswith(".experts")


@functools.cache
def follow_autocast() -> None:
    """Makes torch's grouped product run in bfloat16 under autocast, as every other product does; for the process.

    It has no rule of its own (pytorch issue 174763), so that experts with float32 weights would stay in float32.
    """
    for device in ("cpu", "cuda"):
        torch.library.register_autocast("aten::_grouped_mm", device, torch.bfloat16)


def _experts(name: str, value: Tensor, layout: Layout) -> dict[str, Tensor]:
    module, _, kind = name.rpartition(".")
    if kind == GATE_UP:
        pairs = [zip((layout.gate, layout.up), matrix.chunk(2), strict=False) for matrix in value.unbind()]
    elif kind == DOWN:
        pairs = [zip((layout.down,), (matrix,), strict=True) for matrix in value.unbind()]
    else:
        return {name: value}
    return {f"{module}.{expert}.{part}.weight": view for expert, pair in enumerate(pairs) for part, view in pair}
