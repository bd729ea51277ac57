"""How likely a model finds a continuation after a context: what choices, completions and passages are scored by.

The tokens of a pair are those of lm-evaluation-harness 0.4: blanks at a context's end belong to the continuation, the
continuation's tokens are those that its text adds to the context's, an empty context is the end token, and what exceeds
the model's context is cut on the left.

Nothing is computed twice. Pairs that follow one another and begin alike, the choices of a question, are one row: their
common beginning once, then each rest, which sees that beginning and itself (a tree in one row, by mask and positions).
What many rows begin with, such as solved examples, is computed once and kept as keys and values. Rows of like length
are batched up to `Subject.batch_tokens`; logits are made only where a token is scored.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from tessera.errors import PromptError
from tessera.evaluate.parallel import in_parallel
from tessera.evaluate.subject import Subject
from tessera.model import prefix as beginnings
from tessera.model.prefix import Prefix

Ids = tuple[int, ...]
Progress = Callable[[int, int], None]

MIN_PREFIX = 16
"""Tokens that rows must have in common before their keys and values are kept."""
MIN_ROWS = 4
"""Rows that must share them."""
CHUNK = 2048
"""Positions whose logits are held at once."""

# Shapes: B = rows, T = tokens of the longest, P = tokens of the kept beginning, S = scored positions, V = vocabulary.


@dataclass(frozen=True)
class Likelihood:
    """Of one continuation after its context."""

    nats: float
    """-log p, summed over its tokens."""
    tokens: int
    greedy: bool
    """Whether each of its tokens is the most likely one."""


@dataclass(frozen=True)
class Sequence_:
    """Tokens of which those from `first` on are scored, each after all before it."""

    ids: Ids
    first: int


@dataclass(frozen=True)
class _Row:
    """Sequences that begin alike, as one row: the trunk, then each branch."""

    trunk: Ids
    branches: tuple[Ids, ...]
    members: tuple[int, ...]
    """Places of the sequences, one a branch."""

    @property
    def plain(self) -> bool:
        """Whether it is one sequence, which needs no mask but the causal one."""
        return not any(self.branches)

    @property
    def length(self) -> int:
        return len(self.trunk) + sum(map(len, self.branches))


def likelihoods(
    subject: Subject, pairs: Sequence[tuple[str, str]], *, progress: Progress | None = None
) -> list[Likelihood]:
    """Of each (context, continuation), in their order.

    Args:
        progress: hears how many are done, of how many.

    Raises:
        PromptError: a continuation has no token, or more than the model takes.
        TokenizerError: a text cannot be encoded.
    """
    return sequence_likelihoods(subject, encode_pairs(subject, pairs), progress=progress)


def passage_likelihoods(
    subject: Subject, texts: Sequence[str], *, progress: Progress | None = None
) -> list[Likelihood]:
    """Of each text and the end token after it; a text beyond the model's context starts anew in each of its pieces."""
    end, pieces, owners = subject.tokenizer.end_id, [], []
    for place, ids in enumerate(subject.tokenizer.encode_batch(texts)):
        whole = (*ids, end)
        for low in range(0, len(whole), subject.context):
            pieces.append(Sequence_((end, *whole[low : low + subject.context]), first=1))
            owners.append(place)
    found = sequence_likelihoods(subject, pieces, progress=progress)
    parts = groupby(zip(owners, found, strict=True), key=lambda pair: pair[0])
    return [_sum([one for _, one in members]) for _, members in parts]


def encode_pairs(subject: Subject, pairs: Sequence[tuple[str, str]]) -> list[Sequence_]:
    """The tokens of each pair; see the top of this file."""
    moved = [_move_blanks(*pair) for pair in pairs]
    texts = [*{text: None for context, continuation in moved for text in (context, context + continuation)}]
    ids = dict(zip(texts, map(tuple, subject.tokenizer.encode_batch(texts)), strict=True))
    return [_sequence(subject, ids[context], ids[context + continuation]) for context, continuation in moved]


def sequence_likelihoods(
    subject: Subject, sequences: Sequence[Sequence_], *, progress: Progress | None = None
) -> list[Likelihood]:
    """Of the scored tokens of each sequence, in their order."""
    found: list[Likelihood | None] = [None] * len(sequences)
    workers = torch.get_num_threads() if subject.device.type == "cpu" else 1
    done = 0
    for start, rows in _by_beginning(_rows(sequences, limit=2 * subject.context)):
        shared = beginnings.compute(subject.model, start) if start else None
        batches = _batches(rows, start=len(start), batch_tokens=subject.batch_tokens)
        score = partial(_score, subject, sequences=sequences, shared=shared)
        for members, scored in in_parallel(score, batches, workers=workers):
            for member, likelihood in zip(members, scored, strict=True):
                found[member] = likelihood
            done += len(members)
            if progress:
                progress(done, len(sequences))
    return [one for one in found if one is not None]


