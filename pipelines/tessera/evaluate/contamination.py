"""Items of benchmarks whose text stands in the training split.

An item is found where WORDS words of it in a row, or all of a text that has fewer but at least MIN_WORDS, stand in a
row in a training document; case, punctuation and white space do not count (`prepare.duplicates.shingles`). Looked for
are the item's own words, without what all items of its task begin and end with; runs of words that more than half of
the items share are the template's, or solved examples, and do not count either.

The training documents are read once, in batches without a JVM: memory holds a batch and 8 bytes for each run of words
of the items. Two hashes a word of the documents, so about 20 MB of text a second on one core.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tessera import tables
from tessera.evaluate.task import Choices, Completion, Item, Passage, Program, Task, key_of
from tessera.prepare.duplicates.shingles import Int64s, Uint64s, distinct, shingles

WORDS = 13
"""As GPT-3 (Brown et al. 2020, appendix C) and prepare's decontamination."""
MIN_WORDS = 6
"""A text of fewer is no evidence."""
SHARED = 0.5
"""A run of words of more of a task's items than this is not an item's own."""
MIN_SHARED = 4
"""Items without which nothing is called shared."""
BATCH = 2048
"""Documents read at a time."""


@dataclass(frozen=True)
class Contamination:
    """What of one task stands in the training split."""

    items: int
    found: int
    keys: tuple[str, ...] = field(repr=False)
    """Of the items found, in the task's order."""
    too_short: int = 0
    """Items without a text of MIN_WORDS words of their own, which cannot be found."""


@dataclass(frozen=True)
class _Wanted:
    """Runs of one length, in words, and whose they are."""

    hashes: Uint64s
    """[G]."""
    items: Int64s
    """[G], numbers over all tasks; an item's text may have many."""


def find(tasks: Mapping[str, Task], *, documents: Path, version: int, words: int = WORDS) -> dict[str, Contamination]:
    """Which items of each task stand in the training split of `tables/documents`.

    Args:
        words: of a run; a text of MIN_WORDS up to this many is looked for whole.
    """
    firsts = np.cumsum([0, *(len(task.items) for task in tasks.values())])
    wanted = _together(
        [_wanted(task, first=int(first), words=words) for task, first in zip(tasks.values(), firsts, strict=False)]
    )
    is_found = np.zeros(int(firsts[-1]), bool)
    can_be = np.zeros(int(firsts[-1]), bool)
    for one in wanted.values():
        can_be[one.items] = True
    if wanted:
        for texts in _training_texts(documents, version=version):
            _mark(is_found, texts=texts, wanted=wanted, words=words)
    found = {}
    for (name, task), first in zip(tasks.items(), firsts, strict=False):
        here = slice(int(first), int(first) + len(task.items))
        keys = tuple(key_of(item) for item, hit in zip(task.items, is_found[here], strict=True) if hit)
        found[name] = Contamination(
            items=len(task.items), found=len(keys), keys=keys, too_short=int(np.count_nonzero(~can_be[here]))
        )
    return found


def _mark(is_found: np.ndarray, *, texts: pa.Array, wanted: Mapping[int, _Wanted], words: int) -> None:
    """Marks the items that stand in `texts`, in place.

    Whole short texts are looked for only in documents that have the first MIN_WORDS words of one.
    """
    if words in wanted:
        for part in shingles(texts, words=words, whole_if_short=False):
            _mark_items(is_found, hashes=part.hashes, wanted=wanted[words])
    short = {length: one for length, one in wanted.items() if 0 < length < words}
    if not short:
        return
    maybe = [np.empty(0, np.int64)]
    for part in shingles(texts, words=MIN_WORDS, whole_if_short=False):
        maybe.append(np.unique(part.rows()[_among(part.hashes, members=wanted[BEGINNINGS].hashes)]))
    chosen = texts.take(pa.array(np.unique(np.concatenate(maybe))))
    for length, one in short.items():
        for part in shingles(chosen, words=length, whole_if_short=False):
            _mark_items(is_found, hashes=part.hashes, wanted=one)


BEGINNINGS = 0
"""The place of short texts' first MIN_WORDS words among what is wanted."""


def _mark_items(is_found: np.ndarray, *, hashes: Uint64s, wanted: _Wanted) -> None:
    common = distinct(hashes[_among(hashes, members=wanted.hashes)])
    is_found[wanted.items[_among(wanted.hashes, members=common)]] = True


def _among(hashes: Uint64s, *, members: Uint64s) -> np.ndarray:
    """Whether each hash is a member; `members` are sorted."""
    if not len(members):
        return np.zeros(len(hashes), bool)
    at = np.minimum(np.searchsorted(members, hashes), len(members) - 1)
    return np.equal(members[at], hashes)


