"""What a rank knows of a shard set: one Arrow file, `shards.arrow`, in the run folder; needs pyarrow only.

The driver resolves the Delta manifest at a version into it once; ranks open nothing else, so that they need no Delta
library and never see a newer version. A row is a shard file; the schema's metadata says what the set is.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from tessera.errors import ShardSetError
from tessera.lineage import sha256_file

FORMAT = 1

SPLITS = ("train", "heldout")

SCHEMA = pa.schema(
    [
        ("split", pa.string()),
        ("generation", pa.int64()),
        ("bucket", pa.int64()),
        ("ordinal", pa.int64()),
        ("file", pa.string()),
        ("num_bytes", pa.int64()),
        ("sha256", pa.string()),
        ("samples", pa.int64()),
        ("tokens", pa.int64()),
        ("text_bytes", pa.int64()),
        ("documents", pa.int64()),
        ("padding", pa.int64()),
        ("buckets", pa.int64()),
    ]
)

ROW_ORDER = ("split", "generation", "bucket", "ordinal")


@dataclass(frozen=True)
class ShardFile:
    """One row of a manifest."""

    split: str
    generation: int
    """The documents version in which its documents first appeared."""
    bucket: int
    """Leading bits of its documents' ids."""
    ordinal: int
    """Counts the files of one cell and split."""
    file: str
    """Relative to the set's folder."""
    num_bytes: int
    sha256: str
    samples: int
    tokens: int
    """End-of-document tokens included, padding not."""
    text_bytes: int
    """UTF-8 bytes of the documents that begin in this file."""
    documents: int
    """Documents that begin in this file."""
    padding: int
    buckets: int
    """Buckets of the generation, a power of two: fixed when the generation is first written."""


@dataclass(frozen=True)
class SetInfo:
    """What a set is, apart from its files."""

    name: str
    version: int
    """The manifest's version."""
    seq_len: int
    end_id: int
    vocab_size: int
    tokenizer: str
    """SHA-256 of the tokenizer folder."""
    root: str
    """The set's folder, relative to the home."""

    @property
    def dtype(self) -> str:
        """Type of a stored token: the smallest that holds the vocabulary."""
        return token_dtype(self.vocab_size)

    def to_metadata(self) -> dict[bytes, bytes]:
        """Arrow schema metadata, the dtype and the format spelled out."""
        values = {**self.__dict__, "dtype": self.dtype, "format": FORMAT}
        return {f"tessera.{key}".encode(): str(value).encode() for key, value in values.items()}

    @classmethod
    def from_metadata(cls, metadata: dict[bytes, bytes] | None) -> "SetInfo":
        """The inverse of `to_metadata`.

        Raises:
            ShardSetError: no metadata of ours, or of a format that is not known.
        """
        found = {key.decode().removeprefix("tessera."): value.decode() for key, value in (metadata or {}).items()}
        if found.get("format") not in {str(FORMAT), str(FORMAT - 1)}:
            raise ShardSetError(
                f"the run's shards.arrow has format {found.get('format')}, wanted {FORMAT}; start a new run"
            )
        numbers = {key: int(found[key]) for key in ("version", "seq_len", "end_id", "vocab_size")}
        return cls(name=found["name"], tokenizer=found["tokenizer"], root=found["root"], **numbers)


def token_dtype(vocab_size: int) -> str:
    """`uint16`, or `uint32` for a vocabulary of more than 65,536 entries."""
    return "uint16" if vocab_size <= 2**16 else "uint32"


def write_run_manifest(table: pa.Table, path: Path) -> str:
    """Writes a manifest, as `read_manifest` gives it, as the Arrow file `path`; returns the file's SHA-256.

    It takes its name only when it is complete.
    """
    SetInfo.from_metadata(table.schema.metadata)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("wb") as file:
        with pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table.combine_chunks())
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    return sha256_file(path)


def read_run_manifest(path: Path) -> pa.Table:
    """The manifest of a run, memory-mapped.

    Raises:
        ShardSetError: the file is absent or is not Arrow.
    """
    try:
        with pa.memory_map(str(path)) as source:
            return pa.ipc.open_file(source).read_all()
    except (OSError, pa.ArrowInvalid) as error:
        reason = str(error).splitlines()[0][:200]
        raise ShardSetError(f"{path} cannot be read as a run's shard manifest ({reason}); start a new run") from None


def shard_files(table: pa.Table, *, split: str) -> Iterator[ShardFile]:
    """The rows of one split, in the manifest's order."""
    for row in table.to_pylist():
        if row["split"] == split:
            yield ShardFile(**row)
