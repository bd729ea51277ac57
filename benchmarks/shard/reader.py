"""Reading beside mosaicml-streaming's reader on the same files, and beside memcpy: python benchmarks/shard/reader.py

CPU seconds of one core, everything in the page cache, in rounds: memcpy, ours and theirs by turns, so that a busy
machine slows all of them. Prints medians over the rounds, and medians of the rounds' ratios. Theirs runs in
`.venv-interop` (make interop); without it, its columns are left out.
"""

import argparse
import hashlib
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from tessera.shard.format import mds
from tessera.shard.pack import pack
from tessera.shard.read.batches import batch_at, make_order, open_split
from tessera.shard.read.order import Order
from tessera.shard.read.quality import measure
from tessera.shard.read.shards import Shards
from tessera.shard.run_manifest import SCHEMA, SetInfo, write_run_manifest

ROOT = Path(__file__).parents[2]
UPSTREAM = ROOT / ".venv-interop/bin/python"
NUM_DOCUMENTS = 100_000
MEASURED = 4096
"""Samples of one measurement."""
END = 0


@dataclass(frozen=True)
class Upstream:
    """mosaicml-streaming over the same folder, asked through pipes."""

    process: "subprocess.Popen[str]"
    version: str

    def seconds(self, work: str) -> float:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(work + "\n")
        self.process.stdin.flush()
        return float(json.loads(self.process.stdout.readline())["seconds"])


def write_set(folder: Path, *, seq_len: int) -> Shards:
    """Documents as long as docstrings, packed, with upstream's index."""
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(4.4, 1.1, NUM_DOCUMENTS).astype(int) + 2, 2, 40_000)
    tokens = random.integers(1, 4000, lengths.sum()).astype(np.uint16)
    tokens[np.cumsum(lengths) - 1] = END
    keys = random.integers(0, 2**63, (NUM_DOCUMENTS, 2)).astype(np.uint64)
    packed = pack(tokens, lengths=lengths, keys=keys, seq_len=seq_len, end_id=END, seed=1)
    columns = {"starts": "ndarray:uint16", "tokens": f"ndarray:uint16:{seq_len}"}
    config = mds.make_config(columns, size_limit=2**20, hashes=["sha256"])
    files = mds.token_shards(
        packed.tokens_ST, starts_P=packed.starts_P, num_starts_S=packed.num_starts_S, config=config
    )
    rows, entries = [], []
    for number, (data, samples) in enumerate(files):
        name = f"{number:04d}.mds"
        (folder / name).write_bytes(data)
        numbers = dict.fromkeys(("generation", "ordinal", "tokens", "text_bytes", "documents", "padding"), 0)
        digest = hashlib.sha256(data).hexdigest()
        row = {"file": name, "num_bytes": len(data), "sha256": digest, "samples": samples, "bucket": number}
        rows.append({**numbers, **row, "split": "train", "buckets": 1})
        entries.append(
            mds.index_entry(config, basename=name, num_bytes=len(data), samples=samples, hashes={"sha256": digest})
        )
    (folder / "index.json").write_text(mds.index_json(entries))
    info = SetInfo(name="b", version=0, seq_len=seq_len, end_id=END, vocab_size=4096, tokenizer="0" * 64, root="")
    table = pa.Table.from_pylist(rows, schema=SCHEMA).replace_schema_metadata(info.to_metadata())
    write_run_manifest(table, folder / "shards.arrow")
    return open_split(folder / "shards.arrow", split="train", shards_root=folder)


