"""Generation for many prompts at once: what evaluation needs, where `generate` answers one person.

Prompts are padded on the left, so that all rows get their next token in one forward; masks and positions make padding
invisible, and a row's answer does not depend on its batch mates but for the last bits of sums. What all prompts of a
batch begin with is computed once. Rows that ended leave the batch. Greedy, or sampled with a
generator for each row, seeded by the row. Memory: the key-value cache of `batch_tokens` positions.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tessera.model import prefix as beginnings
from tessera.model.generate import Generated, Sampling, check_room, choose, context_of
from tessera.model.prefix import Prefix

Ids = Sequence[int]
Stop = Callable[[Ids], bool]
"""Whether an answer of these tokens is complete."""

MIN_PREFIX = 16
"""Tokens that all prompts of a batch must have in common before they are computed once."""

# Shapes: B = rows, T = positions of the longest prompt, P = tokens of the beginning, K = P + T + answer so far.


@dataclass
class _Row:
    """A prompt and its answer so far."""

    place: int
    prompt: Ids
    sampling: Sampling
    generator: torch.Generator | None
    tokens: list[int] = field(default_factory=list)


def generate_batches(
    model: Any,
    *,
    prompts: Sequence[Ids],
    max_new_tokens: int,
    end_id: int | None = None,
    samplings: Sequence[Sampling] | None = None,
    vocab_size: int | None = None,
    stop: Stop | None = None,
    batch_tokens: int = 8192,
) -> Iterator[tuple[int, Generated]]:
    """Yields (place of the prompt, answer), batch by batch: the longest prompts first.

    Args:
        model: a `transformers` causal model in evaluation mode.
        prompts: token ids, each at least one.
        end_id: an answer ends before this token.
        samplings: one a prompt; greedy without them. A seed makes an answer repeatable whatever the batch.
        vocab_size: ids from here on are never chosen.
        stop: asked after each token; its answer's last token is kept.
        batch_tokens: positions that a batch may hold, answers included.

    Raises:
        PromptError: at the first answer: a prompt does not fit the context, or a value is out of range.
    """
    chosen = samplings or [Sampling()] * len(prompts)
    for prompt, sampling in zip(prompts, chosen, strict=True):
        sampling.check()
        check_room(len(prompt), max_new_tokens=max_new_tokens, context=context_of(model))
    order = sorted(range(len(prompts)), key=lambda place: -len(prompts[place]))
    while order:
        rows = max(1, batch_tokens // (len(prompts[order[0]]) + max_new_tokens))
        batch, order = order[:rows], order[rows:]
        made = [_Row(place, prompts[place], chosen[place], _generator(model, chosen[place])) for place in batch]
        _answer(model, made, max_new_tokens=max_new_tokens, end_id=end_id, vocab_size=vocab_size, stop=stop)
        for row in made:
            reason = "length" if len(row.tokens) == max_new_tokens and not _stopped(row, stop) else "stop"
            yield row.place, Generated(tokens=tuple(row.tokens), finish_reason=reason)


def _stopped(row: _Row, stop: Stop | None) -> bool:
    return stop is not None and stop(row.tokens)


@torch.inference_mode()
def _answer(
    model: Any, rows: list[_Row], *, max_new_tokens: int, end_id: int | None, vocab_size: int | None,
    stop: Stop | None,
) -> None:  # fmt: skip
    device = next(model.parameters()).device
    start = _common([row.prompt for row in rows])
    shared = beginnings.compute(model, rows[0].prompt[:start]) if start else None
    state = _Batch(model, rows, shared=shared, device=device)
    for _ in range(max_new_tokens):
        logits = state.logits[:, :vocab_size]
        greedy = logits.argmax(-1).tolist()
        going: list[int] = []
        for place, row in enumerate(state.rows):
            sampled = row.sampling.temperature > 0
            token = choose(logits[place], sampling=row.sampling, generator=row.generator) if sampled else greedy[place]
            if token == end_id:
                continue
            row.tokens.append(token)
            if len(row.tokens) < max_new_tokens and not _stopped(row, stop):
                going.append(place)
        if not going:
            return
        state.keep(going)
        state.step()


class _Batch:
    """Rows at work: their cache, which of its positions each sees, and the logits of each one's next token."""

    def __init__(self, model: Any, rows: list[_Row], *, shared: Prefix | None, device: torch.device) -> None:
        self.model, self.rows = model, rows
        start = shared.length if shared else 0
        rests = [row.prompt[start:] for row in rows]
        width = max(map(len, rests))
        tokens = torch.zeros(len(rows), width, dtype=torch.int64, device=device)
        positions = torch.zeros(len(rows), width, dtype=torch.int64, device=device)
        self.sees = torch.zeros(len(rows), start + width, dtype=torch.bool, device=device)
        """[B, K]: the positions that are no padding."""
        self.sees[:, :start] = True
        for place, rest in enumerate(rests):
            low = width - len(rest)
            tokens[place, low:] = torch.tensor(list(rest), device=device)
            positions[place, low:] = torch.arange(start, start + len(rest), device=device)
            self.sees[place, start + low :] = True
        mask = torch.ones(width, start + width, dtype=torch.bool, device=device).tril_(start) & self.sees[:, None]
        mask[:, torch.arange(width), start + torch.arange(width)] = True  # padding sees itself: no row is empty
        self.cache = (
            beginnings.expanded(model, shared, rows=len(rows)) if shared else beginnings.new_cache(model)
        )  # fmt: skip
        self.logits = self._forward(tokens, positions, mask[:, None])

    def keep(self, places: list[int]) -> None:
        """Lets the rows at other places go: they have ended."""
        if len(places) == len(self.rows):
            return
        chosen = torch.tensor(places, device=self.sees.device)
        self.rows, self.sees = [self.rows[place] for place in places], self.sees[chosen]
        for layer in self.cache.layers:
            layer.keys, layer.values = layer.keys[chosen], layer.values[chosen]

    def step(self) -> None:
        """One forward over the newest token of each row."""
        device = self.sees.device
        tokens = torch.tensor([[row.tokens[-1]] for row in self.rows], device=device)
        positions = torch.tensor([[len(row.prompt) + len(row.tokens) - 1] for row in self.rows], device=device)
        self.sees = torch.cat([self.sees, self.sees.new_ones(len(self.rows), 1)], dim=1)
        self.logits = self._forward(tokens, positions, self.sees[:, None, None])

    def _forward(self, tokens: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """[B, V]: the logits after the last position."""
        output = self.model.base_model(
            input_ids=tokens, position_ids=positions, attention_mask=mask, past_key_values=self.cache, use_cache=True
        )
        logits: Tensor = self.model.get_output_embeddings()(output.last_hidden_state[:, -1])
        return logits


def _common(prompts: Sequence[Ids]) -> int:
    """Tokens that all prompts begin with, each keeping at least one of its own; 0 where they are too few."""
    if len(prompts) < 2:
        return 0
    first, last = min(prompts, key=list), max(prompts, key=list)
    length = min(map(len, prompts)) - 1
    common = next((at for at in range(min(len(first), len(last))) if first[at] != last[at]), length)
    return common if (common := min(common, length)) >= MIN_PREFIX else 0


def _generator(model: Any, sampling: Sampling) -> torch.Generator | None:
    if sampling.temperature == 0:
        return None
    generator = torch.Generator(device=next(model.parameters()).device)
    if sampling.seed is None:
        generator.seed()
    else:
        generator.manual_seed(sampling.seed)
    return generator
