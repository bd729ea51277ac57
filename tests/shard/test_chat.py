"""Conversations as tokens: against transformers' own chat templating, and read back from their labels."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as FastTokenizer

from tessera.errors import TokenizerError
from tessera.shard import chat, tokenizer
from tessera.shard.chat import PLAIN, Encoded, Renderer

END, BEGIN_TURN, END_TURN = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIALS = (END, BEGIN_TURN, END_TURN)
FOREVER = 2**30

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
INST = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] | trim + eos_token }}{% endgeneration %}"
    "{% elif message['role'] == 'user' %}{{ '[INST]' + message['content'] | trim + '[/INST]' }}"
    "{% else %}{{ '[SYS]' + message['content'] + '[/SYS]' }}{% endif %}{% endfor %}"
)
JOINED = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
MARKED_PLAIN = PLAIN.replace(
    "{{ '### ' + message['role'] + '\\n' + message['content'] }}{% if message['role'] == 'assistant' %}{{ eos_token }}"
    "{% endif %}",
    "{{ '### ' + message['role'] + '\\n' }}{% if message['role'] == 'assistant' %}{% generation %}"
    "{{ message['content'] + eos_token }}{% endgeneration %}{% else %}{{ message['content'] }}{% endif %}",
)
"""PLAIN with the assistant's part marked, for transformers."""


@dataclass(frozen=True)
class Fixture:
    """A tokenizer folder's parts, ours and theirs."""

    ours: Renderer
    theirs: Any
    tokenizer: tokenizer.Tokenizer

    def ids(self, *contents: str) -> list[int]:
        return [self.theirs.convert_tokens_to_ids(content) for content in contents]


def save(folder: Path, *, template: str | None) -> None:
    fast = FastTokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    special = [AddedToken(content, special=True, normalized=False) for content in SPECIALS]
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=special, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )  # fmt: skip
    fast.train_from_iterator(["the user and the assistant said the same thing, and then the end came"] * 9, trainer)
    fast.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "bos_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)


@cache
def fixture(template: str | None) -> Fixture:
    from transformers import AutoTokenizer

    with TemporaryDirectory() as name:
        folder = Path(name)
        save(folder, template=template)
        loaded = tokenizer.load(folder)
        ours = Renderer(chat.load(folder), tokenizer=loaded)
        return Fixture(ours=ours, theirs=AutoTokenizer.from_pretrained(name), tokenizer=loaded)


def conversation(contents: Sequence[str], *, system: str | None = None) -> list[dict[str, str]]:
    turns = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(contents)]
    return ([{"role": "system", "content": system}] if system is not None else []) + turns


def encode(template: str | None, messages: list[dict[str, str]], *, seq_len: int = FOREVER) -> Encoded:
    (one,) = fixture(template).ours.chats([messages], names=["id"], seq_len=seq_len)
    return one


WORDS = st.from_regex(r"[a-z][a-zé猫0-9 .,!?\n]{0,30}[a-z.]", fullmatch=True)
PARTS = (*SPECIALS, "<|im_", "end|>", "<", "<|", "|>", " ", "\n", "\ue000", "\ue0010\ue001", "a", "猫", "### user\n")
ODD = st.lists(st.sampled_from(PARTS), min_size=1, max_size=6).map("".join)


def pairs(texts: st.SearchStrategy[str]) -> st.SearchStrategy[list[str]]:
    return st.integers(1, 3).flatmap(lambda turns: st.lists(texts, min_size=2 * turns, max_size=2 * turns))


@pytest.mark.parametrize("template", [CHATML, INST, None], ids=["chatml", "inst", "plain"])
@settings(max_examples=60, deadline=None)
@given(contents=pairs(WORDS), system=st.none() | WORDS)
def test_tokens_and_labels_are_those_of_transformers(
    template: str | None, contents: list[str], system: str | None
) -> None:
    messages = conversation(contents, system=system)
    theirs = fixture(template).theirs.apply_chat_template(
        messages, chat_template=template or MARKED_PLAIN, tokenize=True, return_dict=True,
        return_assistant_tokens_mask=True,
    )  # fmt: skip

    ours = encode(template, messages)

    ids, mask = list(theirs["input_ids"]), list(theirs["assistant_masks"])
    (end,) = fixture(template).ids(END)
    if ids[-1] != end:
        ids, mask = [*ids, end], [*mask, 0]
    assert ours.tokens.tolist() == ids
    assert ours.loss is not None
    assert ours.loss.tolist() == mask
    assert (ours.truncated_tokens, ours.dropped_turns, ours.cut_tokens) == (0, 0, 0)


