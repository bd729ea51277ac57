"""Generation: one token at a time from a causal model, with a key-value cache.

An own loop of a page instead of `transformers`' `generate`, whose imports (scikit-learn, scipy) cost every process
seconds. Each new token costs one forward of a single position over the cached ones; memory is the cache, which grows
by (layers x 2 x key-value heads x head width) numbers a token. One sequence at a time; no beams, no batches.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tessera.errors import PromptError

MAX_TEMPERATURE = 2.0


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen."""

    temperature: float = 0.0
    """0 takes the most likely token; else logits are divided by it."""
    top_k: int | None = None
    """Keeps the k most likely tokens; None keeps all."""
    top_p: float = 1.0
    """Keeps the smallest set of most likely tokens that holds this probability (Holtzman et al. 2020)."""
    seed: int | None = None
    """Of a generator of its own; None draws one, so that two calls differ."""

    def check(self) -> None:
        """Raises PromptError when a value is out of range."""
        if not (math.isfinite(self.temperature) and 0 <= self.temperature <= MAX_TEMPERATURE):
            raise PromptError(f"temperature is {self.temperature}, wanted 0 to {MAX_TEMPERATURE:g}")
        if not (math.isfinite(self.top_p) and 0 < self.top_p <= 1):
            raise PromptError(f"top_p is {self.top_p}, wanted above 0 and at most 1")
        if self.top_k is not None and self.top_k < 1:
            raise PromptError(f"top_k is {self.top_k}, wanted at least 1, or none")
        if self.seed is not None and not -(2**63) <= self.seed < 2**63:
            raise PromptError("seed does not fit into 64 bits")


@dataclass(frozen=True)
class Generated:
    """What a model said."""

    tokens: tuple[int, ...]
    """Without the prompt, and without the end token."""
    finish_reason: str
    """`stop` when the model ended by itself, `length` when it was cut."""


def context_of(model: Any) -> int:
    """The model's context, in tokens: prompt and answer together."""
    return int(model.config.max_position_embeddings)


def check_room(num_prompt: int, *, max_new_tokens: int, context: int) -> None:
    """Raises PromptError when the prompt and `max_new_tokens` do not fit into `context` tokens, naming the limit."""
    if num_prompt < 1:
        raise PromptError("the prompt holds no token; start with the end-of-document token")
    if max_new_tokens < 1:
        raise PromptError(f"max_tokens is {max_new_tokens}, wanted at least 1")
    if num_prompt >= context:
        raise PromptError(f"the prompt has {num_prompt} tokens; the model takes at most {context - 1}. Shorten it")
    if num_prompt + max_new_tokens > context:
        raise PromptError(
            f"{num_prompt} tokens of prompt and max_tokens={max_new_tokens} exceed the model's context of {context} "
            f"tokens; ask for at most {context - num_prompt}"
        )


def generate(
    model: Any,
    *,
    prompt: Sequence[int],
    max_new_tokens: int,
    end_id: int | None = None,
    sampling: Sampling | None = None,
    vocab_size: int | None = None,
) -> Iterator[int]:
    """Yields the tokens that follow `prompt`, each as soon as it is known; closing the iterator stops the work.

    Args:
        model: a `transformers` causal model in evaluation mode.
        prompt: token ids [n], n >= 1; a document starts with the end-of-document token.
        max_new_tokens: the iterator ends after so many tokens.
        end_id: the iterator ends before this token.
        vocab_size: ids from here on are never chosen: rows that only pad the embedding.

    Raises:
        PromptError: at the call, when it does not fit the context or a value is out of range.
    """
    sampling = sampling or Sampling()
    sampling.check()
    check_room(len(prompt), max_new_tokens=max_new_tokens, context=context_of(model))
    return _generate(model, list(prompt), max_new_tokens, end_id, sampling, vocab_size)


def generate_all(model: Any, *, prompt: Sequence[int], max_new_tokens: int, **options: Any) -> Generated:
    """All tokens that `generate` yields, and why it ended."""
    tokens = tuple(generate(model, prompt=prompt, max_new_tokens=max_new_tokens, **options))
    return Generated(tokens=tokens, finish_reason="length" if len(tokens) == max_new_tokens else "stop")


def choose(logits: torch.Tensor, *, sampling: Sampling, generator: torch.Generator | None) -> int:
    """The next token, from logits [V]: the first of the largest when greedy, else one drawn by `generator`."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    return int(torch.multinomial(probabilities(logits, sampling=sampling), 1, generator=generator))


def probabilities(logits: torch.Tensor, *, sampling: Sampling) -> torch.Tensor:
    """The distribution [V] that is drawn from: temperature, then top-k, then top-p; sums to 1."""
    logits = logits.float() / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < logits.numel():
        threshold = logits.topk(sampling.top_k).values[-1]
        logits = logits.masked_fill(logits < threshold, -math.inf)
    chances = logits.softmax(-1)
    if sampling.top_p < 1:
        ordered, order = chances.sort(descending=True, stable=True)
        before = ordered.cumsum(-1) - ordered
        chances = chances.index_fill(0, order[before >= sampling.top_p], 0.0)
        chances = chances / chances.sum()
    return chances


def _generate(
    model: Any, prompt: list[int], max_new_tokens: int, end_id: int | None, sampling: Sampling, vocab_size: int | None
) -> Iterator[int]:
    from transformers.cache_utils import DynamicCache  # here, after the model's own lean import of transformers

    device = next(model.parameters()).device
    generator = _generator(sampling, device)
    cache = DynamicCache(config=model.config)
    tokens = torch.tensor([prompt], dtype=torch.int64, device=device)
    for _ in range(max_new_tokens):
        logits = _next_logits(model, tokens, cache)[:vocab_size]
        token = choose(logits, sampling=sampling, generator=generator)
        if token == end_id:
            return
        yield token
        tokens = torch.tensor([[token]], dtype=torch.int64, device=device)


@torch.inference_mode()
def _next_logits(model: Any, tokens: torch.Tensor, cache: Any) -> torch.Tensor:
    """Logits [V] after `tokens` [1, n], which are added to the cache."""
    output = model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
    logits: torch.Tensor = output.logits[0, -1]
    return logits


def _generator(sampling: Sampling, device: torch.device) -> torch.Generator | None:
    if sampling.temperature == 0:
        return None
    generator = torch.Generator(device=device)
    if sampling.seed is None:
        generator.seed()
    else:
        generator.manual_seed(sampling.seed)
    return generator
