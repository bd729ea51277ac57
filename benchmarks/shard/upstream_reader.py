"""Reads a folder of MDS shards with mosaicml-streaming: the other side of reader.py, in an environment of its own.

A line on standard input asks for one measurement, a line on standard output gives its CPU seconds.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import streaming
from streaming import StreamingDataset


def main() -> None:
    folder, batch_size, num_batches = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    streaming.base.util.clean_stale_shared_memory()
    dataset = StreamingDataset(local=folder, shuffle=True, batch_size=batch_size, shuffle_seed=1)
    order = np.random.default_rng(1).permutation(dataset.num_samples)
    works: dict[str, Callable[[], int]] = {
        "getitem": lambda: by_number(dataset, order, batch_size=batch_size, num_batches=num_batches),
        "iterate": lambda: in_turn(iter(dataset), batch_size=batch_size, num_batches=num_batches),
    }
    print(json.dumps({"version": streaming.__version__, "samples": dataset.num_samples}), flush=True)
    for line in sys.stdin:
        began = time.process_time()
        samples = works[line.strip()]()
        print(json.dumps({"seconds": time.process_time() - began, "samples": samples}), flush=True)


def by_number(dataset: StreamingDataset, order: np.ndarray, *, batch_size: int, num_batches: int) -> int:
    """The cheapest path: samples of known numbers, a batch of tokens stacked."""
    for first in range(0, num_batches * batch_size, batch_size):
        samples = [dataset[int(number)] for number in order[first : first + batch_size]]
        np.stack([sample["tokens"] for sample in samples])
    return num_batches * batch_size


def in_turn(samples: Iterator[dict[str, np.ndarray]], *, batch_size: int, num_batches: int) -> int:
    """As a DataLoader without workers does: the data set's own shuffled iterator, a batch of tokens stacked."""
    for _ in range(num_batches):
        batch = [next(samples) for _ in range(batch_size)]
        np.stack([sample["tokens"] for sample in batch])
    return num_batches * batch_size


if __name__ == "__main__":
    main()