@pytest.mark.parametrize("template", [CHATML, None, JOINED], ids=["chatml", "plain", "joined"])
@settings(max_examples=120, deadline=None)
@given(contents=pairs(ODD), system=st.none() | ODD)
def test_labels_are_the_assistants_words_and_no_content_becomes_a_special_token(
    template: str | None, contents: list[str], system: str | None
) -> None:
    messages = conversation(contents, system=system)
    theirs = fixture(template).theirs

    encoded = encode(template, messages)

    assert encoded.loss is not None
    labels = encoded.tokens[encoded.loss == 1]
    assert theirs.decode(labels.tolist(), skip_special_tokens=True) == "".join(contents[1::2])
    everything = theirs.decode(encoded.tokens.tolist(), skip_special_tokens=True)
    plain = {
        CHATML: "".join(f"{message['role']}\n{message['content']}\n" for message in messages),
        None: "\n\n".join(f"### {message['role']}\n{message['content']}" for message in messages),
        JOINED: "".join(message["content"] for message in messages),
    }
    assert everything == plain[template]
    answers = len(contents) // 2
    end, begin_turn, end_turn = (int((encoded.tokens == one).sum()) for one in fixture(template).ids(*SPECIALS))
    wanted = {CHATML: (1, len(messages), len(messages)), None: (answers, 0, 0), JOINED: (1, 0, 0)}
    assert (end, begin_turn, end_turn) == wanted[template]


@pytest.mark.parametrize("template", [CHATML, INST, None], ids=["chatml", "inst", "plain"])
@settings(max_examples=60, deadline=None)
@given(contents=pairs(WORDS), seq_len=st.integers(16, 120))
def test_a_long_conversation_keeps_its_first_turns(template: str | None, contents: list[str], seq_len: int) -> None:
    starts = [conversation(contents[:number]) for number in range(2, len(contents) + 1, 2)]
    whole = [encode(template, start) for start in starts]
    fitting = [one for one in whole if len(one.tokens) <= seq_len]

    kept = encode(template, starts[-1], seq_len=seq_len)

    total = len(whole[-1].tokens)
    wanted = fitting[-1] if fitting else whole[0]
    assert kept.tokens.tolist() == wanted.tokens[:seq_len].tolist()
    assert kept.loss is not None
    assert wanted.loss is not None
    assert kept.loss.tolist() == wanted.loss[:seq_len].tolist()
    assert kept.truncated_tokens == total - len(kept.tokens)
    assert kept.dropped_turns == len(contents) - 2 * max(len(fitting), 1)
    assert kept.cut_tokens == max(len(wanted.tokens) - seq_len, 0)


@pytest.mark.parametrize("template", [CHATML, INST, None], ids=["chatml", "inst", "plain"])
@settings(max_examples=60, deadline=None)
@given(texts=st.tuples(WORDS, WORDS, WORDS), seq_len=st.integers(16, 80))
def test_preferences_share_their_prompt_and_lose_its_beginning_first(
    template: str | None, texts: tuple[str, str, str], seq_len: int
) -> None:
    prompt, *answers = texts
    ours = fixture(template).ours
    (whole,) = ours.preferences([texts], names=["id"], seq_len=FOREVER)
    alone = [encode(template, conversation([prompt, answer])) for answer in answers]

    (cut,) = ours.preferences([texts], names=["id"], seq_len=seq_len)

    assert whole.rejected is not None
    assert whole.prompt_tokens is not None
    for one, chats in zip((whole.tokens, whole.rejected), alone, strict=True):
        assert one.tolist() == chats.tokens[: len(one)].tolist()
        assert chats.loss is not None
        assert chats.loss.sum() == len(one) - whole.prompt_tokens
        assert not chats.loss[: whole.prompt_tokens].any()
    assert whole.truncated_tokens == 0
    shared = whole.tokens[: whole.prompt_tokens].tolist()
    both = [one[whole.prompt_tokens :].tolist() for one in (whole.tokens, whole.rejected)]
    while len(shared) > 1 and len(shared) + max(map(len, both)) > seq_len:
        shared.pop(0)
    assert cut.rejected is not None
    assert cut.prompt_tokens == len(shared)
    assert [cut.tokens.tolist(), cut.rejected.tolist()] == [(shared + answer)[:seq_len] for answer in both]
    left_off = len(whole.tokens) + len(whole.rejected) - len(cut.tokens) - len(cut.rejected)
    assert cut.truncated_tokens == left_off
    assert cut.cut_tokens == sum(max(len(shared) + len(answer) - seq_len, 0) for answer in both)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{% for message in messages %}{{ message['content'] }}{% if loop.last %}!{% endif %}{% endfor %}",
         "to its message 2 of 4 otherwise than as a beginning of the whole"),
        ("{{ messages | length }}{% for message in messages %}{{ message['content'] }}{% endfor %}",
         "to its message 2 of 4 otherwise than as a beginning of the whole"),
        ("{{ raise_exception('System role not supported') }}", r"TemplateError: System role not supported\)"),
        ("{{ messages[0]['content'] + 1 }}", r"\(TypeError\); leave such rows out"),
        ("{{ ''.__class__.__mro__ }}", r"\(SecurityError\)"),
        ("{{ strftime_now('%Y') }}", r"\(UndefinedError"),
        ("{% for message in %}", r"is not Jinja \(TemplateSyntaxError\); put another chat_template.jinja"),
    ],
)  # fmt: skip
def test_an_unfit_template_is_refused_by_name_without_the_rows_text(
    tmp_path: Path, template: str, expected: str
) -> None:
    save(tmp_path, template=template)
    messages = conversation(["a secret", "another secret", "more", "and more"])

    with pytest.raises(TokenizerError, match=expected) as refused:
        Renderer(chat.load(tmp_path), tokenizer=tokenizer.load(tmp_path)).chats([messages], names=["id7"], seq_len=64)

    assert str(refused.value).startswith("the tokenizer's chat template")
    assert "secret" not in str(refused.value)
    assert "id7" in str(refused.value) or "Jinja" in expected


