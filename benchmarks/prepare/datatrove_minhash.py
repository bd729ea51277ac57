"""datatrove's MinHash over texts, a JSON string a line; `near_duplicates.py` starts it with datatrove's own Python.

    .venv-datatrove/bin/python benchmarks/prepare/datatrove_minhash.py TEXTS.jsonl FOLDER BANDS ROWS

Prints one line of JSON: CPU seconds by stage and the cluster of every document that has one. Imports are not counted.
"""

import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from datatrove.data import Document
from datatrove.pipeline.dedup.minhash import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupSignature,
)
from datatrove.utils.binaryio import read_tuples_from_file


def clusters(folder: Path) -> dict[int, int]:
    """Document -> cluster, of those in one of two or more."""
    with (folder / "000000.clusters").open("rb") as file:
        return dict(read_tuples_from_file(file, "2I", lines_to_buffer=1000))


def main(source: str, folder: str, bands: str, rows: str) -> None:
    config = MinhashConfig(num_buckets=int(bands), hashes_per_bucket=int(rows))
    signatures, buckets, found = (f"{folder}/{name}" for name in ("signatures", "buckets", "clusters"))
    texts = [json.loads(line) for line in Path(source).read_text(encoding="utf-8").splitlines()]
    documents = [Document(text=text, id=str(number)) for number, text in enumerate(texts)]
    signature = MinhashDedupSignature(signatures, config=config)
    list(map(signature.get_shingles, texts[:3]))  # loads the tokenizer
    bucket = MinhashDedupBuckets(signatures, buckets, config=config)
    stages: dict[str, Callable[[], object]] = {
        "signatures": lambda: signature.run(documents, rank=0, world_size=1),
        "clusters": lambda: (
            [bucket.run(rank=rank, world_size=config.num_buckets) for rank in range(config.num_buckets)],
            MinhashDedupCluster(buckets, found, config=config, save_cluster_id=True).run(),
        ),
    }
    seconds = {}
    for name, run in stages.items():
        began = time.process_time()
        run()
        seconds[name] = time.process_time() - began
    print(json.dumps({"version": version("datatrove"), "seconds": seconds, "clusters": clusters(Path(found))}))


if __name__ == "__main__":
    main(*sys.argv[1:])
