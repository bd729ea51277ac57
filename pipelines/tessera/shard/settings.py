"""What decides the bytes of a shard set, and the order in which training reads it."""

import re
from typing import Any, Literal

from pydantic import Field, field_validator

from tessera.config import EXECUTION, Section

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


class TokenizerSettings(Section):
    """Which tokenizer the set is written with: one trained on the set's own documents, or a local folder."""

    path: str | None = Field(None, min_length=1, json_schema_extra=EXECUTION)
    """A local folder with tokenizer.json; null trains one. Its contents enter the fingerprint, not its place."""
    vocab_size: int = Field(4096, ge=257, le=2**20)
    """Entries of a trained tokenizer: the 256 bytes, the end token, and the merges."""
    sample_bytes: int = Field(16 * 2**20, ge=2**10)
    """Text it is trained on, from the train split, chosen by smallest content hash; the driver holds this much."""
    max_uncut_bytes: int = Field(16 * 2**20, ge=2**10, json_schema_extra=EXECUTION)
    """Largest document that may be encoded in one piece, where the tokenizer's rules do not say surely where a text can
    be cut; takes some 130 bytes of memory a byte. Others are encoded in pieces, whatever their size."""


class ShardSettings(Section):
    """Everything that decides the bytes of a shard set, and the order of its samples."""

    name: str = "default"
    """The set's name: its folder is `shards/NAME`."""
    seq_len: int = Field(256, ge=16, le=65536)
    """Tokens in a packed sequence, end-of-document tokens included."""
    packing: Literal["best-fit", "concat", "none"] = "best-fit"
    """How documents fill sequences: whole where they fit; end to end, cut where a sequence ends; or one in each."""
    truncate: Literal["turns", "refuse"] = "turns"
    """A conversation or preference longer than a sequence loses its later turns, or its prompt's beginning, and then
    the end of an answer, each counted; or it is refused. Text is never truncated."""
    seed: int = Field(17, ge=0, lt=2**63)
    """Decides the place of a packed sequence within its cell."""
    shard_bytes: int = Field(8 * 2**20, ge=2**16, lt=2**32)
    """Largest shard file, in bytes."""
    bucket_bytes: int = Field(8 * 2**20, ge=2**10)
    """Text that a bucket aims at, in bytes; a generation has a power of two of them."""
    compact_through: int | None = Field(None, ge=0, json_schema_extra=EXECUTION)
    """Documents added up to this documents version are one generation; null keeps what the set has. `tessera shard
    compact` gives the newest. Enters the fingerprint by what comes of it."""
    compact_after: int | None = Field(None, ge=1, json_schema_extra=EXECUTION)
    """A set that would have more generations than this is compacted by itself; null leaves it to `tessera shard
    compact`. Costs what writing the whole set does."""
    mode: Literal["sharded", "direct"] = Field("sharded", json_schema_extra=EXECUTION)
    """`direct` stores no shard files: they are planned, named and hashed as ever, and made again in memory where they
    are read, from the documents."""
    block_shards: int = Field(16, ge=1, le=4096, json_schema_extra=EXECUTION)
    """Order of training: samples of this many shards are shuffled together."""
    retain_versions: int | None = Field(None, ge=1, json_schema_extra=EXECUTION)
    """`tessera gc` keeps the files of the newest so many versions of a set, and of those that runs were given; null and
    no `retain_days` keeps all: time travel is a promise."""
    retain_days: float | None = Field(None, ge=0, json_schema_extra=EXECUTION)
    """The same for what was the newest version at some moment of the last so many days; either keeps a version."""
    tokenizer: TokenizerSettings = TokenizerSettings()

    @field_validator("name")
    @classmethod
    def _plain(cls, name: str) -> str:
        if not NAME.fullmatch(name):
            raise ValueError("a set's name holds 1 to 64 letters, digits, '_' and '-', and begins with neither sign")
        return name

    def identity(self) -> dict[str, Any]:
        """With a tokenizer folder, what would train one decides nothing: its contents enter by hash instead."""
        values = super().identity()
        if self.tokenizer.path is not None:
            values["tokenizer"] = {}
        return values