def start_upstream(folder: Path, *, batch_size: int, num_batches: int) -> Upstream | None:
    if not UPSTREAM.exists():
        return None
    script = Path(__file__).with_name("upstream_reader.py")
    process = subprocess.Popen(
        [UPSTREAM, script, str(folder), str(batch_size), str(num_batches)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stdout
    return Upstream(process=process, version=json.loads(process.stdout.readline())["version"])


def cpu_seconds(work: Callable[[int], Any], *, num_batches: int) -> float:
    began = time.process_time()
    for number in range(num_batches):
        work(number)
    return time.process_time() - began


def our_works(shards: Shards, order: Order, *, batch_size: int) -> dict[str, Callable[[int], Any]]:
    """What is measured here, by name: each does one batch."""
    stored = batch_size * shards.seq_len * 2
    source = np.concatenate([np.fromfile(shards.root / file.file, np.uint8) for file in shards.files])
    made = np.zeros(batch_size * shards.seq_len * 28, np.uint8)
    places = np.random.default_rng(1).integers(0, len(source) - stored, 2**12)
    part = {"batch_size": batch_size, "rank": 0, "world_size": 1}
    return {
        "memcpy of the stored bytes": lambda number: source[places[number] : places[number] + stored].copy(),
        "memcpy of a batch's bytes": lambda number: made.copy(),
        "gather": lambda number: shards.gather(*order.part(number, **part)),
        "batch_at": lambda number: batch_at(shards, order, step=number, batch_size=batch_size),
    }


def compare(folder: Path, *, seq_len: int, batch_size: int, rounds: int) -> None:
    shards = write_set(folder, seq_len=seq_len)
    order = make_order(shards, seed=1, block_shards=16)
    num_batches = max(min(shards.num_samples, MEASURED) // batch_size, 1)
    works = our_works(shards, order, batch_size=batch_size)
    upstream = start_upstream(folder, batch_size=batch_size, num_batches=num_batches)
    for number in range(shards.num_samples // batch_size + 1):
        works["gather"](number)  # every file is mapped and verified
    took: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, work in works.items():
            took.setdefault(name, []).append(cpu_seconds(work, num_batches=num_batches))
        for name in ("getitem", "iterate") if upstream else ():
            took.setdefault(f"mosaicml-streaming {name}", []).append(upstream.seconds(name))  # type: ignore[union-attr]
    if upstream:
        upstream.process.communicate("")
    version = f", mosaicml-streaming {upstream.version}" if upstream else ", no .venv-interop: make interop"
    print(f"\nT = {seq_len}, B = {batch_size}: {shards.num_samples} samples in {len(shards.files)} files{version}")
    for name, seconds in took.items():
        each = statistics.median(seconds) / num_batches / batch_size
        token_bytes = 28 if name in ("memcpy of a batch's bytes", "batch_at") else 2
        print(
            f"  {name:29} {1e6 * each:7.2f} us a sample {1 / each:12,.0f} samples/s {seq_len / each / 1e6:8,.0f} M "
            f"tokens/s {token_bytes * seq_len / each / 1e9:6.2f} GB/s"
        )
    pairs = [("memcpy of the stored bytes", "gather"), ("memcpy of a batch's bytes", "batch_at")]
    for name in ("getitem", "iterate") if upstream else ():
        pairs += [(f"mosaicml-streaming {name}", "gather"), (f"mosaicml-streaming {name}", "batch_at")]
    for other, ours in pairs:
        ratio = statistics.median(a / b for a, b in zip(took[other], took[ours], strict=True))
        print(f"  {ours} runs at {ratio:.2f} x the speed of {other}")


def first_batch() -> None:
    """Opening a simulated manifest of a million shards with 10^9 samples, and locating the first batch and a later."""
    rng = np.random.default_rng(0)
    num_shards = 10**6
    zeros = np.zeros(num_shards, np.int64)
    rows = {name: pa.array(zeros) for name in SCHEMA.names if name not in ("split", "file", "sha256")}
    rows |= {"samples": pa.array(rng.integers(990, 1011, num_shards)), "bucket": pa.array(np.arange(num_shards))}
    rows |= {"split": pa.array(["train"] * num_shards), "sha256": pa.array(["0" * 64] * num_shards)}
    rows["file"] = pa.array([f"train/000000-{number:06d}-0123456789abcdef.mds" for number in range(num_shards)])
    info = SetInfo(name="b", version=0, seq_len=2048, end_id=0, vocab_size=4096, tokenizer="0" * 64, root="")
    table = pa.table(rows).select(SCHEMA.names).cast(SCHEMA).replace_schema_metadata(info.to_metadata())
    with tempfile.TemporaryDirectory() as folder:
        write_run_manifest(table, Path(folder) / "shards.arrow")
        del table, rows
        began = time.perf_counter()
        shards = open_split(Path(folder) / "shards.arrow", split="train", shards_root=folder)
        opened = time.perf_counter()
        order = make_order(shards, seed=1, block_shards=16)
        part = {"batch_size": 1024, "rank": 0, "world_size": 1}
        order.part(0, **part)
        first = time.perf_counter()
        order.part(3 * shards.num_samples // 1024, **part)
        later = time.perf_counter()
    print(
        f"\n{num_shards:,} shards, {shards.num_samples:,} samples: manifest opened in {opened - began:.2f} s, first "
        f"batch located {first - opened:.2f} s later, one of another epoch in {later - first:.2f} s"
    )


def order_quality() -> None:
    """How well an epoch is mixed, against a uniform shuffle of as many samples."""
    rng = np.random.default_rng(0)
    samples = rng.integers(900, 1100, 400)
    groups = np.sort(rng.choice([0, 0, 0, 1, 1, 2], 400))
    for block_shards in (1, 4, 16, 64, 400):
        order = Order(samples, seed=17, block_shards=block_shards)
        print(f"  {block_shards:4} shards a block: {measure(order, epoch=0, groups=groups)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    for seq_len, batch_size in ((256, 64), (256, 1024), (2048, 16), (2048, 256)):
        with tempfile.TemporaryDirectory() as folder:
            compare(Path(folder), seq_len=seq_len, batch_size=batch_size, rounds=rounds)
    first_batch()
    order_quality()


if __name__ == "__main__":
    main()
