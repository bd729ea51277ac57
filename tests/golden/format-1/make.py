"""Makes home.tar.gz: a home as the released code of its time wrote it. Run once, by that code; kept for the record.

    git worktree add /tmp/wt 44e9ee2
    PYTHONPATH=/tmp/wt/pipelines TESSERA_CONF=/tmp/wt/conf .venv/bin/python tests/golden/format-1/make.py FOLDER

Two versions of the documents (the second appends), two of the set, a run of two steps, and the ledger of all. The
source table lies in the home, so that a later Tessera can go on from it.
"""

import hashlib
import random
import sys
import tarfile
from pathlib import Path

import pyarrow as pa
from deltalake import write_deltalake

from tessera.home import Home
from tessera.pipeline import Pipeline
from tessera.settings import load_settings

ASSIGNMENTS = (
    "prepare.sources=[{table: notes}]", "prepare.holdout=0.2", "prepare.min_chars=1", "shard.name=docs",
    "shard.seq_len=32", "shard.shard_bytes=65536", "shard.bucket_bytes=4096", "shard.tokenizer.vocab_size=300",
    "shard.tokenizer.sample_bytes=4096", "spark.driver_memory=1g", "train.steps=2", "train.ranks=1",
    "train.batch_size=4", "train.model.width=8", "train.model.layers=1", "train.model.heads=1",
    "train.model.kv_heads=1",
    "train.model.ffn_width=8", "train.model.tie_embeddings=true",
)  # fmt: skip
WORDS = ("array", "axis", "value", "shape", "matrix", "index", "error", "number", "result", "żółw", "🐢")


def notes(first: int, last: int) -> pa.Table:
    """Rows of a few words to a few sentences each; row n is the same in every version."""
    rows = []
    for number in range(first, last):
        chosen = random.Random(number)
        words = [chosen.choice(WORDS) for _ in range(chosen.randint(4, 90))]
        rows.append({"id": f"note-{number}", "text": f"{number} " + " ".join(words)})
    return pa.Table.from_pylist(rows)


def main(folder: Path) -> None:
    home = Home(folder / "home")
    pipeline = Pipeline(load_settings("local", assignments=ASSIGNMENTS), home=home)
    for first, last in ((0, 30), (30, 36)):
        write_deltalake(home.tables / "notes", notes(first, last), mode="append")
        pipeline.do("prepare")
        pipeline.do("shard")
    pipeline.do("train")
    pipeline.close()
    archive = folder / "home.tar.gz"
    with tarfile.open(archive, "w:gz", compresslevel=9) as tar:
        for name in ("tables", "shards", "tokenizers", "runs"):
            tar.add(home.root / name, arcname=name)
    print(archive.stat().st_size, hashlib.sha256(archive.read_bytes()).hexdigest())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
