"""What is remembered of every stage: which versions went in, what came out, and the fingerprint that ties them.

A record is the JSON of one of these classes. It is stored in the stage's publishing commit; the ledger is only a
projection of it. No record holds row text, a secret, or an absolute path inside the home.
"""

import hashlib
import json
import subprocess
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict

FORMAT = 1
"""The version of the record format; readers take this one and the one before."""


class Entry(BaseModel):
    """A frozen part of a record; keys of a newer format are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True, protected_namespaces=())


class TableVersion(Entry):
    """One Delta table at one version."""

    name: str
    """The logical name; the only part of this, with the version, that may enter a fingerprint."""
    path: str
    """Relative to the home when inside it; else the path or full table name as given."""
    version: int
    table_id: str = ""
    """The table's own identifier: tells two tables of one name apart before a recorded result is reused."""


class TokenizerRef(Entry):
    """A tokenizer folder and its identity."""

    path: str
    """Relative to the home when inside it."""
    sha256: str
    """Over the names and contents of its files: see `shard.tokenizer.identity`."""
    vocab_size: int
    end_id: int
    """The end-of-document token."""


class Record(Entry):
    """What every stage remembers."""

    format: int = FORMAT
    stage: str
    fingerprint: str
    inputs: tuple[TableVersion, ...] = ()
    seconds: float = 0.0
    code: str = ""
    """The code's commit; recorded, never compared."""
    created: str = ""
    """UTC, ISO 8601."""
    reused: bool = False
    error: str = ""
    """Of a stage that failed: what it said."""

    def to_json(self) -> str:
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        return cls.model_validate_json(text)


class SampleRecord(Record):
    stage: str = "sample"
    rows: int
    """Rows written."""
    table: TableVersion


class PrepareRecord(Record):
    stage: str = "prepare"
    rows: int
    """Rows read from the sources, after their row filters."""
    documents: int
    dropped: dict[str, int]
    """Rows dropped, by reason; `rows == documents + sum(dropped.values())`."""
    splits: dict[str, int]
    """Documents by split: `train`, `heldout`."""
    num_bytes: int
    table: TableVersion


class SplitTotals(Entry):
    """What one split of a shard set holds."""

    documents: int
    tokens: int
    """End-of-document tokens included, padding not."""
    num_bytes: int
    """UTF-8 bytes of the documents' text."""
    sequences: int
    padding: int
    """Tokens of padding."""
    shards: int


class ShardRecord(Record):
    stage: str = "shard"
    name: str
    manifest: TableVersion
    spans: TableVersion
    """The side table document -> shard, sample, token span, at its pinned version."""
    tokenizer: TokenizerRef
    seq_len: int
    tokens: int
    shards: int
    splits: dict[str, SplitTotals]
    fill: float
    """Tokens over token slots."""


class TrainRecord(Record):
    stage: str = "train"
    run: str
    """The run folder, relative to the home."""
    run_id: str
    """The MLflow run."""
    shard_set: TableVersion
    tokenizer: TokenizerRef
    steps: int
    train_tokens: int
    """Tokens of text that the model was trained on, padding not counted."""
    ranks: int
    parameters: int
    bits_per_byte_before: float
    """Held-out bits per byte of the untrained model."""
    checkpoint: str
    """The final checkpoint folder, relative to the home."""
    weights_sha256: str


class EvaluateRecord(Record):
    stage: str = "evaluate"
    run_id: str
    checkpoint: str
    weights_sha256: str
    bits_per_byte: float
    baselines: dict[str, float]
    """Bits per byte of gzip, unigram, bigram and trigram on the same held-out text."""
    passed: bool
    reasons: tuple[str, ...]
    """The gate's verdict, a sentence a condition."""
    table: TableVersion


class ServeRecord(Record):
    stage: str = "serve"
    model: str
    version: int
    aliases: tuple[str, ...]
    run_id: str
    weights_sha256: str


class ScoreRecord(Record):
    stage: str = "score"
    model: str
    version: int
    weights_sha256: str
    prompt: str
    """The template, its columns in braces."""
    request: str
    """What decides an answer besides the row: see `serve.answers.request_of`."""
    rows: int
    """Rows of the source; `rows == sum(skipped.values()) + found + answered + remaining`."""
    skipped: dict[str, int]
    """Rows that cannot be asked, by reason."""
    found: int
    """Rows that this version had answered before."""
    answered: int = 0
    """Rows answered in this run, up to this commit."""
    remaining: int
    """Rows without an answer after this commit."""
    finished: dict[str, int] = {}
    """Answered rows by finish reason."""
    prompt_tokens: int = 0
    tokens: int = 0
    """Tokens of the answers."""
    slices: int = 0
    """Commits of this run."""
    table: TableVersion


KINDS: dict[str, type[Record]] = {
    kind.model_fields["stage"].default: kind
    for kind in (SampleRecord, PrepareRecord, ShardRecord, TrainRecord, EvaluateRecord, ServeRecord, ScoreRecord)
}
"""The record of each stage: those of the line in its order, then scoring."""


def fingerprint(*, stage: str, semantics: int, inputs: Any, config: Any) -> str:
    """SHA-256 over everything that can change a stage's output.

    Args:
        semantics: the room's integer, raised when the same inputs give another output.
        inputs: JSON values that identify the inputs: names with versions, fingerprints, hashes; no path, no time.
        config: `Section.identity()` of the settings that matter.
    """
    return sha256_json({"stage": stage, "semantics": semantics, "inputs": inputs, "config": config})


def sha256_json(value: Any) -> str:
    """SHA-256 of the canonical JSON of `value`: sorted keys, no spaces, UTF-8."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def now() -> str:
    """This moment, UTC, ISO 8601 with microseconds: sorts as text."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


@lru_cache(maxsize=1)
def code_version() -> str:
    """The commit of the running code, with `+` when the tree differs from it; else the package's version."""
    from tessera import __version__

    here = Path(__file__).parent
    try:
        described = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"],
            capture_output=True, text=True, timeout=5, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return __version__
    return described.stdout.strip()
