"""Many prompts at once: token for token what each gives alone, by our own loop and by `transformers`."""

import pytest
import torch

from tessera.errors import PromptError
from tessera.model import batches
from tessera.model.batches import generate_batches
from tessera.model.generate import Sampling, generate_all

from .test_generate import CONTEXT, END, VOCAB, model  # noqa: F401

SHARED = [0, *range(5, 24)]
PROMPTS = [[0], [0, 7, 3], [4, *range(10, 30)], [9, 9], [0, 60, 2, 5, 41, 3], *([*SHARED, i, 50 - i] for i in range(6))]


def all_of(model, prompts, **given):  # noqa: F811
    found = dict(generate_batches(model, prompts=prompts, **given))
    return [found[place] for place in range(len(prompts))]


@pytest.mark.parametrize("batch_tokens", [1, 100, 10_000])
def test_greedy_equals_each_prompt_alone(model, batch_tokens):  # noqa: F811
    found = all_of(model, PROMPTS, max_new_tokens=18, end_id=END, vocab_size=VOCAB - 3, batch_tokens=batch_tokens)

    alone = [
        generate_all(model, prompt=prompt, max_new_tokens=18, end_id=END, vocab_size=VOCAB - 3) for prompt in PROMPTS
    ]
    assert found == alone
    assert len({one.tokens for one in found}) == len(PROMPTS)


def test_greedy_equals_transformers(model):  # noqa: F811
    found = all_of(model, PROMPTS, max_new_tokens=20)

    for prompt, one in zip(PROMPTS, found, strict=True):
        theirs = model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.int64), max_new_tokens=20,
            do_sample=False, eos_token_id=VOCAB, pad_token_id=END, bos_token_id=END,
        )[0, len(prompt) :].tolist()  # fmt: skip
        assert list(one.tokens) == theirs


def test_a_seeded_answer_does_not_depend_on_its_batch(model):  # noqa: F811
    samplings = [Sampling(0.8, top_k=20, seed=place) for place in range(len(PROMPTS))]

    together = all_of(model, PROMPTS, max_new_tokens=12, samplings=samplings)
    reverse = all_of(model, PROMPTS[::-1], max_new_tokens=12, samplings=samplings[::-1], batch_tokens=90)
    alone = [
        generate_all(model, prompt=prompt, max_new_tokens=12, sampling=sampling)
        for prompt, sampling in zip(PROMPTS, samplings, strict=True)
    ]

    assert together == reverse[::-1] == alone


def test_rows_that_end_early_leave_the_others_alone(model):  # noqa: F811
    free = all_of(model, PROMPTS, max_new_tokens=16)
    ended = all_of(model, PROMPTS, max_new_tokens=16, stop=lambda tokens: len(tokens) >= 3 + tokens[0] % 7)

    for one, other in zip(free, ended, strict=True):
        length = min(16, 3 + one.tokens[0] % 7)
        assert other.tokens == one.tokens[:length]
        assert other.finish_reason == "stop"
    assert len({len(one.tokens) for one in ended}) > 2


def test_what_all_begin_with_is_computed_once(model, monkeypatch):  # noqa: F811
    computed = []
    forward = batches._Batch._forward
    monkeypatch.setattr(
        batches._Batch,
        "_forward",
        lambda self, tokens, *rest: (computed.append(tokens.numel()), forward(self, tokens, *rest))[1],
    )
    prompts = [[*SHARED, 30 + i] for i in range(8)]

    all_of(model, prompts, max_new_tokens=1)

    assert sum(computed) == 8


def test_what_does_not_fit_is_refused(model):  # noqa: F811
    with pytest.raises(PromptError, match=f"context of {CONTEXT}"):
        all_of(model, [[1], [1] * (CONTEXT - 1)], max_new_tokens=2)
    assert all_of(model, [], max_new_tokens=2) == []
