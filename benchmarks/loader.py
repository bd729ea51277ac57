"""Packing, shard writing and reading on one core, for documents as long as docstrings: python benchmarks/loader.py

Prints CPU seconds, so that a busy machine shows in noise only. Nothing outside the room's own code is measured here.
"""

import hashlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from tessera.shard.format import mds
from tessera.shard.pack import pack
from tessera.shard.read.batches import batch_at, make_order, open_split, sequential
from tessera.shard.run_manifest import SCHEMA, SetInfo, write_run_manifest

NUM_DOCUMENTS = 100_000
END = 0


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    began = time.process_time()
    result = work()
    return result, time.process_time() - began


def measure(folder: Path, *, seq_len: int, batch_size: int, num_steps: int = 400) -> None:
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(4.4, 1.1, NUM_DOCUMENTS).astype(int) + 2, 2, 40_000)
    tokens = random.integers(1, 4000, lengths.sum()).astype(np.uint16)
    tokens[np.cumsum(lengths) - 1] = END
    keys = random.integers(0, 2**63, (NUM_DOCUMENTS, 2)).astype(np.uint64)
    packed, seconds = timed(lambda: pack(tokens, lengths=lengths, keys=keys, seq_len=seq_len, end_id=END, seed=1))
    fill = len(tokens) / packed.tokens_ST.size
    print(f"T = {seq_len}: {NUM_DOCUMENTS} documents, {len(tokens) / 1e6:.1f} M tokens")
    print(f"  pack      {seconds:.2f} s, fill {fill:.4%}")

    columns = {"starts": "ndarray:uint16", "tokens": f"ndarray:uint16:{seq_len}"}
    config = mds.make_config(columns, size_limit=8 * 2**20, hashes=["sha256"])
    files, seconds = timed(lambda: list(mds.token_shards(
        packed.tokens_ST, starts_P=packed.starts_P, num_starts_S=packed.num_starts_S, config=config)))  # fmt: skip
    size = sum(len(data) for data, _ in files)
    print(f"  MDS bytes {size / seconds / 1e6:.0f} MB/s, {len(files)} files")

    rows = []
    for number, (data, samples) in enumerate(files):
        (folder / f"{number}.mds").write_bytes(data)
        numbers = dict.fromkeys(("generation", "ordinal", "tokens", "text_bytes", "documents", "padding"), 0)
        digest = hashlib.sha256(data).hexdigest()
        row = {"file": f"{number}.mds", "num_bytes": len(data), "sha256": digest, "samples": samples, "bucket": number}
        rows.append({**numbers, **row, "split": "train", "buckets": 1})
    info = SetInfo(name="b", version=0, seq_len=seq_len, end_id=END, vocab_size=4096, tokenizer="0" * 64, root="")
    table = pa.Table.from_pylist(rows, schema=SCHEMA).replace_schema_metadata(info.to_metadata())
    write_run_manifest(table, folder / "shards.arrow")
    shards = open_split(folder / "shards.arrow", split="train", shards_root=folder)
    order = make_order(shards, seed=1, block_shards=16)
    every = np.arange(len(files))
    _, seconds = timed(lambda: shards.gather(every, np.zeros_like(every)))
    print(f"  verify    {size / seconds / 1e6:.0f} MB/s, once a file and process")

    batches = (batch_at(shards, order, step=step, batch_size=batch_size) for step in range(num_steps))
    _, seconds = timed(lambda: sum(1 for _ in batches))
    each = seconds / num_steps / batch_size
    print(f"  batch_at  {1 / each:.0f} samples/s, {seq_len / each / 1e6:.0f} M tokens/s, {1e6 * each:.1f} us a sample")
    _, seconds = timed(lambda: sum(1 for _ in sequential(shards, batch_size=batch_size)))
    print(f"  in order  {shards.num_samples / seconds:.0f} samples/s")
    _, seconds = timed(lambda: order.locate(np.arange(10**6)))
    print(f"  locate    {1e3 * seconds:.0f} ns a sample")


def main() -> None:
    torch.set_num_threads(1)
    for seq_len, batch_size in ((256, 64), (2048, 16)):
        with tempfile.TemporaryDirectory() as folder:
            measure(Path(folder), seq_len=seq_len, batch_size=batch_size)


if __name__ == "__main__":
    main()
