"""Packs documents into sequences: nothing dropped, padding counted. numpy only.

`best-fit` keeps documents whole: best-fit decreasing (Johnson 1974), done a length at a time instead of a document at
a time: all documents of one length go to the fullest sequences that take them, in one array operation for each free
length. A hundred thousand documents take about a tenth of a second; the result has exactly as many sequences as
placing them one by one. `concat` lays the documents end to end in a keyed order and cuts at each sequence's end: no
padding to speak of, many documents in two sequences. `none` gives each its own sequence, for comparison.

The result is a function of the documents' ids, hashes and tokens, whatever order they come in; a keyed order
of the sequences (of the documents, in `concat`) mixes long and short ones.
"""

from bisect import bisect_left, insort
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tessera.shard.mixing import splitmix64

# Shapes: D = documents, N = their tokens, K = pieces, S = sequences, T = seq_len, P = starts (pieces and paddings).
Int = NDArray[np.int64]
Words = NDArray[np.uint64]
Tokens = NDArray[np.unsignedinteger[Any]]
Packing = Literal["best-fit", "concat", "none"]


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

    tokens_ST: Tokens
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
    loss_ST: NDArray[np.uint8] | None = None
    """[S, T], 1 where a stored token is a label; None: wherever there is no padding."""

    def padding_S(self, *, end_id: int) -> Int:
        """Tokens of padding in each sequence, as a reader counts them: from the stored tokens and starts."""
        last_S = self.starts_P[np.cumsum(self.num_starts_S) - 1].astype(np.int64)
        padded_S = self.tokens_ST[np.arange(len(last_S)), last_S] == end_id
        return np.where(padded_S, self.tokens_ST.shape[1] - last_S, 0)


@dataclass(frozen=True)
class Places:
    """Where the pieces go."""

    sequence_K: Int
    start_K: Int
    fill_S: Int
    """Tokens in each sequence; the rest is padding."""


def pack(
    tokens_N: Tokens,
    *,
    lengths: Int,
    keys: Words,
    seq_len: int,
    end_id: int,
    seed: int,
    packing: Packing = "best-fit",
    loss_N: NDArray[np.uint8] | None = None,
) -> Packed:
    """Fills sequences with documents. No piece of a document begins with the end token.

    Args:
        tokens_N: the documents' tokens one after another. None begins with the end token; the last token of one that
            is longer than `seq_len` is the only one that may be it.
        lengths: [D], tokens of each document, the end token included: at least 2.
        keys: [D, n], words that identify a document: leading words of its id and of its content's hash. Documents
            are ordered by them, so equal rows would make the order of the input count.
        seq_len: T.
        seed: of the order of the sequences.
        packing: `best-fit` cuts only what is longer than a sequence. `concat` cuts wherever a sequence ends, and pads
            the last one; where the next sequence would begin with an end token, it takes the token before as well,
            and one slot is padded. `none` puts each document, or each piece of a longer one, into its own sequence.
        loss_N: 1 for the tokens that are labels; None when all are.
    """
    assert len(lengths) == 0 or int(lengths.min()) >= 2, "a document has a token and its end"
    if packing == "concat":
        pieces, places = _concat(tokens_N, lengths=lengths, keys=keys, seq_len=seq_len, end_id=end_id, seed=seed)
    else:
        pieces = cut(lengths, seq_len=seq_len)
        places = (_each_alone if packing == "none" else _fit)(pieces, keys=keys, seq_len=seq_len)
        places = _shuffled(places, pieces=pieces, keys=keys, seed=seed)
    return _lay_out(
        tokens_N, lengths=lengths, pieces=pieces, places=places, seq_len=seq_len, end_id=end_id, loss_N=loss_N
    )


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


def _fit(pieces: Pieces, *, keys: Words, seq_len: int) -> Places:
    """Best fit, pieces of one length in the order of their documents' keys."""
    rank = np.empty(len(keys), np.int64)
    rank[np.lexsort(keys.T[::-1])] = np.arange(len(keys))
    order = np.lexsort((pieces.number, rank[pieces.document], -pieces.length))
    sequence, start, fill = best_fit(pieces.length[order], seq_len=seq_len)
    back = np.argsort(order, kind="stable")
    return Places(sequence_K=sequence[back], start_K=start[back], fill_S=fill)


def _each_alone(pieces: Pieces, *, keys: Words, seq_len: int) -> Places:
    number = len(pieces.length)
    return Places(sequence_K=np.arange(number), start_K=np.zeros(number, np.int64), fill_S=pieces.length)


