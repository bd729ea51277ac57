"""Packs documents into sequences by best fit: whole documents, nothing dropped, padding counted. numpy only.

Best-fit decreasing (Johnson 1974), done a length at a time instead of a document at a time: all documents of one
length go to the fullest sequences that take them, in one array operation for each free length. A hundred thousand
documents take about a tenth of a second; the result has exactly as many sequences as placing them one by one.

The result is a function of the documents' ids, hashes and lengths, whatever order they come in; a keyed order
of the sequences then mixes long and short documents.
"""

from bisect import bisect_left, insort
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.shard.mixing import splitmix64

# Shapes: D = documents, N = their tokens, K = pieces, S = sequences, T = seq_len, P = starts (pieces and paddings).
Int = NDArray[np.int64]
Words = NDArray[np.uint64]


@dataclass(frozen=True)
class Pieces:
    """Stretches of documents, none longer than a sequence; in no particular order."""

    document: Int
    """[K], which document."""
    number: Int
    """[K], 0 for the document's first piece."""
    begin: Int
    """[K], the first token within the document."""
    length: Int
    """[K], in tokens."""


@dataclass(frozen=True)
class Packed:
    """Packed sequences, and where each piece of each document went."""

    tokens_ST: NDArray[np.unsignedinteger[Any]]
    """[S, T]; padding is the end token."""
    starts_P: NDArray[np.uint16]
    """First position of each piece and, where there is padding, of the padding; one sequence after another."""
    num_starts_S: Int
    pieces: Pieces
    """By document, then number."""
    sequence_K: Int
    """Of each piece."""
    start_K: Int
    """Of each piece: its first position in its sequence."""

    def padding_S(self, *, end_id: int) -> Int:
        """Tokens of padding in each sequence, as a reader counts them: from the stored tokens and starts."""
        last_S = self.starts_P[np.cumsum(self.num_starts_S) - 1].astype(np.int64)
        padded_S = self.tokens_ST[np.arange(len(last_S)), last_S] == end_id
        return np.where(padded_S, self.tokens_ST.shape[1] - last_S, 0)


def pack(
    tokens_N: NDArray[np.unsignedinteger[Any]], *, lengths: Int, keys: Words, seq_len: int, end_id: int, seed: int
) -> Packed:
    """Fills sequences with whole documents, longest first, and cuts only what is longer than one.

    Args:
        tokens_N: the documents' tokens one after another, each document closed by `end_id`, which is nowhere else.
        lengths: [D], tokens of each document, the end token included: at least 2.
        keys: [D, n], words that identify a document: leading words of its id and of its content's hash. Documents
            are ordered by them, so equal rows would make the order of the input count.
        seq_len: T.
        seed: of the order of the sequences.
    """
    assert len(lengths) == 0 or int(lengths.min()) >= 2, "a document has a token and its end"
    pieces = cut(lengths, seq_len=seq_len)
    rank = np.empty(len(lengths), np.int64)
    rank[np.lexsort(keys.T[::-1])] = np.arange(len(lengths))
    order = np.lexsort((pieces.number, rank[pieces.document], -pieces.length))
    sequence, start, fill = best_fit(pieces.length[order], seq_len=seq_len)
    back = np.argsort(order, kind="stable")
    sequence, start = sequence[back], start[back]
    place = _keyed_places(pieces, sequence=sequence, start=start, keys=keys, seed=seed)
    sequence = place[sequence]
    shuffled_fill = np.empty_like(fill)
    shuffled_fill[place] = fill
    return _lay_out(tokens_N, lengths=lengths, pieces=pieces, sequence=sequence, start=start, fill=shuffled_fill,
                    seq_len=seq_len, end_id=end_id)  # fmt: skip


