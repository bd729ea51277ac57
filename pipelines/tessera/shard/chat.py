"""Conversations become tokens, and which of them are labels: the assistant's, to the end of its turn. No transformers.

The tokenizer's own chat template is rendered as transformers renders it (jinja2 in a sandbox, without the clock), or
PLAIN where it has none. Special tokens of the template become their ids; in a content they are text like any other,
so nobody can end a turn by writing its mark. A conversation is divided where the assistant begins to write and where
its turn ends, and each stretch is encoded by itself: the tokens of a prompt are those that an engine will be given,
whatever the answer is. That needs a template whose rendering of a prompt is a prefix of the rendering of the whole;
another is refused. Stretches between special tokens are encoded by themselves too, so a tokenizer that puts a space in
front of every text puts one there. Costs two renderings a turn beside the tokenizer.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.errors import TokenizerError
from tessera.shard.tokenizer import END_TOKEN, SPECIAL_NAMES, Tokenizer, content_of, read_optional

PLAIN = (
    "{% for message in messages %}{% if not loop.first %}{{ '\\n\\n' }}{% endif %}"
    "{{ '### ' + message['role'] + '\\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n\\n### assistant\\n' }}{% endif %}"
)
"""Ours: `### user`, a line feed, the content; the end token closes the assistant's turns; an empty line between turns.
For a tokenizer whose only special token is the end token. Its headings are plain text, which a user can write too."""

FILE = "chat_template.jinja"
"""Where transformers looks first."""
SUPPLIED = "the tokenizer's chat template"
OURS = "Tessera's plain chat template"
PRIVATE = range(0xE000, 0xF900)

Ids = NDArray[np.uint32]
Mask = NDArray[np.uint8]
Message = Mapping[str, str]


@dataclass(frozen=True)
class Template:
    """A chat template as it travels to the workers."""

    source: str
    """Jinja."""
    tokens: tuple[tuple[str, str], ...]
    """Special tokens by the names that the template calls them by."""
    name: str
    """For errors."""


PLAIN_TEMPLATE = Template(source=PLAIN, tokens=(("eos_token", END_TOKEN),), name=OURS)


@dataclass(frozen=True)
class Encoded:
    """One document as it will be stored, its end token included, and what was left off."""

    tokens: Ids
    """Of a preference: the prompt and the chosen answer."""
    loss: Mask | None = None
    """1 for labels; None: all tokens are."""
    rejected: Ids | None = None
    """Of a preference: the prompt and the rejected answer."""
    prompt_tokens: int | None = None
    """Of a preference: the leading tokens that both share, which are no labels."""
    truncated_tokens: int = 0
    """Left off, in whole turns or by a cut; both prompts of a preference count."""
    dropped_turns: int = 0
    """Messages left off."""
    cut_tokens: int = 0
    """Those of `truncated_tokens` that a turn or an answer lost at its end."""


@dataclass(frozen=True)
class _Part:
    """A stretch that is encoded by itself: text, or a special token."""

    text: str
    token: int | None
    counts: bool
    turn: int
    """Which of the assistant's turns it leads to or belongs to."""


@dataclass(frozen=True)
class _Turns:
    """A whole conversation as tokens."""

    tokens: Ids
    loss: Mask
    ends: tuple[int, ...]
    """Tokens up to the end of each of the assistant's turns."""
    marked: tuple[bool, ...]
    """Whether a special token ends the turn."""


def load(folder: Path) -> Template:
    """The chat template of a tokenizer folder, PLAIN where it has none.

    Raises:
        TokenizerError: a file that should hold it cannot be read.
    """
    config = read_optional(folder / "tokenizer_config.json")
    named = {**read_optional(folder / "special_tokens_map.json"), **config}
    tokens = {"eos_token": END_TOKEN}
    for name in SPECIAL_NAMES:
        if (content := content_of(named.get(name))) is not None:
            tokens[name] = content
    source = _source(folder, config=config)
    pairs = tuple(sorted(tokens.items()))
    return Template(source=PLAIN if source is None else source, tokens=pairs, name=SUPPLIED if source else OURS)


