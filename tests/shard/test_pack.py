"""Packing against best-fit decreasing done one piece at a time, and its conservation of every token."""

import hashlib
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.shard.conftest import END, make_documents, make_keys, pack_documents

from tessera.shard.pack import Packed, Packing, best_fit, cut, pack


def best_fit_one_by_one(lengths: list[int], *, seq_len: int) -> list[int]:
    """Tokens in each sequence, each piece put where the least room is left; the oldest of equals."""
    fill: list[int] = []
    for length in lengths:
        fitting = [number for number, used in enumerate(fill) if used + length <= seq_len]
        if fitting:
            fill[max(fitting, key=lambda number: (fill[number], -number))] += length
        else:
            fill.append(length)
    return fill


def documents_in(packed: Packed) -> list[list[int]]:
    """Documents put together again from their pieces."""
    documents: dict[int, list[int]] = {}
    order = np.lexsort((packed.pieces.number, packed.pieces.document))
    for piece in order:
        begin = packed.start_K[piece]
        tokens = packed.tokens_ST[packed.sequence_K[piece], begin : begin + packed.pieces.length[piece]]
        documents.setdefault(int(packed.pieces.document[piece]), []).extend(tokens.tolist())
    return [documents[number] for number in sorted(documents)]


@given(st.lists(st.integers(1, 40), max_size=80), st.integers(40, 60))
def test_best_fit_is_best_fit_decreasing(lengths: list[int], seq_len: int) -> None:
    descending = np.array(sorted(lengths, reverse=True), dtype=np.int64)

    sequence, start, fill = best_fit(descending, seq_len=seq_len)

    assert sorted(fill.tolist()) == sorted(best_fit_one_by_one(descending.tolist(), seq_len=seq_len))
    taken = np.zeros((len(fill), seq_len), int)
    for number, begin, length in zip(sequence, start, descending, strict=True):
        taken[number, begin : begin + length] += 1
    assert np.array_equal(taken, np.arange(seq_len) < fill[:, None])


@given(st.lists(st.integers(2, 100), min_size=1, max_size=20), st.integers(16, 40))
def test_cut_leaves_no_rest_of_an_end_token_alone(lengths: list[int], seq_len: int) -> None:
    pieces = cut(np.array(lengths), seq_len=seq_len)

    assert pieces.length.min() >= 2
    assert pieces.length.max() <= seq_len
    for document, length in enumerate(lengths):
        mine = pieces.document == document
        assert pieces.length[mine].sum() == length
        assert np.array_equal(pieces.begin[mine], np.cumsum(pieces.length[mine]) - pieces.length[mine])
        assert mine.sum() == -(-length // seq_len)


def sequences_of(packed: Packed) -> list[tuple[list[int], list[int], int]]:
    """(tokens, starts, padding) of each sequence."""
    starts = np.split(packed.starts_P.astype(int), np.cumsum(packed.num_starts_S)[:-1])
    padding = packed.padding_S(end_id=END).tolist()
    rows = zip(packed.tokens_ST.tolist(), starts, padding, strict=True)
    return [(tokens, begins.tolist(), num_padding) for tokens, begins, num_padding in rows]


@pytest.mark.parametrize("packing", get_args(Packing))
@settings(deadline=None)
@given(st.integers(1, 120), st.integers(2, 150), st.integers(16, 64), st.integers(0, 9))
def test_nothing_is_lost_and_padding_is_told_apart(
    packing: Packing, number: int, longest: int, seq_len: int, seed: int
) -> None:
    documents = make_documents(number, longest=longest, seed=seed)

    packed = pack_documents(documents, seq_len=seq_len, packing=packing)

    assert documents_in(packed) == [document.tolist() for document in documents]
    total = sum(len(document) for document in documents)
    assert total + packed.padding_S(end_id=END).sum() == packed.tokens_ST.size
    assert packed.loss_ST is None
    for tokens, starts, padding in sequences_of(packed):
        assert starts[0] == 0
        assert sorted(set(starts)) == starts
        assert all(token == END for token in tokens[seq_len - padding :])
        begins = starts[:-1] if padding else starts
        assert all(tokens[begin] != END for begin in begins)
        assert not padding or starts[-1] == seq_len - padding
        assert packing != "none" or len(begins) == 1


@pytest.mark.parametrize("packing", get_args(Packing))
@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=14), min_size=1, max_size=40), st.integers(16, 20),
    st.integers(0, 9),
)  # fmt: skip
def test_conversations_with_end_tokens_inside_never_begin_a_piece_with_one(
    packing: Packing, inner: list[list[int]], seq_len: int, seed: int
) -> None:
    """Documents that fit a sequence may hold end tokens, as conversations do; and labels go where tokens go."""
    documents = [np.array([1 + number, *tokens, END], np.uint16) for number, tokens in enumerate(inner)]
    loss = [(np.arange(len(document)) * 7 + len(document)) % 3 == 0 for document in documents]

    packed = pack_documents(documents, seq_len=seq_len, seed=seed, packing=packing, loss=loss)

    assert documents_in(packed) == [document.tolist() for document in documents]
    assert packed.loss_ST is not None
    masks = {**vars(packed), "tokens_ST": packed.loss_ST, "loss_ST": None}
    assert documents_in(Packed(**masks)) == [mask.astype(int).tolist() for mask in loss]
    assert packed.loss_ST.sum() == sum(mask.sum() for mask in loss)
    assert sum(map(len, documents)) + packed.padding_S(end_id=END).sum() == packed.tokens_ST.size
    first_tokens = packed.tokens_ST[packed.sequence_K, packed.start_K]
    assert (first_tokens != END).all()


