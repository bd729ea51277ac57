"""What tokenizing costs beside the `tokenizers` library alone: same texts, one core, CPU seconds, alternating.

    .venv/bin/python benchmarks/shard/tokenizing.py [--mib 16] [--rounds 5]
    .venv/bin/python benchmarks/shard/tokenizing.py --long 50      # one document: peak memory, whole and in pieces

The first prints tokens a second of `Tokenizer.encode_batch_fast` alone and of Tessera's whole path from an Arrow batch
of documents to an Arrow batch of tokens, and their ratio. The text is Python source of the installed packages, a file a
document. About a minute.
"""

import argparse
import gc
import hashlib
import os
import resource
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from tessera.shard import encode, tokenizer
from tessera.shard.cell import Recipe


def texts_of(num_bytes: int) -> list[str]:
    """Python files of the installed packages, by name, until they have this many bytes."""
    texts, total = [], 0
    for path in sorted(Path(sysconfig.get_paths()["purelib"]).rglob("*.py")):
        text = path.read_text(encoding="utf-8", errors="ignore")
        if text.strip():
            texts.append(text)
            total += len(text.encode())
        if total >= num_bytes:
            break
    return texts


def trained(folder: Path) -> tokenizer.Definition:
    tokenizer.train(texts_of(4 * 2**20), folder=folder, vocab_size=16384)
    return tokenizer.definition(folder)


def batch_of(texts: list[str]) -> pa.RecordBatch:
    rows = range(len(texts))
    return pa.RecordBatch.from_pydict(
        {
            "doc_id": [f"{row:064x}" for row in rows],
            "sha256": [f"{row:064x}" for row in rows],
            "added": pa.array([0] * len(texts), pa.int64()),
            "split": ["train"] * len(texts),
            "num_bytes": pa.array([len(text.encode()) for text in texts], pa.int64()),
            "text": texts,
        }
    )


def compare(definition: tokenizer.Definition, *, num_bytes: int, rounds: int) -> None:
    texts = texts_of(num_bytes)
    batch = batch_of(texts)
    ours = tokenizer.Tokenizer(definition)
    alone = ours._fast  # the same object, so the same cache of words
    recipe = Recipe(buckets={0: 64}, compacted=-1, tokenizer=definition, seq_len=1024, seed=1, shard_bytes=2**23)
    seconds: dict[str, list[float]] = {"library": [], "tessera": []}
    num_tokens = 0
    for _ in range(rounds):
        gc.collect()
        began = time.process_time()
        for first, last in encode._stretches([len(text) for text in texts]):
            alone.encode_batch_fast(texts[first:last], add_special_tokens=False)
        seconds["library"].append(time.process_time() - began)
        gc.collect()
        began = time.process_time()
        made = list(encode.tokenize(batch, tokenizer=ours, recipe=recipe))
        seconds["tessera"].append(time.process_time() - began)
        num_tokens = sum(sum(part["num_tokens"].to_pylist()) for part in made)
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    for name, median in medians.items():
        print(f"{name:<8} {num_tokens / median / 1e6:.3f} M tokens/s ({median:.2f} s, {num_tokens:,} tokens)")
    print(f"tessera takes {medians['tessera'] / medians['library'] - 1:+.1%}")


def long_document(definition_folder: Path, *, num_bytes: int, whole: bool) -> None:
    definition = tokenizer.definition(definition_folder)
    text = "".join(texts_of(num_bytes)).encode()[:num_bytes].decode(errors="ignore")
    ours = tokenizer.Tokenizer(definition)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    if whole:
        ids = ours._fast.encode_batch_fast([text], add_special_tokens=False)[0].ids
    else:
        ids = ours.encode_arrays([text])[0]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    took = time.process_time() - began
    digest = hashlib.sha256(np.asarray(ids, np.uint32).tobytes()).hexdigest()[:16]
    how = "whole" if whole else "pieces"
    print(f"{how:<7} {len(text.encode()):,} bytes: {len(ids):,} tokens {digest}, {took:.1f} s, +{peak / 1024:,.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--long", type=int, help="MB of one document")
    parser.add_argument("--child", nargs=2, metavar=("HOW", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # as in Spark's workers
    if given.child:
        long_document(Path(given.child[1]), num_bytes=given.long * 10**6, whole=given.child[0] == "whole")
        return
    with tempfile.TemporaryDirectory() as folder:
        definition = trained(Path(folder))
        if given.long:
            for how in ("whole", "pieces"):
                again = [sys.executable, __file__, "--long", str(given.long), "--child", how, folder]
                subprocess.run(again, check=True)
            return
        compare(definition, num_bytes=given.mib * 2**20, rounds=given.rounds)


if __name__ == "__main__":
    main()