class Renderer:
    """Renders and encodes conversations by one template and one tokenizer."""

    def __init__(self, template: Template, *, tokenizer: Tokenizer) -> None:
        self._template = template
        self._tokenizer = tokenizer
        self._compiled = _compile(template)
        self._specials = _specials(template, tokenizer=tokenizer)
        ordered = sorted(self._specials, key=lambda content: (-len(content), content))
        self._forged = re.compile("|".join(map(re.escape, ordered)))
        self._split = re.compile("|".join(f"({self._specials[content].pattern})" for content in ordered))
        self._ids = [self._specials[content].id for content in ordered]
        self._heads = {content[:size] for content in ordered for size in range(1, len(content))}
        self._tails = {content[size:] for content in ordered for size in range(1, len(content))}

    def chats(self, conversations: Sequence[Sequence[Message]], *, names: Sequence[str], seq_len: int) -> list[Encoded]:
        """Conversations as documents of at most `seq_len` tokens.

        A longer one keeps its first turns, to the end of the last assistant's turn that fits. Where not even the first
        answer fits, the conversation to its end is cut at `seq_len`, and has no end token.

        Args:
            conversations: messages with `role` and `content`; the last is the assistant's.
            names: their doc_ids, for errors.

        Raises:
            TokenizerError: the template is unfit, or the tokenizer does not fit the text.
        """
        turns = self._encode(conversations, names=names)
        return [
            _fit(one, messages=messages, seq_len=seq_len, end_id=self._tokenizer.end_id)
            for one, messages in zip(turns, conversations, strict=True)
        ]

    def preferences(
        self, triples: Sequence[tuple[str, str, str]], *, names: Sequence[str], seq_len: int
    ) -> list[Encoded]:
        """(prompt, chosen, rejected) as two answers to one prompt, each at most `seq_len` tokens together with it.

        What is too long loses the prompt's beginning first, to its last token; then each answer is cut at its end.

        Raises:
            TokenizerError: as `chats`.
        """
        conversations = [
            [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
            for prompt, *answers in triples
            for answer in answers
        ]
        turns = self._encode(conversations, names=[name for name in names for _ in range(2)])
        pairs = zip(turns[::2], turns[1::2], strict=True)
        return [_fit_preference(*pair, seq_len=seq_len, end_id=self._tokenizer.end_id) for pair in pairs]

    def _encode(self, conversations: Sequence[Sequence[Message]], *, names: Sequence[str]) -> list[_Turns]:
        """All conversations, in one call of the tokenizer."""
        parts = [list(self._parts(messages, name=name)) for messages, name in zip(conversations, names, strict=True)]
        texts = [
            (part.text, name) for own, name in zip(parts, names, strict=True) for part in own if part.token is None
        ]
        encoded = iter(self._tokenizer.encode_arrays([text for text, _ in texts], names=[name for _, name in texts]))
        return [
            _join(own, encoded=islice(encoded, sum(part.token is None for part in own)), end_id=self._tokenizer.end_id)
            for own in parts
        ]

    def _parts(self, messages: Sequence[Message], *, name: str) -> Iterator[_Part]:
        shielded, restore = self._shield(messages)
        whole = self._render(shielded, name=name)
        begin = turn = 0
        for place, message in enumerate(shielded):
            if message["role"] != "assistant":
                continue
            prompt = self._render(shielded[:place], name=name, prompt=True)
            answered = self._render(shielded[: place + 1], name=name)
            if not (whole.startswith(answered) and answered.startswith(prompt) and begin <= len(prompt)):
                raise TokenizerError(
                    f"{self._template.name} renders the conversation of doc_id {name} to its message {place + 1} of "
                    f"{len(messages)} otherwise than as a beginning of the whole, so the assistant's tokens cannot be "
                    "told; put another chat_template.jinja into the tokenizer's folder"
                )
            for text, counts in ((whole[begin : len(prompt)], False), (whole[len(prompt) : len(answered)], True)):
                yield from self._divide(text, counts=counts, turn=turn, restore=restore)
            begin, turn = len(answered), turn + 1

    def _divide(self, text: str, *, counts: bool, turn: int, restore: Callable[[str], str]) -> Iterator[_Part]:
        """Text and the template's special tokens. What follows the last of them in a turn is no label."""
        matches = list(self._split.finditer(text))
        at = 0
        for match in matches:
            if match.start() > at:
                yield _Part(text=restore(text[at : match.start()]), token=None, counts=counts, turn=turn)
            assert match.lastindex is not None
            yield _Part(text="", token=self._ids[match.lastindex - 1], counts=counts, turn=turn)
            at = match.end()
        if at < len(text):
            yield _Part(text=restore(text[at:]), token=None, counts=counts and not matches, turn=turn)

    def _render(self, messages: Sequence[Message], *, name: str, prompt: bool = False) -> str:
        try:
            return str(
                self._compiled.render(
                    messages=messages, tools=None, documents=None, add_generation_prompt=prompt,
                    **dict(self._template.tokens),
                )
            )  # fmt: skip
        except Exception as error:  # a template can raise anything
            said = f": {error}" if str(error) and str(error) in self._template.source else ""
            raise TokenizerError(
                f"{self._template.name} cannot render the conversation of doc_id {name} ({type(error).__name__}{said}"
                "); leave such rows out (prepare.sources[].where), or put another chat_template.jinja into the "
                "tokenizer's folder"
            ) from None

    def _shield(self, messages: Sequence[Message]) -> tuple[list[dict[str, str]], Callable[[str], str]]:
        """The messages with special tokens in their contents, also halves of them, replaced; and the way back."""
        if not any(self._may_forge(message["content"]) for message in messages):
            return [dict(message) for message in messages], str
        used = set().union(self._template.source, *(message["content"] for message in messages))
        mark = next(chr(code) for code in PRIVATE if chr(code) not in used)
        held: list[str] = []

        def hold(text: str) -> str:
            held.append(text)
            return f"{mark}{len(held) - 1}{mark}"

        def restore(text: str) -> str:
            return re.sub(f"{mark}([0-9]+){mark}", lambda match: held[int(match[1])], text)

        return [{**message, "content": self._replace(message["content"], hold=hold)} for message in messages], restore

    def _may_forge(self, content: str) -> bool:
        bare = content.strip()
        return bool(self._forged.search(content) or self._head_at_end(bare) or self._tail_at_begin(bare))

    def _replace(self, content: str, *, hold: Callable[[str], str]) -> str:
        content = self._forged.sub(lambda match: hold(match[0]), content)
        begin = len(content) - len(content.lstrip())
        if size := self._tail_at_begin(content[begin:]):
            content = content[:begin] + hold(content[begin : begin + size]) + content[begin + size :]
        end = len(content.rstrip())
        if size := self._head_at_end(content[:end]):
            content = content[: end - size] + hold(content[end - size : end]) + content[end:]
        return content

    def _head_at_end(self, text: str) -> int:
        """How much of a special token's beginning the text ends with."""
        longest = max(map(len, self._specials))
        return next((size for size in range(min(longest, len(text)), 0, -1) if text[-size:] in self._heads), 0)

    def _tail_at_begin(self, text: str) -> int:
        longest = max(map(len, self._specials))
        return next((size for size in range(min(longest, len(text)), 0, -1) if text[:size] in self._tails), 0)


@dataclass(frozen=True)
class _Special:
    id: int
    pattern: str
    """Takes the white space with it that the tokenizer's file says."""


def _specials(template: Template, *, tokenizer: Tokenizer) -> dict[str, _Special]:
    """The special tokens by their text, the end token among them."""
    found = {dict(template.tokens)["eos_token"]: _Special(id=tokenizer.end_id, pattern="")}
    for token in json.loads(tokenizer.definition.tokenizer_json).get("added_tokens") or ():
        if token["special"] and token["content"]:
            left, right = (r"\s*" if token.get(side) else "" for side in ("lstrip", "rstrip"))
            found[token["content"]] = _Special(
                id=int(token["id"]), pattern=f"{left}{re.escape(token['content'])}{right}"
            )
    return {
        content: special if special.pattern else _Special(id=special.id, pattern=re.escape(content))
        for content, special in found.items()
    }


def _join(parts: Sequence[_Part], *, encoded: Iterator[Ids], end_id: int) -> _Turns:
    """The parts' tokens one after another, without end tokens at the very beginning: no document has them there."""
    ids = [next(encoded) if part.token is None else np.array([part.token], np.uint32) for part in parts]
    tokens = np.concatenate([np.empty(0, np.uint32), *ids])
    loss = np.repeat([part.counts for part in parts], [len(own) for own in ids]).astype(np.uint8)
    turn = np.repeat([part.turn for part in parts], [len(own) for own in ids])
    others = np.flatnonzero(tokens != end_id)
    first = int(others[0]) if len(others) else len(tokens)
    num_turns = parts[-1].turn + 1 if parts else 0
    marked = [False] * num_turns
    for part in parts:
        marked[part.turn] |= part.counts and part.token is not None
    ends = np.searchsorted(turn, np.arange(num_turns), side="right") - first
    ends = np.maximum(ends, 0)
    return _Turns(tokens=tokens[first:], loss=loss[first:], ends=tuple(ends.tolist()), marked=tuple(marked))


def _closed(turns: _Turns, *, turn: int, end_id: int) -> tuple[Ids, Mask]:
    """The conversation to the end of this turn, and its end token: a label where nothing else ends the turn."""
    tokens, loss = turns.tokens[: turns.ends[turn]], turns.loss[: turns.ends[turn]]
    if len(tokens) and tokens[-1] == end_id:
        return tokens, loss
    label = np.uint8(not turns.marked[turn])
    return np.append(tokens, np.uint32(end_id)), np.append(loss, label)


def _fit(turns: _Turns, *, messages: Sequence[Message], seq_len: int, end_id: int) -> Encoded:
    num_turns = len(turns.ends)
    if num_turns == 0 or turns.ends[-1] <= 0:
        return Encoded(tokens=np.array([end_id], np.uint32))
    whole, _ = _closed(turns, turn=num_turns - 1, end_id=end_id)
    for turn in range(num_turns - 1, -1, -1):
        tokens, loss = _closed(turns, turn=turn, end_id=end_id)
        if len(tokens) <= seq_len:
            break
    answers = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    return Encoded(
        tokens=tokens[:seq_len],
        loss=loss[:seq_len],
        truncated_tokens=len(whole) - min(len(tokens), seq_len),
        dropped_turns=len(messages) - 1 - answers[turn],
        cut_tokens=max(len(tokens) - seq_len, 0),
    )


def _fit_preference(chosen: _Turns, rejected: _Turns, *, seq_len: int, end_id: int) -> Encoded:
    prompt = chosen.tokens[: int(np.argmax(chosen.loss == 1))]
    answers = [
        one.tokens[one.loss == 1] if one.marked[0] else np.append(one.tokens[one.loss == 1], np.uint32(end_id))
        for one in (chosen, rejected)
    ]
    room = max(seq_len - max(map(len, answers)), 1)
    kept = prompt[-room:]
    both = [np.concatenate([kept, answer])[:seq_len] for answer in answers]
    cut = sum(len(kept) + len(answer) - len(one) for answer, one in zip(answers, both, strict=True))
    return Encoded(
        tokens=both[0],
        rejected=both[1],
        prompt_tokens=len(kept),
        truncated_tokens=cut + 2 * (len(prompt) - len(kept)),
        cut_tokens=cut,
    )


@lru_cache(maxsize=4)
def _compile(template: Template) -> Any:
    """The template, in the environment that transformers gives it, but for the clock: same inputs, same bytes.

    `{% generation %}` is passed over: where the assistant's tokens are is found by rendering.
    """
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012, as jinja2 declares it

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.globals["raise_exception"] = refuse
    environment.filters["tojson"] = _to_json
    try:
        return environment.from_string(template.source)
    except TemplateError as error:
        raise TokenizerError(
            f"{template.name} is not Jinja ({type(error).__name__}); put another chat_template.jinja into the "
            "tokenizer's folder"
        ) from None


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _source(folder: Path, *, config: Mapping[str, Any]) -> str | None:
    """The template's text, looked for where transformers looks, in its order."""
    file = folder / FILE
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise TokenizerError(
                f"{file} cannot be read as text ({type(error).__name__}); save the tokenizer again"
            ) from None
    for found in (config.get("chat_template"), read_optional(folder / "chat_template.json").get("chat_template")):
        if isinstance(found, list):
            found = {one.get("name"): one.get("template") for one in found}.get("default")
        if isinstance(found, str):
            return found
    return None
