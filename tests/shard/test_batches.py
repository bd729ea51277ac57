"""Batches against a plain reading of the stored samples, and their independence of ranks, workers and restarts."""

import pickle
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from tessera.errors import ConfigError, ShardSetError
from tessera.shard.format import mds
from tessera.shard.read.batches import (
    Batch,
    Batches,
    batch_at,
    make_loader,
    make_order,
    make_state,
    preference_batch_at,
    resume_step,
    sequential,
)

END = 0


def plain_reading(tokens: list[int], starts: list[int]) -> dict[str, list[int]]:
    """One sample's tensors, token by token, from the description of the contract."""
    read: dict[str, list[int]] = {"input_ids": [], "labels": [], "position_ids": [], "document_ids": []}
    document = position = -1
    for at, token in enumerate(tokens):
        if at in starts:
            document, position = document + 1, -1
        position += 1
        padding = document == len(starts) - 1 and tokens[starts[-1]] == END
        read["labels"].append(-100 if padding else token)
        read["input_ids"].append(END if at in starts or padding else tokens[at - 1])
        read["position_ids"].append(position)
        read["document_ids"].append(-1 if padding else document)
    return read


def equal(left: Batch, right: Batch) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def documents_of(batches: list[Batch]) -> Counter[bytes]:
    """The document pieces that the labels spell, cut where document_ids change."""
    found: Counter[bytes] = Counter()
    for batch in batches:
        for labels, documents in zip(batch["labels"].numpy(), batch["document_ids"].numpy(), strict=True):
            for document in np.unique(documents[documents >= 0]):
                found[labels[documents == document].astype("<u2").tobytes()] += 1
    return found


@pytest.mark.parametrize(("dtype", "seq_len"), [("uint16", 32), ("uint32", 32), ("uint16", 1500)])
def test_sequential_reads_every_sample_as_the_contract_says(make_set: Any, dtype: str, seq_len: int) -> None:
    small = make_set(dtype=dtype, seq_len=seq_len, longest=4, num_documents=700)
    shards = small.open()
    stored = [sample for file in shards.files for sample in mds.read_samples(small.folder / file.file)]

    batches = list(sequential(shards, batch_size=7))

    got = {name: torch.cat([batch[name] for batch in batches]).tolist() for name in batches[0]}
    assert max(len(sample["starts"]) for sample in stored) > (256 if seq_len > 1000 else 5)
    assert len(got["labels"]) == len(stored)
    for number, sample in enumerate(stored):
        expected = plain_reading(sample["tokens"].tolist(), sample["starts"].tolist())
        assert {name: got[name][number] for name in got} == expected
    assert [batches[0][name].dtype for name in ("input_ids", "labels", "position_ids", "document_ids")] == [
        torch.int64, torch.int64, torch.int64, torch.int32
    ]  # fmt: skip


def test_labels_hold_every_document_once(make_set: Any) -> None:
    small = make_set(longest=30)
    whole = Counter(document.astype("<u2").tobytes() for document in small.documents["train"])

    assert documents_of(list(sequential(small.open(), batch_size=16))) == whole


def test_an_epoch_holds_every_sample_once(make_set: Any) -> None:
    shards = make_set(longest=30).open()
    order = make_order(shards, seed=5, block_shards=2)
    steps = shards.num_samples  # batches of one sample
    epochs = [[batch_at(shards, order, step=epoch * steps + s, batch_size=1) for s in range(steps)] for epoch in (0, 1)]

    assert len(shards.files) > 3
    assert documents_of(epochs[0]) == documents_of(epochs[1]) == documents_of(list(sequential(shards, batch_size=9)))
    same_place = sum(equal(*pair) for pair in zip(*epochs, strict=True))
    assert same_place < steps / 4


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_global_batches_do_not_depend_on_ranks_and_workers(make_set: Any, world_size: int, num_workers: int) -> None:
    shards = make_set().open()
    order = make_order(shards, seed=1, block_shards=3)
    alone = [batch_at(shards, order, step=step, batch_size=8) for step in range(2, 9)]

    loaders = [
        iter(make_loader(Batches(shards, order, start=2, stop=9, batch_size=8, rank=rank, world_size=world_size),
                         num_workers=num_workers))
        for rank in range(world_size)
    ]  # fmt: skip
    together = [
        {name: torch.cat([part[name] for part in parts]) for name in parts[0]} for parts in zip(*loaders, strict=True)
    ]

    assert len(together) == len(alone)
    assert all(equal(*pair) for pair in zip(together, alone, strict=True))


def test_resuming_at_any_step_equals_going_on(make_set: Any) -> None:
    shards = make_set().open()
    order = make_order(shards, seed=1, block_shards=3)
    steps = 2 * shards.num_samples // 8 + 3
    undisturbed = list(Batches(shards, order, start=0, stop=steps, batch_size=8))

    for stopped in range(0, steps, 7):
        state = make_state(shards, order, next_step=stopped, batch_size=8)
        again = pickle.loads(pickle.dumps((shards, order)))
        start = resume_step(state, shards=again[0], order=again[1], batch_size=8)
        rest = list(Batches(*again, start=start, stop=steps, batch_size=8))
        assert len(rest) == steps - stopped
        assert all(equal(*pair) for pair in zip(rest, undisturbed[stopped:], strict=True))


def test_a_batch_that_ranks_cannot_share_is_refused(make_set: Any) -> None:
    shards = make_set().open()
    with pytest.raises(ConfigError, match="8 samples cannot be shared by 3 ranks"):
        Batches(shards, make_order(shards, seed=1, block_shards=3), start=0, stop=1, batch_size=8, world_size=3)


def test_a_batch_that_is_an_epoch_holds_every_sample_once(make_set: Any) -> None:
    shards = make_set(longest=30).open()
    order = make_order(shards, seed=5, block_shards=2)

    whole = batch_at(shards, order, step=1, batch_size=shards.num_samples)

    assert documents_of([whole]) == documents_of(list(sequential(shards, batch_size=9)))


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_a_split_of_fewer_samples_than_a_global_batch_is_refused_by_name(make_set: Any, split: str) -> None:
    shards = make_set(name="few", version=3).open(split)
    order = make_order(shards, seed=1, block_shards=3)
    size = 2 * (shards.num_samples // 2 + 1)
    told = (
        f"few@3 has {shards.num_samples} samples in its {split} split, fewer than one global batch of {size}; "
        "give a smaller train.batch_size"
    )

    with pytest.raises(ShardSetError, match=told):
        Batches(shards, order, start=0, stop=1, batch_size=size, rank=1, world_size=2)
    for read in (batch_at, preference_batch_at):
        with pytest.raises(ShardSetError, match=told):
            read(shards, order, step=0, batch_size=size)  # type: ignore[operator]
