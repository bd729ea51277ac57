"""What a model does on each item: against choices by hand, permuted labels, and a model that knows the answers."""

import numpy as np
import pytest
import torch

from tessera.evaluate.answering import answers, cut, pass_at
from tessera.evaluate.outcomes import examine
from tessera.evaluate.subject import Subject
from tessera.evaluate.task import Choices, Completion, Decoding, Passage, Program, Question, Task, key_of

from .subjects import WORDS, make_subject
from .test_likelihood import one_by_one

RANDOM = np.random.default_rng(5)


def items(count: int, *, choices: int = 4) -> tuple[Choices, ...]:
    words = WORDS.split()
    made = []
    for number in range(count):
        context = " ".join(RANDOM.choice(words, 5)) + f" {number}"
        endings = [f" {' '.join(RANDOM.choice(words, RANDOM.integers(1, 4)))}" for _ in range(choices)]
        made.append(Choices(tuple((context, ending) for ending in endings), gold=int(RANDOM.integers(choices))))
    return tuple(made)


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return make_subject(tmp_path_factory.mktemp("subject"))


def test_choices_by_sum_characters_bytes_and_tokens(subject: Subject) -> None:
    made = (*items(30), Choices((("the cat", " größe"), ("the cat", " grosse")), gold=0))

    found = examine(subject, Task("t", kind="multiple_choice", items=made))

    for place, item in enumerate(made):
        nats, tokens, _ = map(np.array, zip(*one_by_one(subject, item.pairs), strict=True))
        texts = [ending[1:] for _, ending in item.pairs]
        for name, length in (
            ("acc", 1),
            ("acc_norm", np.array([len(text) for text in texts])),
            ("acc_bytes", np.array([len(text.encode()) for text in texts])),
            ("acc_tokens", tokens),
        ):
            assert found.values[name][place] == float(np.argmin(nats / length) == item.gold)
    assert found.keys == tuple(map(key_of, made))
    assert len({found.values[name] for name in found.values}) > 1


def test_permuted_labels_score_at_chance(subject: Subject) -> None:
    """The mean over all labels of an item is one over its choices, exactly."""
    made = items(20)
    golds = [
        [Choices(item.pairs, gold=gold) for item in made]
        for gold in range(4)
    ]  # fmt: skip
    scores = [examine(subject, Task("t", kind="multiple_choice", items=tuple(one))).values["acc"] for one in golds]

    assert np.array(scores).sum(axis=0).tolist() == [1.0] * 20


def test_equal_choices_give_the_first(subject: Subject) -> None:
    same = (("the cat", " sat"), ("the cat", " sat"))
    found = examine(subject, Task("t", kind="multiple_choice", items=(Choices(same, gold=0), Choices(same, gold=1))))
    assert found.values["acc"] == (1.0, 0.0)


def test_completions_are_right_when_every_token_is_the_likeliest(subject: Subject) -> None:
    made = tuple(Completion(f"the cat sat on {word}", f" the {word}") for word in WORDS.split())
    own = tuple(
        Completion(item.context, text)
        for item in made
        if (text := answers(subject, [item.context], Decoding(max_tokens=2, stop=()))[0][0]).strip()
    )

    found = examine(subject, Task("t", kind="language_modeling", items=(*made, *own)))

    expected = one_by_one(subject, [(item.context, item.continuation) for item in (*made, *own)])
    assert found.values["acc"] == tuple(float(greedy) for *_, greedy in expected)
    assert found.values["nats"] == pytest.approx([nats for nats, *_ in expected], rel=2e-5, abs=2e-4)
    assert sum(found.values["acc"]) > 0


def test_passages_give_bits_per_byte_weighted_by_bytes(subject: Subject) -> None:
    texts = ("the cat sat", "größe " * 20)
    found = examine(subject, Task("t", kind="perplexity", items=tuple(map(Passage, texts))))

    assert found.weights == (11.0, 160.0)
    for text, bits in zip(texts, found.values["bits_per_byte"], strict=True):
        ids = [*subject.tokenizer.encode_batch([text])[0], subject.tokenizer.end_id]
        inputs = torch.tensor([[subject.tokenizer.end_id, *ids[:-1]]])
        with torch.inference_mode():
            chances = subject.model(input_ids=inputs, use_cache=False).logits[0].double().log_softmax(-1)
        nats = -float(chances[torch.arange(len(ids)), torch.tensor(ids)].sum())
        assert bits == pytest.approx(nats / np.log(2) / len(text.encode()), rel=1e-5)


def test_answers_end_before_a_stop_string_and_do_not_depend_on_their_batch(subject: Subject) -> None:
    prompts = ["the cat", "", "river stone", "the cat sat on the " * 30]
    free = answers(subject, prompts, Decoding(max_tokens=12, stop=()))
    letter = next(letter for letter in free[0][0][2:] if letter.strip())

    stopped = answers(subject, prompts, Decoding(max_tokens=12, stop=(letter,)))
    sampled = answers(subject, prompts, Decoding(max_tokens=6, stop=(), temperature=1.0, samples=3))

    assert [one[0] for one in stopped] == [cut(one[0], stop=(letter,)) for one in free]
    assert stopped[0] != free[0]
    assert sampled[1:3] == answers(subject, prompts[1:3], Decoding(max_tokens=6, stop=(), temperature=1.0, samples=3))
    assert len(set(sampled[0])) == 3


def test_generated_answers_are_compared(subject: Subject) -> None:
    said = answers(subject, ["the cat"], Decoding(max_tokens=5))[0][0]
    made = (Question("the cat", (said,)), Question("the cat", ("something else",)))

    found = examine(subject, Task("t", kind="generation", items=made, decoding=Decoding(max_tokens=5)))

    assert found.values["exact_match"] == (1.0, 0.0)
    assert found.values["f1"][0] == 1.0


def test_programs_run_with_their_tests(subject: Subject) -> None:
    """The model's own text cannot be a program here: it stands behind a comment, and behind nothing."""
    made = (Program("x = 1 #", "assert x == 1"), Program("x = 1 #", "assert x == 2"), Program("(((", "assert True"))

    found = examine(subject, Task("t", kind="code", items=made, decoding=Decoding(max_tokens=4), ks=(1,)))

    assert found.values["pass_at_1"] == (1.0, 0.0, 0.0)


@pytest.mark.parametrize(("samples", "passed", "k"), [(5, 2, 1), (5, 2, 3), (10, 0, 4), (10, 10, 1), (7, 5, 4)])
def test_pass_at_k_is_the_mean_over_all_draws(samples: int, passed: int, k: int) -> None:
    from itertools import combinations

    outcomes = [True] * passed + [False] * (samples - passed)
    draws = [any(draw) for draw in combinations(outcomes, k)]
    assert pass_at(k, samples=samples, passed=passed) == pytest.approx(sum(draws) / len(draws))