def _move_blanks(context: str, continuation: str) -> tuple[str, str]:
    bare = context.rstrip()
    return bare, context[len(bare) :] + continuation


def _sequence(subject: Subject, context: Ids, whole: Ids) -> Sequence_:
    scored = whole[len(context) :]
    if subject.document_start or not context:
        context = (subject.tokenizer.end_id, *context)
    if not scored:
        raise PromptError("a continuation holds no token; give each choice and each continuation some text")
    if len(scored) > subject.context:
        raise PromptError(f"a continuation has {len(scored)} tokens; the model takes at most {subject.context}")
    ids = (*context, *scored)[-(subject.context + 1) :]
    return Sequence_(ids, first=len(ids) - len(scored))


def _sum(parts: Sequence[Likelihood]) -> Likelihood:
    return Likelihood(
        nats=sum(one.nats for one in parts), tokens=sum(one.tokens for one in parts),
        greedy=all(one.greedy for one in parts),
    )  # fmt: skip


def _rows(sequences: Sequence[Sequence_], *, limit: int) -> list[_Row]:
    """Sequences that follow one another and have more than half of their tokens in common, together.

    Args:
        limit: tokens of a row of several.
    """
    rows: list[_Row] = []
    group: list[int] = []
    trunk: Ids = ()
    size = 0

    def close() -> None:
        if group:
            branches = tuple(sequences[place].ids[len(trunk) : -1] for place in group)
            rows.append(_Row(trunk, branches, tuple(group)))

    for place, sequence in enumerate(sequences):
        inputs = sequence.ids[:-1]
        common = _common(trunk, inputs)
        if group and 2 * common > len(inputs) and size + len(inputs) - common <= limit:
            size += len(inputs) - common + (len(trunk) - common) * len(group)
            trunk = trunk[:common]
            group.append(place)
            continue
        close()
        group, trunk, size = [place], inputs, len(inputs)
    close()
    return rows


def _common(one: Ids, other: Ids) -> int:
    """How many tokens two sequences begin with alike."""
    length = min(len(one), len(other))
    if one[:length] == other[:length]:
        return length
    low, high = 0, length  # one[:low] is common, one[:high] is not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if one[:middle] == other[:middle] else (low, middle)
    return low


def _by_beginning(rows: Sequence[_Row]) -> Iterator[tuple[Ids, list[_Row]]]:
    """Rows with what all of them begin with, which is taken off their trunks; () where that is not worth it."""
    rest: list[_Row] = []
    for _, members in groupby(sorted(rows, key=lambda row: row.trunk), key=lambda row: row.trunk[:MIN_PREFIX]):
        group = list(members)
        start = group[0].trunk[: max(0, _common(group[0].trunk, group[-1].trunk) - 1)]  # the last token is a row's own
        if len(group) < MIN_ROWS or len(start) < MIN_PREFIX:
            rest += group
        else:
            yield start, [_Row(row.trunk[len(start) :], row.branches, row.members) for row in group]
    if rest:
        yield (), rest


def _batches(rows: Sequence[_Row], *, start: int, batch_tokens: int) -> Iterator[list[_Row]]:
    """Rows of like length, plain ones by themselves, the longest first; a kept beginning counts for each row."""
    batch: list[_Row] = []
    longest = 0
    for row in sorted(rows, key=lambda row: (row.plain, -row.length)):
        if batch and (batch[0].plain != row.plain or (len(batch) + 1) * (start + longest) > batch_tokens):
            yield batch
            batch = []
        longest = longest if batch else row.length
        batch.append(row)
    if batch:
        yield batch


