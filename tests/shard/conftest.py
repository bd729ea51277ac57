"""Small shard sets made without Spark: documents of random tokens, packed and written by the room's own parts."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tessera.shard.format import mds
from tessera.shard.pack import Packed, Packing, pack
from tessera.shard.read import batches
from tessera.shard.read.shards import Shards
from tessera.shard.run_manifest import SCHEMA, SetInfo, write_run_manifest

END = 0


@dataclass(frozen=True)
class SmallSet:
    """A set on disk, and the documents that went into it."""

    folder: Path
    run_manifest: Path
    documents: dict[str, list[np.ndarray]]
    """By split, each with its end token."""

    def open(self, split: str = "train") -> Shards:
        return batches.open_split(self.run_manifest, split=split, shards_root=self.folder)


MakeSet = Callable[..., SmallSet]


def make_documents(num_documents: int, *, longest: int, seed: int, dtype: str = "uint16") -> list[np.ndarray]:
    """Random tokens 1 .. 499, each document closed by the end token."""
    random = np.random.default_rng(seed)
    lengths = random.integers(1, longest, num_documents)
    return [np.append(random.integers(1, 500, length), END).astype(dtype) for length in lengths]


def make_keys(documents: list[np.ndarray]) -> np.ndarray:
    """Two words of each document's hash, as its identity."""
    digests = b"".join(hashlib.sha256(document.tobytes()).digest()[:16] for document in documents)
    return np.frombuffer(digests, "<u8").reshape(-1, 2)


def pack_documents(
    documents: list[np.ndarray], *, seq_len: int, seed: int = 3, packing: Packing = "best-fit",
    loss: list[np.ndarray] | None = None,
) -> Packed:  # fmt: skip
    lengths = np.array([len(document) for document in documents])
    return pack(
        np.concatenate(documents), lengths=lengths, keys=make_keys(documents), seq_len=seq_len, end_id=END, seed=seed,
        packing=packing, loss_N=None if loss is None else np.concatenate(loss).astype(np.uint8),
    )  # fmt: skip


@pytest.fixture
def make_set(tmp_path: Path) -> MakeSet:
    return set_maker(tmp_path)


def set_maker(tmp_path: Path) -> MakeSet:
    """Makes sets in a folder."""

    def make(
        *, num_documents: int = 300, longest: int = 90, seq_len: int = 32, shard_bytes: int = 2**12,
        dtype: str = "uint16", name: str = "small", version: int = 0,
    ) -> SmallSet:  # fmt: skip
        folder = tmp_path / "shards" / name
        columns = {"starts": "ndarray:uint16", "tokens": f"ndarray:{dtype}:{seq_len}"}
        config = mds.make_config(columns, size_limit=shard_bytes, hashes=["sha256"])
        rows: list[dict[str, object]] = []
        documents = {}
        for split, number in (("heldout", num_documents // 10), ("train", num_documents)):
            documents[split] = make_documents(number, longest=longest, seed=len(split), dtype=dtype)
            packed = pack_documents(documents[split], seq_len=seq_len)
            (folder / split).mkdir(parents=True, exist_ok=True)
            files = mds.token_shards(
                packed.tokens_ST, starts_P=packed.starts_P, num_starts_S=packed.num_starts_S, config=config
            )
            for ordinal, (data, samples) in enumerate(files):
                file = f"{split}/{ordinal}.mds"
                (folder / file).write_bytes(data)
                rows.append(
                    {"split": split, "generation": 0, "bucket": 0, "ordinal": ordinal, "file": file, "buckets": 1,
                     "num_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "samples": samples,
                     "tokens": 0, "text_bytes": 0, "documents": 0, "padding": 0}
                )  # fmt: skip
        info = SetInfo(
            name=name, version=version, seq_len=seq_len, end_id=END, tokenizer="0" * 64, root=f"shards/{name}",
            vocab_size=500 if dtype == "uint16" else 100_000,
        )  # fmt: skip
        table = pa.Table.from_pylist(rows, schema=SCHEMA).replace_schema_metadata(info.to_metadata())
        write_run_manifest(table, tmp_path / "shards.arrow")
        return SmallSet(folder=folder, run_manifest=tmp_path / "shards.arrow", documents=documents)

    return make