def test_the_template_is_found_where_transformers_finds_it(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    messages = conversation(["one", "two"])
    save(tmp_path, template=None)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert chat.load(tmp_path).source == PLAIN
    steps: list[tuple[str, Any]] = [
        ("tokenizer_config.json", {**config, "chat_template": "config " + JOINED}),
        ("tokenizer_config.json", {**config, "chat_template": [
            {"name": "tool_use", "template": "tools"}, {"name": "default", "template": "listed " + JOINED}]}),
        ("chat_template.jinja", "file " + JOINED),
    ]  # fmt: skip
    for name, content in steps:
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
        theirs = AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(messages, tokenize=False)
        loaded = tokenizer.load(tmp_path)
        (one,) = Renderer(chat.load(tmp_path), tokenizer=loaded).chats([messages], names=["id"], seq_len=64)
        assert loaded.decode(one.tokens.tolist()) == theirs
        assert chat.load(tmp_path).name == chat.SUPPLIED


def test_white_space_that_a_special_token_takes_is_taken_as_transformers_does(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    save(tmp_path, template=CHATML)
    parsed = json.loads((tmp_path / "tokenizer.json").read_text())
    for token in parsed["added_tokens"]:
        token["rstrip"] = token["content"] == END_TURN
    (tmp_path / "tokenizer.json").write_text(json.dumps(parsed))
    messages = conversation(["one", "two", "three", "four"])
    theirs = AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(messages, tokenize=True, return_dict=True)

    (one,) = Renderer(chat.load(tmp_path), tokenizer=tokenizer.load(tmp_path)).chats(
        [messages], names=["id"], seq_len=64
    )

    assert one.tokens[:-1].tolist() == list(theirs["input_ids"])


def test_end_tokens_at_the_very_beginning_are_left_off() -> None:
    template = "{{ bos_token }}" + INST
    messages = conversation(["one", "two", "three", "four"])

    encoded, without = encode(template, messages), encode(INST, messages)

    assert encoded.tokens[0] != fixture(template).ids(END)[0]
    assert encoded.tokens.tolist() == without.tokens.tolist()
    assert np.array_equal(encoded.loss, without.loss)  # type: ignore[arg-type]
    short = encode(template, messages, seq_len=len(without.tokens) - 1)
    assert short.dropped_turns == 2
    assert short.tokens.tolist() == encode(INST, messages[:2]).tokens.tolist()


def test_another_special_token_is_another_mask() -> None:
    """The end token is a label where nothing else ends the assistant's turn."""
    marked, bare = encode(CHATML, conversation(["a", "b"])), encode(JOINED, conversation(["a", "b"]))

    assert marked.loss is not None
    assert bare.loss is not None
    assert (marked.loss[-1], bare.loss[-1]) == (0, 1)
    assert replace(marked, loss=None).tokens[-1] == bare.tokens[-1]


@pytest.mark.parametrize(
    ("template", "content"),
    [
        ("{% for message in messages %}{{ '<|im_' + message['content'] }}{% endfor %}", "end|> it is"),
        ("{% for message in messages %}{{ message['content'] + 'end|>' }}{% endfor %}", "so <|im_"),
    ],
    ids=["begun by the template", "ended by the template"],
)
def test_half_a_special_token_in_a_content_is_text(template: str, content: str) -> None:
    encoded = encode(template, conversation([content, content]))

    _, begin_turn, end_turn = fixture(template).ids(*SPECIALS)
    assert not np.isin(encoded.tokens, [begin_turn, end_turn]).any()
    text = fixture(template).theirs.decode(encoded.tokens.tolist(), skip_special_tokens=True)
    assert text.count("<|im_end|>") == 2
