"""MDS folders as others would write them, made by the room's own encoder; tests/interop has the original writer's."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tessera.shard.format import mds
from tessera.shard.format.compression import compress, parse
from tessera.shard.settings import ShardSettings


def write_folder(
    folder: Path, samples: Sequence[Mapping[str, Any]], *, columns: Mapping[str, str], size_limit: int = 2**14,
    compression: str | None = None, prefix: str = "",
) -> Path:  # fmt: skip
    """A folder with index.json, hashes and, wanted so, compressed files; `prefix` is a folder in it."""
    config = mds.make_config(columns, size_limit=size_limit, hashes=["sha256"], compression=compression)
    entries = []
    (folder / prefix).mkdir(parents=True, exist_ok=True)
    for number, (data, count) in enumerate(mds.shard_bytes(config, samples)):
        basename = f"{prefix}shard.{number:05d}.mds"
        zipped = None
        if compression:
            packed = compress(data, compression=compression)
            zipped = {"basename": f"{basename}.{parse(compression)[0]}", "bytes": len(packed),
                      "hashes": {"sha256": hashlib.sha256(packed).hexdigest()}}  # fmt: skip
            (folder / zipped["basename"]).write_bytes(packed)
        else:
            (folder / basename).write_bytes(data)
        entries.append(
            mds.index_entry(config, basename=basename, num_bytes=len(data), samples=count, zip_data=zipped,
                            hashes={"sha256": hashlib.sha256(data).hexdigest()})
        )  # fmt: skip
    (folder / "index.json").write_text(mds.index_json(entries))
    return folder


WORDS = ("array", "axis", "value", "shape", "matrix", "index", "dtype", "error", "number", "result", "漢字", "größe")


def settings(**changes: Any) -> ShardSettings:
    """Of a small set, `imported`, with several buckets and files."""
    values = {"name": "imported", "seq_len": 64, "shard_bytes": 2**16, "bucket_bytes": 15_000}
    return ShardSettings.model_validate({**values, "tokenizer": {"vocab_size": 320}, **changes})


def text_folder(folder: Path, *, number: int = 400, compression: str | None = None) -> tuple[Path, list[str]]:
    """Documents from a word to several sequences, and two blank ones, which are not in the list."""
    random = np.random.default_rng(number)
    texts = [
        f"{key} " + " ".join(random.choice(WORDS, int(random.integers(1, 40)) * (15 if key % 60 == 0 else 1)))
        for key in range(number)
    ]
    samples = [{"id": place, "text": text} for place, text in enumerate([*texts[:5], " \n", *texts[5:], ""])]
    write_folder(folder, samples, columns={"id": "int", "text": "str"}, compression=compression)
    return folder, texts
