"""Damaged shard files: named, with what was expected and found, before a sample of them is given."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tessera.errors import CorruptShard, ShardSetError
from tessera.shard.read import shards as shards_module
from tessera.shard.read.batches import Batches, make_order, open_split, sequential
from tessera.shard.run_manifest import SetInfo, read_run_manifest


def damage(path: Path, kind: str) -> None:
    data = bytearray(path.read_bytes())
    if kind == "missing":
        path.unlink()
    elif kind == "truncated":
        path.write_bytes(data[:-1])
    elif kind == "empty":
        path.write_bytes(b"")
    else:
        data[len(data) // 2 if kind == "flipped" else -1] ^= 0x10
        path.write_bytes(data)


@pytest.mark.parametrize(
    ("kind", "words"),
    [("flipped", "has SHA-256"), ("flipped at the end", "has SHA-256"), ("truncated", "bytes, expected"),
     ("empty", "has 0 bytes, expected"), ("missing", "is missing")],
)  # fmt: skip
def test_a_damaged_shard_is_named_and_gives_no_batch(make_set: Any, kind: str, words: str) -> None:
    small = make_set()
    shards = small.open()
    hurt = shards.files[2]
    damage(small.folder / hurt.file, kind)

    with pytest.raises(CorruptShard, match=words) as caught:
        shards.gather(np.array([0, 2]), np.array([0, 0]))

    assert hurt.file in str(caught.value)
    assert str(hurt.num_bytes) in str(caught.value) or hurt.sha256 in str(caught.value)
    assert "tessera shard" in str(caught.value)
    with pytest.raises(CorruptShard):
        list(sequential(small.open(), batch_size=4))
    first_two = [batch for batch, _ in zip(sequential(small.open(), batch_size=4), range(2), strict=False)]
    assert len(first_two) == 2, "files that are whole can be read"


def test_damage_anywhere_is_found_by_training(make_set: Any) -> None:
    small = make_set()
    damage(small.folder / small.open().files[-1].file, "flipped")
    shards = small.open()
    order = make_order(shards, seed=1, block_shards=2)

    with pytest.raises(CorruptShard):
        list(Batches(shards, order, start=0, stop=shards.num_samples // 8 + 1, batch_size=8))


def test_few_files_are_mapped_at_a_time_and_the_batches_are_the_same(
    make_set: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = make_set()
    everything = [small.open(), small.open()]
    order = make_order(everything[0], seed=1, block_shards=4)
    batches = []
    for shards, most in zip(everything, (256, 2), strict=True):
        monkeypatch.setattr(shards_module, "MAX_MAPPED", most)
        batches.append(list(Batches(shards, order, start=0, stop=shards.num_samples // 8, batch_size=8)))
        assert len(shards._memory.held) == min(most, len(shards.files))

    assert len(everything[0].files) > 4
    for one, other in zip(*batches, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_file_that_changes_after_it_was_verified_is_named(make_set: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was dropped is mapped again and not hashed again: its offsets are held against its size all the same."""
    monkeypatch.setattr(shards_module, "MAX_MAPPED", 1)
    small = make_set()
    shards = small.open()
    first = np.array([0])
    whole = shards.gather(first, first)
    shards.gather(first + 1, first)
    path = small.folder / shards.files[0].file
    data = path.read_bytes()
    starts = int.from_bytes(data[4:8], "little") + 4
    for at, value in ((7, 0xFF), (8, 0), (starts + 1, data[starts + 1] + 1), (starts, 0xFF), (11, 0x7F)):
        path.write_bytes(data[:at] + bytes([value]) + data[at + 1 :])
        shards._memory.drop_oldest()
        with pytest.raises((CorruptShard, ValueError)):
            shards.gather(first, first)
        shards._memory.held.clear()
        path.write_bytes(data)
        again = shards.gather(first, first)
        assert np.array_equal(again.tokens_BT, whole.tokens_BT)
        assert np.array_equal(again.starts_P, whole.starts_P)


def test_a_run_manifest_says_what_the_set_is(make_set: Any) -> None:
    small = make_set(dtype="uint32", version=3)
    info = SetInfo.from_metadata(read_run_manifest(small.run_manifest).schema.metadata)

    assert (info.name, info.version, info.seq_len, info.dtype) == ("small", 3, 32, "uint32")


def test_a_run_manifest_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "shards.arrow").write_bytes(b"not arrow")
    for path in (tmp_path / "shards.arrow", tmp_path / "absent"):
        with pytest.raises(ShardSetError, match="cannot be read"):
            open_split(path, split="train", shards_root=tmp_path)


def test_a_split_without_shards_is_refused(make_set: Any) -> None:
    with pytest.raises(ShardSetError, match="no test shards"):
        make_set().open("test")