@torch.inference_mode()
def _score(
    subject: Subject, rows: Sequence[_Row], *, sequences: Sequence[Sequence_], shared: Prefix | None
) -> tuple[list[int], list[Likelihood]]:
    """Places and likelihoods of the sequences in a batch of rows: one forward."""
    start = shared.length if shared else 0
    width = max(row.length for row in rows)
    tokens_BT = np.full((len(rows), width), subject.tokenizer.end_id, np.int64)
    positions_BT = np.zeros((len(rows), width), np.int64)
    sees_BTT = np.zeros((len(rows), width, width), bool)
    sees_BTT[:, np.arange(width), np.arange(width)] = True  # padding sees itself: no row of the mask is empty
    members: list[int] = []
    counts: list[int] = []
    sources: list[NDArray[np.int64]] = []  # flat positions that predict
    targets: list[NDArray[np.int64]] = []
    for place, row in enumerate(rows):
        trunk, low = len(row.trunk), len(row.trunk)
        tokens_BT[place, :trunk] = row.trunk
        positions_BT[place, :trunk] = np.arange(start, start + trunk)
        sees_BTT[place, :trunk, :trunk] = _lower(trunk)
        for branch, member in zip(row.branches, row.members, strict=True):
            high = low + len(branch)
            tokens_BT[place, low:high] = branch
            positions_BT[place, low:high] = np.arange(start + trunk, start + trunk + len(branch))
            sees_BTT[place, low:high, :trunk] = True
            sees_BTT[place, low:high, low:high] = _lower(len(branch))
            sequence = sequences[member]
            before = np.arange(sequence.first - 1, len(sequence.ids) - 1) - start  # of the row's own tokens
            sources.append(place * width + np.where(before < trunk, before, before + low - trunk))
            targets.append(np.array(sequence.ids[sequence.first :], np.int64))
            members.append(member)
            counts.append(len(targets[-1]))
            low = high
    if rows[0].plain and shared is None:
        hidden_BTD = _causal(subject, tokens_BT)
    else:
        hidden_BTD = _hidden(subject, tokens_BT, positions_BT, sees_BTT, shared=shared)
    flat, target = np.concatenate(sources), np.concatenate(targets)
    nats, greedy = _token_nats(subject, hidden_BTD.flatten(0, 1), sources=flat, targets=target)
    bounds = np.cumsum([0, *counts])[:-1]
    sums, all_greedy = np.add.reduceat(nats, bounds), np.logical_and.reduceat(greedy, bounds)
    found = [
        Likelihood(nats=float(total), tokens=count, greedy=bool(every))
        for total, count, every in zip(sums, counts, all_greedy, strict=True)
    ]
    return members, found


def _lower(size: int) -> NDArray[np.bool_]:
    return np.tri(size, dtype=bool)


def _causal(subject: Subject, tokens_BT: NDArray[np.int64]) -> torch.Tensor:
    """[B, T, D] where every row is one sequence: kernels know this mask, and padding on the right is seen by nobody."""
    output = subject.model.base_model(input_ids=torch.from_numpy(tokens_BT).to(subject.device), use_cache=False)
    hidden: torch.Tensor = output.last_hidden_state
    return hidden


def _hidden(
    subject: Subject, tokens_BT: NDArray[np.int64], positions_BT: NDArray[np.int64], sees_BTT: NDArray[np.bool_], *,
    shared: Prefix | None,
) -> torch.Tensor:  # fmt: skip
    """[B, T, D]: what the output projection sees."""
    device, (rows, width) = subject.device, tokens_BT.shape
    mask = torch.from_numpy(sees_BTT).to(device)[:, None]
    cache = None
    if shared is not None:
        cache = beginnings.expanded(subject.model, shared, rows=rows)
        mask = torch.cat([mask.new_ones(rows, 1, width, shared.length), mask], dim=-1)
    output = subject.model.base_model(
        input_ids=torch.from_numpy(tokens_BT).to(device), position_ids=torch.from_numpy(positions_BT).to(device),
        attention_mask=mask, past_key_values=cache, use_cache=cache is not None,
    )  # fmt: skip
    hidden: torch.Tensor = output.last_hidden_state
    return hidden


def _token_nats(
    subject: Subject, hidden: torch.Tensor, *, sources: NDArray[np.int64], targets: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """-log p of each target after its position, in float64 from float32 logits, and whether it is the most likely."""
    weight = subject.model.get_output_embeddings().weight
    places, which = np.unique(sources, return_inverse=True)
    nats, greedy = np.empty(len(sources)), np.empty(len(sources), bool)
    for low in range(0, len(places), CHUNK):
        chosen = torch.from_numpy(places[low : low + CHUNK]).to(hidden.device)
        logits = functional.linear(hidden[chosen], weight).float()
        asked = np.flatnonzero((which >= low) & (which < low + CHUNK))
        row = torch.from_numpy(which[asked] - low).to(hidden.device)
        target = torch.from_numpy(targets[asked]).to(hidden.device)
        exact = logits.logsumexp(-1)[row].double() - logits[row, target].double()
        nats[asked] = exact.cpu().numpy()
        greedy[asked] = (logits.argmax(-1)[row] == target).cpu().numpy()
    return nats, greedy
