"""Costs against counts: by torch's own counter of operations, and by the gradients that one token leaves."""

import pytest
import torch
from tests.model.conftest import MIXTURE, TINY
from torch.utils.flop_counter import FlopCounterMode

from tessera.model.build import num_parameters
from tessera.model.cost import flops_per_token, num_active_parameters
from tessera.model.lean import model_code


def counted(model, *, seq_len):
    """Operations of forward and backward a token; the loop over experts and plain attention, which the counter sees."""
    model.set_attn_implementation("eager")
    if model.config.model_type.endswith("moe"):
        model.set_experts_implementation("eager")
    tokens = torch.arange(seq_len)[None] % 61
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=tokens, use_cache=False)
    return 3 * counter.get_total_flops() / seq_len


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("settings", [TINY, MIXTURE], ids=["dense", "mixture"])
@pytest.mark.parametrize("seq_len", [16, 128])
def test_operations_are_those_that_torch_counts(tiny, settings, tied, seq_len):
    model = tiny(settings=settings.model_copy(update={"tie_embeddings": tied, "head_dim": 12}), seq_len=seq_len)

    assert flops_per_token(model, seq_len=seq_len) == pytest.approx(counted(model, seq_len=seq_len), rel=0.01)


def test_positions_that_are_looked_up_cost_nothing():
    code = model_code("gpt2")
    model = code.GPT2LMHeadModel(code.GPT2Config(vocab_size=61, n_positions=64, n_embd=32, n_layer=2, n_head=4))

    assert flops_per_token(model, seq_len=64) == pytest.approx(counted(model, seq_len=64), rel=0.01)


def test_active_parameters_are_those_of_the_experts_that_one_token_touches(tiny):
    model = tiny(settings=MIXTURE)
    model(input_ids=torch.tensor([[7]])).logits.sum().backward()
    idle = sum(
        int((value.grad.flatten(1).abs().sum(1) == 0).sum()) * value[0].numel()
        for value in model.parameters()
        if value.dim() == 3
    )

    assert idle > 0
    assert num_active_parameters(model) == num_parameters(model) - idle


def test_all_parameters_of_a_dense_model_are_active(tiny):
    model = tiny()

    assert num_active_parameters(model) == num_parameters(model)
