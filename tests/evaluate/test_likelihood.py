"""Likelihoods beside one pair at a time through the plain model: no sharing, no batch, no mask of ours."""

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tessera.errors import PromptError
from tessera.evaluate import likelihood
from tessera.evaluate.likelihood import likelihoods, passage_likelihoods
from tessera.evaluate.subject import Subject

from .subjects import WORDS, make_subject

SHOTS = "".join(f"Question: what is {i} + {i}? Answer: {2 * i}\n\n" for i in range(4))
PAIRS = [
    *[("the cat sat on", choice) for choice in (" the mat", " a tree", " the red house under the moon", " it")],
    *[("the cat sat on ", choice) for choice in ("the mat", "a tree")],  # the blank goes over
    *[(context, " went home.") for context in ("the dog saw the cat, the dog", "the dog saw the cat, the cat")],
    ("", "the sun"),
    ("", " the sun"),
    ("2+2=", "4"),
    ("größe", " größe"),
    *[(f"{SHOTS}Question: what is {i} + 1? Answer:", f" {i + d}") for i in range(9) for d in range(3)],
    ("stone " * 500, " river"),  # beyond the context: cut on the left
    ("x", " bread" * 40),
]


def one_by_one(subject: Subject, pairs) -> list[tuple[float, int, bool]]:
    """The rule of lm-evaluation-harness, written down again: plain logits of one sequence, position by position."""
    found = []
    for context, continuation in pairs:
        blanks = len(context) - len(context.rstrip())
        if blanks:
            context, continuation = context[:-blanks], context[-blanks:] + continuation
        before, whole = subject.tokenizer.encode_batch([context, context + continuation])
        scored = whole[len(before) :]
        if subject.document_start or not before:
            before = [subject.tokenizer.end_id, *before]
        inputs = (before + scored)[-(subject.context + 1) :][:-1]
        with torch.inference_mode():
            logits = subject.model(input_ids=torch.tensor([inputs]), use_cache=False).logits[0].double()
        rows = logits[-len(scored) :].log_softmax(-1)
        nats = -sum(float(row[token]) for row, token in zip(rows, scored, strict=True))
        found.append((nats, len(scored), [int(row.argmax()) for row in rows] == scored))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("subject")


@pytest.mark.parametrize("document_start", [False, True])
@pytest.mark.parametrize("experts", [False, True])
@pytest.mark.parametrize("batch_tokens", [64, 4096])
def test_equal_to_one_pair_at_a_time(folder: Path, document_start: bool, experts: bool, batch_tokens: int) -> None:
    subject = make_subject(folder, document_start=document_start, experts=experts, batch_tokens=batch_tokens)

    found = likelihoods(subject, PAIRS)

    for one, (nats, tokens, greedy) in zip(found, one_by_one(subject, PAIRS), strict=True):
        assert one.nats == pytest.approx(nats, rel=2e-5, abs=2e-4)
        assert (one.tokens, one.greedy) == (tokens, greedy)


def test_some_continuations_are_greedy_and_some_not(folder: Path) -> None:
    """Else the comparison of `greedy` above would show nothing."""
    subject = make_subject(folder)
    text = "the cat sat"
    ids = subject.tokenizer.encode_batch([text])[0]
    with torch.inference_mode():
        logits = subject.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
    best = likelihood.sequence_likelihoods(
        subject, [likelihood.Sequence_((*ids, int(logits.argmax())), first=len(ids))]
    )
    worst = likelihood.sequence_likelihoods(
        subject, [likelihood.Sequence_((*ids, int(logits.argmin())), first=len(ids))]
    )
    assert (best[0].greedy, worst[0].greedy) == (True, False)
    assert best[0].nats < worst[0].nats


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.text(alphabet="ab c(1", max_size=12), st.sampled_from(WORDS.split())), max_size=14))
def test_any_pairs(folder: Path, given_pairs: list[tuple[str, str]]) -> None:
    subject = make_subject(folder, batch_tokens=96)
    pairs = [(context, " " + word) for context, word in given_pairs]

    found = likelihoods(subject, pairs)

    expected = one_by_one(subject, pairs)
    assert [one.nats for one in found] == pytest.approx([nats for nats, *_ in expected], rel=2e-5, abs=2e-4)


def test_what_rows_share_is_computed_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the choices of a question the context, of solved examples all."""
    subject = make_subject(folder, batch_tokens=100_000)
    computed: list[int] = []
    forward = type(subject.model.base_model).forward

    def counting(self, input_ids, **given):
        computed.append(input_ids.numel())
        return forward(self, input_ids=input_ids, **given)

    monkeypatch.setattr(type(subject.model.base_model), "forward", counting)
    context = SHOTS + "Question: what is {} + 1? Answer:"
    pairs = [(context.format(i), f" {i + d}") for i in range(10, 40) for d in range(4)]

    likelihoods(subject, pairs)

    whole = sum(len(ids) for ids in subject.tokenizer.encode_batch([a + b for a, b in pairs]))
    assert sum(computed) < whole / 10


def test_passages_are_those_of_bits_per_byte(folder: Path) -> None:
    """Every token and the end token once, behind the end token; a long text starts anew in each of its pieces."""
    subject = make_subject(folder, context=64)
    texts = ["the cat", "river stone " * 60, ""]

    found = passage_likelihoods(subject, texts)

    for text, one in zip(texts, found, strict=True):
        ids = [*subject.tokenizer.encode_batch([text])[0], subject.tokenizer.end_id]
        nats = 0.0
        for low in range(0, len(ids), 64):
            piece = ids[low : low + 64]
            inputs = torch.tensor([[subject.tokenizer.end_id, *piece[:-1]]])
            with torch.inference_mode():
                chances = subject.model(input_ids=inputs, use_cache=False).logits[0].double().log_softmax(-1)
            nats -= float(chances[torch.arange(len(piece)), torch.tensor(piece)].sum())
        assert one.nats == pytest.approx(nats, rel=2e-5)
        assert one.tokens == len(ids)


@pytest.mark.parametrize("continuation", ["", " stone" * 300])
def test_a_continuation_that_cannot_be_scored_is_refused(folder: Path, continuation: str) -> None:
    with pytest.raises(PromptError, match="a continuation h"):
        likelihoods(make_subject(folder), [("the cat", continuation)])
