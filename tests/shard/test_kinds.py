"""Reading samples of which only some tokens count, and preference pairs: against a reading token by token."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from tessera.errors import ShardSetError
from tessera.shard.format import mds
from tessera.shard.read import shards as shards_module
from tessera.shard.read.batches import (
    batch_at,
    make_order,
    make_state,
    open_split,
    preference_batch_at,
    resume_step,
    sequential,
)
from tessera.shard.read.shards import Shards
from tessera.shard.run_manifest import SCHEMA, SetInfo, write_run_manifest

END = 0
T = 32


def open_files(folder: Path, files: Sequence[tuple[bytes, int]], *, dtype: str = "uint16") -> Shards:
    """A set of these files."""
    rows = []
    for ordinal, (data, samples) in enumerate(files):
        (folder / f"{ordinal}.mds").write_bytes(data)
        zeros = dict.fromkeys(("generation", "bucket", "tokens", "text_bytes", "documents", "padding"), 0)
        digest = hashlib.sha256(data).hexdigest()
        row = {"file": f"{ordinal}.mds", "num_bytes": len(data), "sha256": digest, "samples": samples}
        rows.append({**zeros, **row, "split": "train", "ordinal": ordinal, "buckets": 1})
    vocab_size = 500 if dtype == "uint16" else 100_000
    info = SetInfo(name="k", version=0, seq_len=T, end_id=END, vocab_size=vocab_size, tokenizer="0" * 64, root="")
    table = pa.Table.from_pylist(rows, schema=SCHEMA).replace_schema_metadata(info.to_metadata())
    write_run_manifest(table, folder / "shards.arrow")
    return open_split(folder / "shards.arrow", split="train", shards_root=folder)


def encoded(columns: Mapping[str, str], samples: Sequence[Mapping[str, Any]]) -> list[tuple[bytes, int]]:
    return list(mds.shard_bytes(mds.make_config(columns, size_limit=2**11), samples))


def packed(random: np.random.Generator, *, loss: bool) -> dict[str, Any]:
    """Two documents and their padding, or one that fills the sequence."""
    tokens = random.integers(1, 500, T).astype(np.uint16)
    starts = np.array([0], np.uint16)
    if random.integers(2):
        tokens[[9, 20]], tokens[21:], starts = END, END, np.array([0, 10, 21], np.uint16)
    sample = {"tokens": tokens, "starts": starts}
    return {**sample, "loss": random.integers(0, 2, T).astype(np.uint8)} if loss else sample


def test_only_tokens_with_loss_are_labels(tmp_path: Path) -> None:
    """Files with the column, and one without between them: there all tokens count."""
    random = np.random.default_rng(2)
    columns = {"tokens": f"ndarray:uint16:{T}", "starts": "ndarray:uint16"}
    lossy = [packed(random, loss=True) for _ in range(40)]
    plain = [packed(random, loss=False) for _ in range(30)]
    with_loss = encoded({**columns, "loss": f"ndarray:uint8:{T}"}, lossy)
    half = sum(samples for _, samples in with_loss[: len(with_loss) // 2])
    files = [*with_loss[: len(with_loss) // 2], *encoded(columns, plain), *with_loss[len(with_loss) // 2 :]]
    stored = [*lossy[:half], *plain, *lossy[half:]]

    shards = open_files(tmp_path, files)
    batches = list(sequential(shards, batch_size=7))

    assert len(files) > 4
    labels, inputs = (torch.cat([batch[name] for batch in batches]).tolist() for name in ("labels", "input_ids"))
    for number, sample in enumerate(stored):
        padded = len(sample["starts"]) == 3
        counts = sample.get("loss", np.ones(T, np.uint8))
        for at in range(T):
            ignored = not counts[at] or (padded and at >= 21)
            assert labels[number][at] == (-100 if ignored else int(sample["tokens"][at]))
            assert inputs[number][at] == (END if at in sample["starts"] else int(sample["tokens"][at - 1]))
    with pytest.raises(ShardSetError, match="hold packed documents, wanted"):
        preference_batch_at(shards, make_order(shards, seed=1, block_shards=2), step=0, batch_size=4)


@pytest.mark.parametrize(("dtype", "most"), [("uint16", 256), ("uint32", 1)])
def test_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, most: int) -> None:
    monkeypatch.setattr(shards_module, "MAX_MAPPED", most)
    random = np.random.default_rng(3)
    stored = []
    for number in range(50):
        prompt = random.integers(1, 500, random.integers(1, 20))
        sides = [np.append(random.integers(1, 500, random.integers(1, 12)), END) for _ in range(2)]
        if number == 7:
            sides[0] = np.append(random.integers(1, 500, 400), END)  # more than 255: dimensions of two bytes
        chosen, rejected = (np.concatenate([prompt, side]).astype(dtype) for side in sides)
        stored.append({"chosen": chosen, "rejected": rejected, "prompt": len(prompt)})
    columns = {"chosen": f"ndarray:{dtype}", "prompt": "uint32", "rejected": f"ndarray:{dtype}"}
    shards = open_files(tmp_path, encoded(columns, stored), dtype=dtype)
    order = make_order(shards, seed=5, block_shards=2)
    assert len(shards.files) > 2

    seen = []
    for step in range(10):
        whole = preference_batch_at(shards, order, step=step, batch_size=10)
        parts = [
            preference_batch_at(shards, order, step=step, batch_size=10, rank=rank, world_size=2) for rank in range(2)
        ]
        shard, sample = order.locate(step * 10 + np.arange(10))
        number = (np.cumsum(shards.samples_per_shard) - shards.samples_per_shard)[shard] + sample
        seen += number.tolist()
        for name in ("chosen", "rejected"):
            arrays = {key: value.tolist() for key, value in whole[name].items()}
            for row, pair in enumerate(stored[one] for one in number):
                tokens, length = pair[name].tolist(), len(pair[name])
                width = len(arrays["labels"][row])
                rest = width - length
                expected = [-100 if at < pair["prompt"] else token for at, token in enumerate(tokens)]
                assert arrays["labels"][row] == expected + [-100] * rest
                assert arrays["input_ids"][row] == ([END, *tokens[:-1]] + [END] * rest)
                assert arrays["position_ids"][row] == [*range(length), *range(rest)]
                assert arrays["document_ids"][row] == [0] * length + [-1] * rest
                part = parts[row // 5][name]
                for key, value in part.items():
                    assert value[row % 5].tolist() == arrays[key][row][: value.shape[1]]
    assert sorted(seen[:50]) == sorted(seen[50:]) == list(range(50))
    state = make_state(shards, order, next_step=3, batch_size=10)
    assert resume_step(state, shards=shards, order=order, batch_size=10) == 3
    with pytest.raises(ShardSetError, match="hold preference pairs, wanted"):
        batch_at(shards, order, step=0, batch_size=10)
