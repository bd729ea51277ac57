"""Generation: the cache changes nothing, the seed decides, the context is a limit."""

import pytest
import torch
from tests.model.conftest import MIXTURE, TINY

from tessera.errors import PromptError
from tessera.model.build import build
from tessera.model.generate import Sampling, choose, generate, generate_all, probabilities

VOCAB, CONTEXT, END = 61, 48, 0


@pytest.fixture(scope="module", params=[TINY, MIXTURE], ids=["dense", "mixture"])
def model(request):
    made = build(request.param, vocab_size=VOCAB, seq_len=CONTEXT, end_id=END, seed=3).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():  # output projections start at zero, and an identity would hide a wrong cache
        for value in made.parameters():
            if value.dim() >= 2:
                value.normal_(0.0, 0.35, generator=generator)
    return made


def without_cache(model, prompt, count):
    tokens = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1]
        tokens.append(int(logits.argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("prompt", [[0], [0, 7, 3], [0, *range(10, 30)]])
def test_greedy_equals_a_full_forward_for_every_token(model, prompt):
    produced = list(generate(model, prompt=prompt, max_new_tokens=20))

    assert produced == without_cache(model, prompt, 20)
    assert len(set(produced)) > 3


def test_greedy_equals_transformers_generate(model):
    prompt = [0, 7, 3, 22]
    theirs = model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, 4, dtype=torch.int64), max_new_tokens=25, do_sample=False,
        eos_token_id=VOCAB, pad_token_id=END, bos_token_id=END,
    )[0, 4:].tolist()  # fmt: skip

    assert list(generate(model, prompt=prompt, max_new_tokens=25)) == theirs


def test_ends_before_the_end_token_and_says_why(model):
    free = generate_all(model, prompt=[0, 7], max_new_tokens=12)
    end = free.tokens[5]
    first = free.tokens.index(end)

    stopped = generate_all(model, prompt=[0, 7], max_new_tokens=12, end_id=end)

    assert stopped.tokens == free.tokens[:first]
    assert (free.finish_reason, stopped.finish_reason) == ("length", "stop")


def test_a_seed_repeats_and_another_differs(model):
    def draw(seed):
        return generate_all(model, prompt=[0, 9], max_new_tokens=30, sampling=Sampling(temperature=1.0, seed=seed))

    torch.manual_seed(1)
    one = draw(4)
    torch.manual_seed(2)

    assert draw(4) == one
    assert draw(5) != one
    assert draw(None) != draw(None)


def test_ids_that_only_pad_the_embedding_are_never_chosen(model):
    hot = Sampling(temperature=2.0, seed=0)
    produced = generate_all(model, prompt=[0], max_new_tokens=40, sampling=hot, vocab_size=8)

    assert max(produced.tokens) < 8


def test_top_k_and_top_p_keep_the_likeliest():
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3]).log()

    def kept(**sampling):
        return probabilities(logits, sampling=Sampling(temperature=1.0, **sampling)).tolist()

    assert kept() == pytest.approx([0.1, 0.4, 0.2, 0.3])
    assert kept(top_k=2) == pytest.approx([0, 4 / 7, 0, 3 / 7])
    assert kept(top_p=0.4) == pytest.approx([0, 1, 0, 0])
    assert kept(top_p=0.65) == pytest.approx([0, 4 / 7, 0, 3 / 7])
    assert kept(top_p=0.71) == pytest.approx([0, 4 / 9, 2 / 9, 3 / 9])
    hot = probabilities(logits, sampling=Sampling(temperature=2.0))
    assert hot.tolist() == pytest.approx((torch.tensor([0.1, 0.4, 0.2, 0.3]).sqrt() / 1.9436506).tolist(), abs=1e-3)


def test_draws_follow_the_distribution():
    chances = torch.tensor([0.5, 0.0, 0.2, 0.3])
    generator = torch.Generator().manual_seed(7)
    drawn = torch.zeros(4)
    for _ in range(4000):
        drawn[choose(chances.log(), sampling=Sampling(temperature=1.0), generator=generator)] += 1

    assert (drawn / 4000).tolist() == pytest.approx(chances.tolist(), abs=0.04)  # five standard deviations
    assert drawn[1] == 0


@pytest.mark.parametrize(
    ("length", "new", "said"),
    [(CONTEXT, 1, "at most 47"), (40, 9, "at most 8"), (0, 1, "no token"), (3, 0, "at least 1")],
)
def test_what_does_not_fit_is_refused_at_the_call_with_the_limit(model, length, new, said):
    with pytest.raises(PromptError, match=said):
        generate(model, prompt=[0] * length, max_new_tokens=new)


def test_the_whole_context_can_be_used(model):
    assert len(list(generate(model, prompt=[0] * 40, max_new_tokens=8))) == 8


@pytest.mark.parametrize(
    "bad", [{"temperature": -0.1}, {"temperature": 2.1}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_p": 1.5},
            {"top_k": 0}, {"seed": 2**63}]
)  # fmt: skip
def test_values_out_of_range_are_refused(model, bad):
    with pytest.raises(PromptError, match=next(iter(bad))):
        generate(model, prompt=[0], max_new_tokens=1, sampling=Sampling(**bad))


def test_gradients_work_between_two_tokens(model):
    produced = generate(model, prompt=[0, 3], max_new_tokens=2)
    next(produced)

    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