def cut(lengths: Int, *, seq_len: int) -> Pieces:
    """Documents as pieces: whole, or whole sequences and a rest.

    A rest of one token, the end token alone, takes another from the piece before it: no piece begins with the end
    token, which is how readers tell padding.
    """
    num_pieces = -(-lengths // seq_len)
    document = np.repeat(np.arange(len(lengths)), num_pieces)
    first = np.cumsum(num_pieces) - num_pieces
    number = np.arange(len(document)) - np.repeat(first, num_pieces)
    begin = number * seq_len
    lonely = (lengths % seq_len == 1) & (num_pieces > 1)
    begin[(first + num_pieces - 1)[lonely]] -= 1
    end = np.append(begin[1:], 0)
    last = first + num_pieces - 1
    end[last] = lengths
    return Pieces(document=document, number=number, begin=begin, length=end - begin)


def best_fit(lengths: Int, *, seq_len: int) -> tuple[Int, Int, Int]:
    """Best-fit decreasing: each piece goes to the fullest sequence that takes it, the oldest of equally full ones.

    Args:
        lengths: [K], descending, each 1 to seq_len.

    Returns:
        sequence [K], start within it [K], and the tokens in each sequence [S].
    """
    sequence, start = np.empty_like(lengths), np.empty_like(lengths)
    waiting: dict[int, list[Int]] = {}  # free tokens -> sequences with as many, oldest first
    free_lengths: list[int] = []  # the keys of `waiting`, ascending
    num_sequences = 0
    ends = np.flatnonzero(np.diff(lengths, append=0)) + 1
    item = 0
    for end in ends.tolist():
        length = int(lengths[item])
        while item < end:
            at = bisect_left(free_lengths, length)
            if at < len(free_lengths):
                free = free_lengths.pop(at)
                open_sequences = np.concatenate(waiting.pop(free))
            else:
                free = seq_len
                needed = -(-(end - item) // (seq_len // length))
                open_sequences = np.arange(num_sequences, num_sequences + needed)
                num_sequences += needed
            each = free // length
            number = min(end - item, each * len(open_sequences))
            full, rest = divmod(number, each)
            slots = np.arange(number)
            sequence[item : item + number] = open_sequences[slots // each]
            start[item : item + number] = seq_len - free + (slots % each) * length
            item += number
            _wait(waiting, free_lengths, free - each * length, open_sequences[:full])
            if rest:
                _wait(waiting, free_lengths, free - rest * length, open_sequences[full : full + 1])
            _wait(waiting, free_lengths, free, open_sequences[full + bool(rest) :])
    fill = np.full(num_sequences, seq_len)
    for free, sequences in waiting.items():
        fill[np.concatenate(sequences)] = seq_len - free
    return sequence, start, fill


def _wait(waiting: dict[int, list[Int]], free_lengths: list[int], free: int, sequences: Int) -> None:
    if free == 0 or len(sequences) == 0:
        return
    if free not in waiting:
        waiting[free] = []
        insort(free_lengths, free)
    waiting[free].append(sequences)


def _keyed_places(pieces: Pieces, *, sequence: Int, start: Int, keys: Words, seed: int) -> Int:
    """The new place of each sequence, ordered by a keyed hash of its first piece."""
    first = np.flatnonzero(start == 0)
    opener = np.empty(len(first), np.int64)
    opener[sequence[first]] = first
    mixed = splitmix64(np.full(len(opener), seed, np.uint64))
    for column in keys.T:
        mixed = splitmix64(mixed ^ column[pieces.document[opener]])
    mixed = splitmix64(mixed ^ pieces.number[opener].astype(np.uint64))
    place = np.empty(len(opener), np.int64)
    place[np.argsort(mixed, kind="stable")] = np.arange(len(opener))
    return place


def _lay_out(
    tokens_N: NDArray[np.unsignedinteger[Any]],
    *,
    lengths: Int,
    pieces: Pieces,
    sequence: Int,
    start: Int,
    fill: Int,
    seq_len: int,
    end_id: int,
) -> Packed:
    """Copies tokens to their places, and writes down the starts."""
    tokens_ST = np.full((len(fill), seq_len), end_id, tokens_N.dtype)
    offset = (np.cumsum(lengths) - lengths)[pieces.document] + pieces.begin
    # Pieces lie in the order of the input, so `tokens_N` is read from end to end.
    within = np.arange(len(tokens_N)) - np.repeat(offset, pieces.length)
    tokens_ST.reshape(-1)[np.repeat(sequence * seq_len + start, pieces.length) + within] = tokens_N
    padded = np.flatnonzero(fill < seq_len)
    all_sequences = np.concatenate([sequence, padded])
    all_starts = np.concatenate([start, fill[padded]])
    order = np.lexsort((all_starts, all_sequences))
    return Packed(
        tokens_ST=tokens_ST,
        starts_P=all_starts[order].astype(np.uint16),
        num_starts_S=np.bincount(all_sequences, minlength=len(fill)),
        pieces=pieces,
        sequence_K=sequence,
        start_K=start,
    )