def _wanted(task: Task, *, first: int, words: int) -> dict[int, _Wanted]:
    """What is looked for of a task: length in words -> runs, and BEGINNINGS."""
    texts = [*_own_texts(task.items)]
    flat = pa.array([text for some in texts for text in some], pa.large_string())
    of_item = np.repeat(np.arange(len(texts)), [len(some) for some in texts]) + first
    runs = _runs(flat, of_item=of_item, words=words)
    found = {words: _without_shared(runs, num_items=len(texts))}
    lengths = _num_words(flat)
    for length in range(MIN_WORDS, words):
        rows = np.flatnonzero(lengths == length)
        if len(rows):
            whole = _runs(flat.take(pa.array(rows)), of_item=of_item[rows], words=length)
            found[length] = _without_shared(whole, num_items=len(texts))
            starts = _runs(flat.take(pa.array(rows)), of_item=of_item[rows], words=MIN_WORDS)
            found[BEGINNINGS] = _join([found.get(BEGINNINGS, _none()), starts])
    return found


def _own_texts(items: Sequence[Item]) -> Iterator[tuple[str, ...]]:
    """The texts of each item, the right answer with them, without what all prompts begin and end with."""
    parts = [_parts(item) for item in items]
    split = [context.split() for context, _ in parts]
    many = len(items) >= MIN_SHARED
    before = _num_common(split) if many else 0
    after = _num_common([one[before:][::-1] for one in split]) if many else 0
    for item, own, (_, answer) in zip(items, split, parts, strict=True):
        core = " ".join(own[before : len(own) - after])
        yield (core, answer) if isinstance(item, Program) else (core, f"{core} {answer}")


def _num_common(texts: Sequence[list[str]]) -> int:
    """Words that all texts begin with."""
    ends = zip(min(texts), max(texts), strict=False)
    return len([*takewhile(lambda pair: pair[0] == pair[1], ends)])


def _parts(item: Item) -> tuple[str, str]:
    """Prompt, and the right answer or the test."""
    match item:
        case Choices():
            return item.pairs[item.gold]
        case Completion():
            return item.context, item.continuation
        case Passage():
            return item.text, ""
        case Program():
            return item.prompt, item.test
    return item.prompt, item.answers[0]


def _runs(texts: pa.Array, *, of_item: Int64s, words: int) -> _Wanted:
    """All runs of `words` words of the texts, each once an item, sorted."""
    parts = [*shingles(texts, words=words, whole_if_short=False)]
    if not parts:
        return _none()
    return _join([_Wanted(part.hashes, of_item[part.rows()]) for part in parts])


def _num_words(texts: pa.Array) -> Int64s:
    found = np.zeros(len(texts), np.int64)
    for part in shingles(texts, words=1):
        found[part.first : part.first + len(part.offsets) - 1] += np.diff(part.offsets)
    return found


def _without_shared(runs: _Wanted, *, num_items: int) -> _Wanted:
    """Those that few enough of a task's items have."""
    _, at, counts = np.unique(runs.hashes, return_inverse=True, return_counts=True)
    own = counts[at] <= max(MIN_SHARED - 1, SHARED * num_items)
    return _Wanted(runs.hashes[own], runs.items[own])


def _join(parts: Iterable[_Wanted]) -> _Wanted:
    """One, sorted by hash, each pair of hash and item once."""
    several = [*parts]
    hashes = np.concatenate([one.hashes for one in several])
    items = np.concatenate([one.items for one in several])
    order = np.lexsort((items, hashes))
    hashes, items = hashes[order], items[order]
    new = np.ones(len(hashes), bool)
    new[1:] = (hashes[1:] != hashes[:-1]) | (items[1:] != items[:-1])
    return _Wanted(hashes[new], items[new])


def _none() -> _Wanted:
    return _Wanted(np.empty(0, np.uint64), np.empty(0, np.int64))


def _together(of_tasks: Sequence[Mapping[int, _Wanted]]) -> dict[int, _Wanted]:
    lengths = sorted({length for one in of_tasks for length in one})
    joined = {length: _join([one[length] for one in of_tasks if length in one]) for length in lengths}
    return {length: one for length, one in joined.items() if len(one.hashes)}


def _training_texts(documents: Path, *, version: int) -> Iterator[pa.Array]:
    """All contents of the training documents, of whatever kind: a batch's texts, then its messages and answers."""
    dataset = tables.dataset(documents, version=version)
    present = [name for name in ("text", "messages", "prompt", "chosen", "rejected") if name in dataset.schema.names]
    training = pc.field("split") == "train"
    for batch in dataset.to_batches(
        columns=present, filter=training, batch_size=BATCH, batch_readahead=1, fragment_readahead=1
    ):
        for name in present:
            column = batch.column(name)
            if name == "messages":
                column = pc.struct_field(pc.list_flatten(column), "content")
            texts = column.drop_null()
            if len(texts):
                yield texts.cast(pa.large_string())
