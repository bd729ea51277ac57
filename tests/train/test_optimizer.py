from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tessera.model.build import build
from tessera.model.settings import ModelSettings
from tessera.train.methods.muon import Muon, MuonSettings, orthogonalize
from tessera.train.optimizer import AdamW, split_parameters
from tessera.train.parallel import Replicated
from tessera.train.ranks import Ranks
from tessera.train.settings import OptimizerSettings


class Bag(nn.Module):
    """Loose parameters with an embedding, as a model has them."""

    def __init__(self, *shapes: tuple[int, ...], seed: int = 1) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.embed = nn.Embedding(7, 3)
        self.loose = nn.ParameterList(nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes)

    def get_output_embeddings(self):
        return self.embed

    def set_gradients(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for value in self.parameters():
            value.grad = torch.randn(value.shape, generator=generator)


def adamw_of(model, **changed):
    return AdamW(model, settings=OptimizerSettings(**changed))


def muon_of(model, *, weight_decay=0.0, **changed):
    """Muon over a job of which it sees no more than this."""
    settings = OptimizerSettings(weight_decay=weight_decay)
    job = SimpleNamespace(
        parallel=Replicated(model, ranks=Ranks()),
        optimizer=AdamW(model, settings=settings),
        ranks=Ranks(),
        spec=SimpleNamespace(settings=SimpleNamespace(optimizer=settings)),
    )
    muon = Muon(MuonSettings(**changed), job=job)
    muon.init()
    return muon


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 24), extra=st.integers(0, 24), count=st.integers(1, 3), seed=st.integers(0, 2**20))
def test_orthogonalized_matrices_keep_their_singular_vectors_and_lose_their_scale(rows, extra, count, seed):
    stack = torch.randn(count, rows, rows + extra, generator=torch.Generator().manual_seed(seed)).double() * 100
    left, values, right = torch.linalg.svd(stack, full_matrices=False)
    inside = left.mT @ orthogonalize(stack) @ right.mT
    kept = values / values.norm(dim=1, keepdim=True) > 0.02  # smaller ones need more steps to reach 1
    diagonal = torch.diagonal(inside, dim1=1, dim2=2)

    assert ((diagonal > 0.5) & (diagonal < 1.35))[kept].all()
    assert (inside - torch.diag_embed(diagonal)).abs().max() < 1e-6


def test_a_stack_is_done_as_its_matrices_are_and_zeros_stay():
    stack = torch.stack([torch.randn(8, 12), torch.zeros(8, 12), torch.randn(8, 12)])
    done = orthogonalize(stack)

    assert torch.equal(done[1], torch.zeros(8, 12))
    for one, together in zip(stack, done, strict=True):
        torch.testing.assert_close(orthogonalize(one[None])[0], together)


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_muon_does_what_the_one_of_torch_does(weight_decay):
    ours, theirs = Bag((16, 16), (16, 40), (40, 16)), Bag((16, 16), (16, 40), (40, 16))
    mine = muon_of(ours, lr=0.05, momentum=0.9, weight_decay=weight_decay)
    reference = torch.optim.Muon(list(theirs.loose), lr=0.05, momentum=0.9, weight_decay=weight_decay)
    for step in range(4):
        for model in (ours, theirs):
            model.set_gradients(step)
        mine.optimizer(1.0)
        reference.step()

    start = Bag((16, 16), (16, 40), (40, 16))
    for value, wanted, before in zip(ours.loose, theirs.loose, start.loose, strict=True):
        moved = (wanted - before).norm()  # theirs orthogonalises in bf16, with three digits
        assert (value - wanted).norm() < 0.02 * moved


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamw_does_what_the_one_of_torch_does(weight_decay):
    ours, theirs = Bag((5,), (4, 6)), Bag((5,), (4, 6))
    theirs.load_state_dict(ours.state_dict())
    mine = adamw_of(ours, matrix_lr=0.04, embedding_lr=0.02, scalar_lr=0.03, weight_decay=weight_decay, epsilon=1e-8)
    reference = torch.optim.AdamW(
        [{"params": [theirs.embed.weight], "lr": 0.02, "weight_decay": weight_decay},
         {"params": [theirs.loose[0]], "lr": 0.03, "weight_decay": 0.0},
         {"params": [theirs.loose[1]], "lr": 0.04, "weight_decay": weight_decay}],
        betas=(0.9, 0.99),
    )  # fmt: skip
    for step in range(5):
        for model in (ours, theirs):
            model.set_gradients(step)
        mine.step(1.0, number=step + 1)
        reference.step()

    for value, wanted in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(value, wanted)


@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_has_one_method(tied):
    dims = ModelSettings(layers=2, width=32, heads=2, kv_heads=1, ffn_width=48, tie_embeddings=tied)
    model = build(dims, vocab_size=50, seq_len=16, end_id=0, seed=1)
    kinds = split_parameters(model)
    names = [name for part in (kinds.matrices, kinds.embeddings, kinds.scalars) for name, _ in part]

    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    assert [name for name, _ in kinds.embeddings] == ["lm_head.weight"] * (not tied) + ["model.embed_tokens.weight"]
    assert {name.split(".")[-2] for name, _ in kinds.matrices} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
    }  # fmt: skip


def test_experts_in_a_stack_are_moved_as_matrices_of_their_own():
    stacked, alone = Bag((3, 8, 12)), Bag((8, 12), (8, 12), (8, 12))
    with torch.no_grad():
        for one, expert in zip(alone.loose, stacked.loose[0], strict=True):
            one.copy_(expert)
    gradient = torch.randn(3, 8, 12)
    stacked.loose[0].grad = gradient.clone()
    for one, slope in zip(alone.loose, gradient, strict=True):
        one.grad = slope.clone()
    for model in (stacked, alone):
        model.embed.weight.grad = torch.zeros(7, 3)
        muon_of(model, lr=0.1).optimizer(1.0)

    for one, expert in zip(alone.loose, stacked.loose[0], strict=True):
        torch.testing.assert_close(one, expert)


def test_the_state_goes_on_where_it_was_and_is_in_no_gradient_order():
    one, two = Bag((8, 8), (8, 8), (4,)), Bag((8, 8), (8, 8), (4,))
    first, second = muon_of(one), muon_of(two)
    for step in range(2):
        one.set_gradients(step)
        first.optimizer(1.0)
    two.load_state_dict(one.state_dict())
    for name, value in second.state().items():
        value.copy_(first.state()[name])
    for model, muon in ((one, first), (two, second)):
        model.set_gradients(9)
        muon.optimizer(0.5)

    for value, other in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(value, other)


def test_all_gradients_are_views_of_one_buffer():
    model = Bag((3, 4), (5,))
    gradients = Replicated(model, ranks=Ranks())
    for _ in range(2):
        (sum(value.sum() for value in model.loose) * 3).backward()

    assert gradients.buffer.sum() == 2 * 3 * 17
    gradients.zero()
    assert all((value.grad == 0).all() for value in model.parameters())
