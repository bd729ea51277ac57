import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.model.conftest import pack
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from tessera.model.loss import causal_nats, chunked_cross_entropy, token_nats

DOCUMENTS = [[5, 9, 2, 7, 7, 1], [3, 3], [8, 14, 60, 21, 22, 9, 4]]


def gradients(model):
    return {name: value.grad.clone() for name, value in model.named_parameters()}


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(1, 40), width=st.integers(1, 9), vocab=st.integers(2, 50), chunk=st.integers(1, 50),
    seed=st.integers(0, 2**30), scale=st.sampled_from([1.0, 0.25]),
)  # fmt: skip
def test_loss_and_gradients_are_those_of_cross_entropy(tokens, width, vocab, chunk, seed, scale):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, width, generator=generator).requires_grad_()
    weight = torch.randn(vocab, width, generator=generator).requires_grad_()
    labels = torch.randint(0, vocab, (tokens,), generator=generator)
    labels[torch.rand(tokens, generator=generator) < 0.3] = -100
    expected = functional.cross_entropy(functional.linear(hidden, weight), labels, reduction="sum", ignore_index=-100)
    wanted = torch.autograd.grad(expected * scale, (hidden, weight))
    found = chunked_cross_entropy(hidden, weight, labels=labels, chunk=chunk)
    got = torch.autograd.grad(found * scale, (hidden, weight))

    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(got, wanted)


class Largest(TorchDispatchMode):
    """Notes the most elements of any tensor that is made."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple) else (result,):
            if isinstance(value, torch.Tensor):
                self.elements = max(self.elements, value.numel())
        return result


def test_all_logits_are_never_held_at_once():
    hidden, weight = torch.randn(512, 4, requires_grad=True), torch.randn(300, 4, requires_grad=True)
    labels = torch.randint(0, 300, (512,))
    with Largest() as chunked:
        chunked_cross_entropy(hidden, weight, labels=labels, chunk=64).backward()
    with Largest() as plain:
        functional.cross_entropy(hidden @ weight.T, labels).backward()

    assert chunked.elements == 64 * 300
    assert plain.elements == 512 * 300


def test_packed_documents_lose_what_they_lose_alone(tiny):
    model = tiny()
    packed = token_nats(model, pack(DOCUMENTS, seq_len=24))[0]
    alone = torch.cat([token_nats(model, pack([document], seq_len=len(document) + 1))[0] for document in DOCUMENTS])

    assert torch.allclose(packed[: len(alone)], alone, atol=1e-5)
    assert (packed[len(alone) :] == 0).all()
    assert (alone > 0).all()


def test_packed_gradients_are_the_sum_of_those_alone(tiny):
    model = tiny()
    causal_nats(model, pack(DOCUMENTS, seq_len=24)).backward()
    packed = gradients(model)
    model.zero_grad()
    for document in DOCUMENTS:
        causal_nats(model, pack([document], seq_len=len(document) + 1)).backward()

    for name, expected in gradients(model).items():
        torch.testing.assert_close(packed[name], expected, atol=2e-4, rtol=1e-3, msg=name)


def test_no_gradient_reaches_another_document(tiny):
    model = tiny()
    batch = pack(DOCUMENTS, seq_len=24)
    batch["labels"][0, :7] = -100
    batch["labels"][0, 10:] = -100  # only the second document, positions 7 to 9, is counted
    seen = {}
    model.get_input_embeddings().register_forward_hook(lambda _, __, output: seen.setdefault("x", output).retain_grad())
    causal_nats(model, batch).backward()
    touched = seen["x"].grad[0].abs().sum(-1) > 0

    assert touched.tolist() == [7 <= position < 10 for position in range(24)]


@pytest.mark.parametrize("chunk", [3, 1000])
def test_token_losses_add_up_to_the_training_loss(tiny, chunk):
    model, batch = tiny(), pack(DOCUMENTS, seq_len=24)

    torch.testing.assert_close(token_nats(model, batch, chunk=chunk).sum(), causal_nats(model, batch).detach())