def _shuffled(places: Places, *, pieces: Pieces, keys: Words, seed: int) -> Places:
    """The same sequences in the order of a keyed hash of their first pieces."""
    first = np.flatnonzero(places.start_K == 0)
    opener = np.empty(len(first), np.int64)
    opener[places.sequence_K[first]] = first
    mixed = splitmix64(_mixed(keys[pieces.document[opener]], seed=seed) ^ pieces.number[opener].astype(np.uint64))
    order = np.argsort(mixed, kind="stable")
    place = np.empty(len(opener), np.int64)
    place[order] = np.arange(len(opener))
    return Places(sequence_K=place[places.sequence_K], start_K=places.start_K, fill_S=places.fill_S[order])


def keyed_order(keys: Words, *, seed: int) -> Int:
    """The rows of `keys` in the order of a keyed hash."""
    return np.lexsort((*keys.T[::-1], _mixed(keys, seed=seed)))


def _mixed(keys: Words, *, seed: int) -> Words:
    """A keyed hash of each row."""
    mixed = splitmix64(np.full(len(keys), seed, np.uint64))
    for column in keys.T:
        mixed = splitmix64(mixed ^ column)
    return mixed


def _concat(
    tokens_N: Tokens, *, lengths: Int, keys: Words, seq_len: int, end_id: int, seed: int
) -> tuple[Pieces, Places]:
    """Documents in keyed order as one stream, cut into sequences; pieces by document, then number."""
    order = keyed_order(keys, seed=seed)
    begins_D = np.cumsum(lengths[order]) - lengths[order]  # in the stream, as are cuts and borders
    moved_D = np.empty_like(begins_D)
    moved_D[order] = begins_D - (np.cumsum(lengths) - lengths)[order]
    ends = np.flatnonzero(tokens_N == end_id)
    is_end_N = np.zeros(len(tokens_N), bool)
    is_end_N[ends + moved_D[np.searchsorted(np.cumsum(lengths), ends, side="right")]] = True
    cuts_S = _cuts(is_end_N, seq_len=seq_len)
    borders_K = np.union1d(begins_D, cuts_S)
    at = np.searchsorted(begins_D, borders_K, side="right") - 1
    sequence = np.searchsorted(cuts_S, borders_K, side="right") - 1
    document, begin = order[at], borders_K - begins_D[at]
    number = np.arange(len(at)) - np.searchsorted(at, at, side="left")
    length = np.diff(borders_K, append=len(tokens_N))
    back = np.lexsort((number, document))
    pieces = Pieces(document=document[back], number=number[back], begin=begin[back], length=length[back])
    fill = np.diff(cuts_S, append=len(tokens_N))
    return pieces, Places(sequence_K=sequence[back], start_K=(borders_K - cuts_S[sequence])[back], fill_S=fill)


def _cuts(is_end_N: NDArray[np.bool_], *, seq_len: int) -> Int:
    """Where each sequence of a stream begins: every `seq_len` tokens, one or more earlier where an end token lies."""
    cuts = [0]
    while cuts[-1] + seq_len < len(is_end_N):
        position = cuts[-1] + seq_len
        while is_end_N[position]:
            position -= 1
        assert position > cuts[-1], "end tokens fill a sequence"
        cuts.append(position)
    return np.array(cuts if len(is_end_N) else [], dtype=np.int64)


def _lay_out(
    tokens_N: Tokens,
    *,
    lengths: Int,
    pieces: Pieces,
    places: Places,
    seq_len: int,
    end_id: int,
    loss_N: NDArray[np.uint8] | None,
) -> Packed:
    """Copies tokens to their places, and writes down the starts."""
    sequence, start, fill = places.sequence_K, places.start_K, places.fill_S
    tokens_ST = np.full((len(fill), seq_len), end_id, tokens_N.dtype)
    offset = (np.cumsum(lengths) - lengths)[pieces.document] + pieces.begin
    # Pieces lie in the order of the input, so `tokens_N` is read from end to end.
    slots_N = np.repeat(sequence * seq_len + start - offset, pieces.length) + np.arange(len(tokens_N))
    tokens_ST.reshape(-1)[slots_N] = tokens_N
    loss_ST = None
    if loss_N is not None:
        loss_ST = np.zeros((len(fill), seq_len), np.uint8)
        loss_ST.reshape(-1)[slots_N] = loss_N
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
        loss_ST=loss_ST,
    )