def cut_one_by_one(stream: list[int], *, seq_len: int) -> list[list[int]]:
    """A stream cut at each sequence's end, earlier where an end token would begin the next."""
    sequences = []
    while stream:
        size = min(seq_len, len(stream))
        while size < len(stream) and stream[size] == END:
            size -= 1
        sequences.append(stream[:size])
        stream = stream[size:]
    return sequences


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(2, 90), st.integers(16, 40), st.integers(0, 9))
def test_concat_is_one_stream_of_documents_cut_at_each_sequences_end(
    number: int, longest: int, seq_len: int, seed: int
) -> None:
    documents = make_documents(number, longest=longest, seed=seed)

    packed = pack_documents(documents, seq_len=seq_len, seed=seed, packing="concat")

    sequences = [tokens[: seq_len - padding] for tokens, _, padding in sequences_of(packed)]
    stream = [token for tokens in sequences for token in tokens]
    assert sequences == cut_one_by_one(stream, seq_len=seq_len)
    order = np.lexsort((packed.start_K, packed.sequence_K))
    visited = list(dict.fromkeys(packed.pieces.document[order].tolist()))
    assert stream == [token for place in visited for token in documents[place].tolist()]
    padding = [padding for _, _, padding in sequences_of(packed)]
    assert all(amount <= 1 for amount in padding[:-1])


def test_concat_mixes_documents_by_key_and_pads_next_to_nothing() -> None:
    documents = make_documents(3000, longest=60, seed=1)
    total = sum(len(document) for document in documents)

    packed = pack_documents(documents, seq_len=64, packing="concat")
    order = packed.pieces.document[np.lexsort((packed.start_K, packed.sequence_K))]
    other = pack_documents(documents, seq_len=64, packing="concat", seed=4)

    assert len(packed.tokens_ST) * 64 <= 1.002 * total + 64
    assert abs(np.corrcoef(np.arange(len(order)), order)[0, 1]) < 0.1
    assert not np.array_equal(packed.tokens_ST, other.tokens_ST)


@pytest.mark.parametrize("packing", get_args(Packing))
def test_packing_does_not_depend_on_the_order_of_documents(packing: Packing) -> None:
    documents = [*make_documents(400, longest=70, seed=1), *make_documents(5, longest=900, seed=2)]
    loss = [document % 2 == 0 for document in documents]
    reference = pack_documents(documents, seq_len=64, packing=packing, loss=loss)

    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(documents))
        shuffled = [documents[number] for number in order]
        packed = pack_documents(shuffled, seq_len=64, packing=packing, loss=[loss[number] for number in order])
        assert np.array_equal(packed.tokens_ST, reference.tokens_ST)
        assert np.array_equal(packed.starts_P, reference.starts_P)
        assert reference.loss_ST is not None
        assert np.array_equal(packed.loss_ST, reference.loss_ST)  # type: ignore[arg-type]


def test_another_seed_gives_the_same_sequences_in_another_order() -> None:
    documents = make_documents(400, longest=70, seed=1)
    one, other = (pack_documents(documents, seq_len=64, seed=seed).tokens_ST for seed in (3, 4))

    assert not np.array_equal(one, other)
    assert sorted(map(bytes, one)) == sorted(map(bytes, other))


def test_the_order_of_sequences_does_not_follow_length() -> None:
    documents = make_documents(3000, longest=60, seed=1)
    packed = pack_documents(documents, seq_len=64)
    pieces = packed.num_starts_S.astype(float)

    assert abs(np.corrcoef(np.arange(len(pieces)), pieces)[0, 1]) < 0.1
    assert abs(np.corrcoef(pieces[1:], pieces[:-1])[0, 1]) < 0.1


def test_half_a_percent_of_padding_at_most_where_documents_are_up_to_a_sequence_long() -> None:
    documents = make_documents(3000, longest=60, seed=1)
    total = sum(len(document) for document in documents)

    packed = pack_documents(documents, seq_len=64)

    assert len(packed.tokens_ST) * 64 <= 1.005 * total


def test_golden_hash_of_a_tiny_pack() -> None:
    documents = [np.append(np.arange(1, 1 + length), END).astype(np.uint16) for length in (3, 20, 7, 16, 40, 1, 15, 31)]
    packed = pack(
        np.concatenate(documents), lengths=np.array([len(document) for document in documents]),
        keys=make_keys(documents), seq_len=16, end_id=END, seed=17,
    )  # fmt: skip

    digest = hashlib.sha256(packed.tokens_ST.astype("<u2").tobytes() + packed.starts_P.astype("<u2").tobytes())
    assert digest.hexdigest() == "2a1de110c2cdd1bd28a4e9d7a0e17765c8898207bd23e479a8a887e18a52722a", (
        "shards change: raise tessera.shard.stage.SEMANTICS, then this hash"
    )
