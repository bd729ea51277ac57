"""The engine: text in, text out; pieces add up, stop strings end, wrong folders are refused."""

import shutil
import threading

import pytest
import torch

from tessera.errors import ModelError, PromptError
from tessera.model.generate import generate
from tessera.serve.engine import Completion, Engine, _held_back

from .conftest import CONTEXT


def test_greedy_text_is_the_decoded_tokens_after_the_end_token(engine):
    answer = engine.complete("Return the", max_tokens=20)
    ids = engine.tokenizer.encode_batch(["Return the"])[0]
    prompt = [engine.tokenizer.end_id, *ids]
    tokens = list(generate(engine.model, prompt=prompt, max_new_tokens=20, end_id=engine.tokenizer.end_id))

    assert answer.text == engine.tokenizer.decode(tokens)
    assert (answer.prompt_tokens, answer.completion_tokens) == (len(ids), len(tokens))
    assert answer.seconds > 0


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("stop", [(), ("e", "zz"), ("st", " "), ("größte",)])
def test_pieces_add_up_to_the_text_and_never_hold_a_stop_string(engine, seed, stop):
    prepared = engine.prepare("Raise", max_tokens=40, temperature=1.0, seed=seed, stop=stop)
    *pieces, answer = engine.stream(prepared)
    free = engine.complete("Raise", max_tokens=40, temperature=1.0, seed=seed)

    assert isinstance(answer, Completion)
    assert "".join(pieces) == answer.text
    found = [free.text.find(string) for string in stop if string in free.text]
    assert answer.text == (free.text[: min(found)] if found else free.text)
    if found:
        assert answer.finish_reason == "stop"
        assert answer.completion_tokens <= free.completion_tokens


def test_what_may_still_change_is_held_back():
    assert _held_back("abc", ("cd", "bcx")) == 2
    assert _held_back("abc", ("x",)) == 0
    assert _held_back("ab\ufffd", ()) == 1
    assert _held_back("ab\ufffd\ufffd", ("bc",)) == 3


def test_without_max_tokens_an_answer_takes_the_default_or_what_the_context_leaves(engine):
    assert engine.prepare("Return", default_tokens=7).max_tokens == 7
    assert engine.prepare("Return", default_tokens=999).max_tokens == CONTEXT - len(engine.prepare("Return").tokens)


@pytest.mark.parametrize(
    ("prompt", "options", "said"),
    [
        ("Return " * 200, {}, f"at most {CONTEXT - 1}"),
        ("Return", {"max_tokens": 63}, "ask for at most"),
        ("Return", {"temperature": 3.0}, "temperature"),
        ("\ud800", {}, "valid Unicode"),
    ],
)
def test_impossible_requests_are_refused_without_their_text(engine, prompt, options, said):
    with pytest.raises(PromptError, match=said) as error:
        engine.complete(prompt, **options)

    assert "Return" not in str(error.value)


def test_threads_get_the_answers_they_would_get_alone(engine):
    prompts = [("Return the", 1), ("Raise", 2), ("lists", 3), ("空", 4)]
    alone = [engine.complete(text, max_tokens=12, temperature=1.0, seed=seed).text for text, seed in prompts]
    found: dict[int, str] = {}

    def ask(index):
        text, seed = prompts[index]
        found[index] = engine.complete(text, max_tokens=12, temperature=1.0, seed=seed).text

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [found[index] for index in range(len(prompts))] == alone


def test_an_abandoned_stream_frees_the_engine(engine):
    stream = engine.stream(engine.prepare("Return the", max_tokens=30))
    next(stream)
    stream.close()

    assert engine.complete("Raise", max_tokens=2).completion_tokens <= 2
    assert not torch.is_inference_mode_enabled()


def test_changed_weights_are_refused(checkpoint, engine):
    assert Engine(checkpoint, weights_sha256=engine.weights_sha256).weights_sha256 == engine.weights_sha256
    with pytest.raises(ModelError, match="changed after registration"):
        Engine(checkpoint, weights_sha256="0" * 64)


def test_a_folder_without_weights_is_refused(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "model" / "pytorch_model.bin")

    with pytest.raises(ModelError, match=r"holds no model\.safetensors"):
        Engine(tmp_path / "model")
