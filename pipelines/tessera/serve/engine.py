"""The engine: a checkpoint folder that completes prompts. The one way to a model for the CLI, HTTP and MLflow.

Loads our own code and safetensors, never a pickle. One lock: requests are answered one after the other. A small model
runs in one thread: measured on 2 busy cores, 1.8 M parameters gave 237 tokens/s with one, 29 with two. Text is decoded
anew with every token, which costs less than a tenth of the token's forward.
"""

import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tessera.errors import ModelError, PromptError
from tessera.lineage import sha256_file
from tessera.model import build
from tessera.model.generate import Sampling, check_room, context_of, generate
from tessera.shard import tokenizer

WEIGHTS = "model.safetensors"
DEFAULT_TOKENS = 64
SMALL_PARAMETERS = 20_000_000
UNFINISHED = "\ufffd"
"""What decoding gives for the first bytes of a character whose last bytes are still to come."""


@dataclass(frozen=True)
class Completion:
    """One answer."""

    text: str
    """Without the prompt and without the stop string."""
    prompt_tokens: int
    """The end-of-document token that every prompt starts from not counted."""
    completion_tokens: int
    finish_reason: str
    """`stop`: the model ended, or a stop string came; `length`: cut at max_tokens or the context."""
    seconds: float


@dataclass(frozen=True)
class Prepared:
    """A prompt that was checked: token ids with the end token before them, and the tokens it may get."""

    tokens: tuple[int, ...]
    max_tokens: int
    sampling: Sampling
    stop: tuple[str, ...]


class Engine:
    """A model in memory; safe to call from several threads."""

    def __init__(self, folder: Path, *, weights_sha256: str | None = None) -> None:
        """Loads `folder` (config.json, model.safetensors, tokenizer files).

        Raises:
            ModelError: the folder is no model, its weights are not `weights_sha256`, or its tokenizer has more tokens
                than the model.
        """
        self.folder = folder
        self.weights_sha256 = _weights_sha256(folder, expected=weights_sha256)
        self.tokenizer = tokenizer.load(folder)
        self.model = build.load(folder).eval()
        self.context = context_of(self.model)
        config: Any = self.model.config
        if self.tokenizer.vocab_size > config.vocab_size:
            raise ModelError(
                f"{folder}: the tokenizer has {self.tokenizer.vocab_size} tokens, the model {config.vocab_size}; "
                "use the tokenizer that it was trained with"
            )
        self._lock = threading.Lock()

    def prepare(
        self,
        prompt: str,
        *,
        max_tokens: int | None = None,
        default_tokens: int = DEFAULT_TOKENS,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int | None = None,
        seed: int | None = None,
        stop: Sequence[str] = (),
    ) -> Prepared:
        """Tokenizes and checks a request without running the model.

        Args:
            max_tokens: None takes `default_tokens`, or what the context leaves.

        Raises:
            PromptError: it does not fit the context, naming the limit, or a value is out of range.
        """
        sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k, seed=seed)
        sampling.check()
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise PromptError("the prompt holds half a surrogate pair; send valid Unicode") from None
        tokens = (self.tokenizer.end_id, *self.tokenizer.encode_batch([prompt])[0])
        check_room(len(tokens), max_new_tokens=1 if max_tokens is None else max_tokens, context=self.context)
        if max_tokens is None:
            max_tokens = min(default_tokens, self.context - len(tokens))
        return Prepared(tokens=tokens, max_tokens=max_tokens, sampling=sampling, stop=tuple(s for s in stop if s))

    def stream(self, prepared: Prepared) -> Generator[str | Completion, None, None]:
        """Yields pieces of text as they become certain, and last the Completion, whose text they add up to.

        Closing the iterator stops the work and frees the engine for the next request.
        """
        with self._lock, _threads_for(self.model):
            started = time.perf_counter()
            tokens: list[int] = []
            text, emitted, stopped = "", 0, False
            produced = generate(
                self.model,
                prompt=prepared.tokens,
                max_new_tokens=prepared.max_tokens,
                end_id=self.tokenizer.end_id,
                sampling=prepared.sampling,
                vocab_size=self.tokenizer.vocab_size,
            )
            for token in produced:
                tokens.append(token)
                text, stopped = _cut(self.tokenizer.decode(tokens), prepared.stop)
                if stopped:
                    break
                certain = len(text) - _held_back(text, prepared.stop)
                if certain > emitted:
                    yield text[emitted:certain]
                    emitted = certain
            if len(text) > emitted:
                yield text[emitted:]
            ended = stopped or len(tokens) < prepared.max_tokens
            yield Completion(
                text=text,
                prompt_tokens=len(prepared.tokens) - 1,
                completion_tokens=len(tokens),
                finish_reason="stop" if ended else "length",
                seconds=time.perf_counter() - started,
            )

    def complete(self, prompt: str, **options: Any) -> Completion:
        """One answer to one prompt; options and errors as in `prepare`."""
        *_, last = self.stream(self.prepare(prompt, **options))
        assert isinstance(last, Completion)
        return last


@contextmanager
def _threads_for(model: Any) -> Iterator[None]:
    """One thread for a small model on a CPU: a forward of one position is too little to share out."""
    before = torch.get_num_threads()
    if sum(value.numel() for value in model.parameters()) < SMALL_PARAMETERS:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _weights_sha256(folder: Path, *, expected: str | None) -> str:
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise ModelError(f"{folder} holds no {WEIGHTS}; give a checkpoint or model folder")
    found = sha256_file(weights)
    if expected is not None and found != expected:
        raise ModelError(
            f"{weights}: found weights {found[:12]}, the model version says {expected[:12]}; "
            "the files changed after registration. Register the run again: tessera serve"
        )
    return found


def _cut(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """`text` before the first stop string in it, and whether there was one."""
    found = [at for at in (text.find(string) for string in stop) if at >= 0]
    return (text[: min(found)], True) if found else (text, False)


def _held_back(text: str, stop: Sequence[str]) -> int:
    """Characters at the end of `text` that later tokens may still change or turn into a stop string."""
    unfinished = len(text) - len(text.rstrip(UNFINISHED))
    text = text[: len(text) - unfinished]
    longest = max((len(string) - 1 for string in stop), default=0)
    for length in range(min(longest, len(text)), 0, -1):
        if any(string.startswith(text[-length:]) for string in stop):
            return unfinished + length
    return unfinished
