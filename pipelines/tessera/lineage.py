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

from pydantic import BaseModel, ConfigDict, field_validator

from tessera.errors import FormatError

FORMAT = 2
"""Of records, and of the tables that they publish; readers take this one and the one before.

2: documents records know their generations, shard records their recipe, and manifest rows what their cell holds."""


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
    holds_text: tuple[str, ...] = ()
    """Where row text may lie because of this stage, relative to the home: what `forget` has to look through."""

    @field_validator("format")
    @classmethod
    def _readable(cls, found: int) -> int:
        check_format(found, known=FORMAT, what="a stage's record")
        return found

    def to_json(self) -> str:
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        return cls.model_validate_json(text)


class SampleRecord(Record):
    stage: str = "sample"
    holds_text: tuple[str, ...] = ("tables/python_docs",)
    rows: int
    """Rows written."""
    table: TableVersion


class Generation(Entry):
    """The documents that one documents version brought, as they were then; it stays when they are gone."""

    added: int
    """The documents version."""
    documents: int
    num_bytes: int
    all_bytes: int = 0
    """Of all documents of that version, those of older generations included; 0 where that was not recorded."""


class AuditHead(Entry):
    """The newest entry of the audit table when a stage published: see `audit`."""

    seq: int
    hash: str


class PrepareRecord(Record):
    stage: str = "prepare"
    holds_text: tuple[str, ...] = ("tables/documents", "reports/prepare.html", "spark")
    rows: int
    """Rows read from the sources, after their row filters."""
    documents: int
    dropped: dict[str, int]
    """Rows dropped, by reason; `rows == documents + sum(dropped.values())`."""
    splits: dict[str, int]
    """Documents by split: `train`, `heldout`."""
    num_bytes: int
    table: TableVersion
    base: str = ""
    """The fingerprint without erasures; empty where there were none."""
    forgot: int | None = None
    """The documents version that this one is without its erased rows; null for one that prepare wrote."""
    generations: tuple[Generation, ...] = ()
    """All that there ever were, oldest first: they decide the number of buckets of a shard set's generations."""
    decisions: TableVersion | None = None
    """The side table that says what became of each row, at its pinned version; null before there was one."""
    rules: str = ""
    """Hash of what rows were judged by; where it differs, all are judged again."""
    recipes: dict[str, str] = {}
    """Source -> hash of how its rows are read."""
    purposes: dict[str, tuple[str, ...]] = {}
    """Source -> what it may be used for; empty: it declares nothing."""
    changes: dict[str, str] = {}
    """Source -> how its changes are known: `same`, `feed`, `compared`, `whole`, `gone`; empty: all rows were judged."""
    content: str = ""
    """The fingerprint of the prepare that first gave just these documents; empty: of this one."""
    content_version: int | None = None
    """The documents version that it made; null: this one. What is made of documents need not be made again while they
    stay the same."""
    moved: int = 0
    """Documents that changed their split, since clusters of near-duplicates did."""
    audit: AuditHead | None = None


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


class GenerationTotals(Entry):
    """What one generation of a shard set holds; its tokens over its bytes show drift from the tokenizer's text."""

    generation: int
    documents: int
    tokens: int
    num_bytes: int
    sequences: int
    shards: int


class SourceTotals(Entry):
    """What one source gave to a shard set, and what truncation took of it."""

    source: str
    documents: int
    tokens: int
    loss_tokens: int
    """Tokens that count in the loss."""
    num_bytes: int
    truncated: int
    """Conversations and preferences that did not fit a sequence."""
    truncated_tokens: int
    dropped_turns: int
    cuts: int
    """Places where a document goes on in another sequence."""


class ShardRecord(Record):
    stage: str = "shard"
    holds_text: tuple[str, ...] = ("shards", "spark", "cache")
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
    settings: dict[str, Any] = {}
    """`ShardSettings.identity()`: with the tokenizer, all that decides the files beside the documents."""
    recipe: str = ""
    """Hash of what decides a file beside its cell's documents: cells of an equal recipe are kept."""
    compactions: tuple[int, ...] = ()
    """Documents versions up to which generations were made one, ascending."""
    generations: tuple[GenerationTotals, ...] = ()
    sources: tuple[SourceTotals, ...] = ()
    written: int = 0
    """Documents that were tokenized and packed for this version; the others lie in files that were kept."""
    direct: bool = False
    """Whether files may be absent: readers then make them from the documents; see `shard.read.direct`."""
    kept_shards: int = 0
    """Files taken over from the version before."""

    @property
    def imported(self) -> bool:
        """Whether it was made of an MDS folder, and not of documents."""
        return self.inputs[0].name.startswith("mds:")


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


class TaskScore(Entry):
    """How a model did on one task, in its primary metric."""

    metric: str
    value: float
    low: float
    high: float
    """95 % interval, by bootstrap over items."""
    n: int
    chance: float = 0.0
    left_out: int = 0
    """Items of documents that the model was trained on: they do not count."""


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
    scores: dict[str, TaskScore] = {}
    """By task."""
    failures: dict[str, str] = {}
    """Tasks without a score -> why."""
    gauntlet: dict[str, float | None] = {}
    """Category, and `overall` -> score above chance; null: incomplete."""
    contaminated: dict[str, int] = {}
    """Task -> items whose text stands in the training split."""
    safety: dict[str, float] = {}
    """What was measured about private data: see `evaluate.safety`."""
    latency_ms: float | None = None
    """Median time to a next token; null: not measured."""
    met: str | None = None
    """The weights of the champion that it was held against, empty where there was none; null: it was not."""
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
    holds_text: tuple[str, ...] = ("tables/answers", "spark")
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


class ErasureRecord(Record):
    """Of a version of `tables/erasures`, or of `tables/answers` without the answers that it names."""

    stage: str = "erasure"
    rows: int
    """Pairs of id and content hash that were added, or answers that were removed."""
    table: TableVersion


class RowsSeenRecord(Record):
    """The rows that one training run saw, in `tables/rows_seen`."""

    stage: str = "rows_seen"
    run: str
    """The run folder's name."""
    steps: int
    table: TableVersion


class ForgetRecord(Record):
    """What one `forget` did, in all rooms."""

    stage: str = "forget"
    rows: int
    """Rows that were to be forgotten."""
    holders: dict[str, tuple[int, int]]
    """Where their text was found -> files that held it before, and after."""
    runs: dict[str, int]
    """Training runs that saw them -> how many of them; their weights are what they were."""
    models: tuple[str, ...]
    """The registered versions of those runs, now tagged."""
    unsearchable: int
    """Rows without a stretch of text of their own: too short, or all of it in rows that stay."""
    table: TableVersion
    """The erasures, at the version that holds these."""


KINDS: dict[str, type[Record]] = {
    kind.model_fields["stage"].default: kind
    for kind in (
        SampleRecord, PrepareRecord, ShardRecord, TrainRecord, EvaluateRecord, ServeRecord, ScoreRecord, ErasureRecord,
        ForgetRecord,
    )
}  # fmt: skip
"""The record of each stage: those of the line in its order, then scoring and forgetting."""


def fingerprint(*, stage: str, semantics: int, inputs: Any, config: Any) -> str:
    """SHA-256 over everything that can change a stage's output.

    Args:
        semantics: the room's integer, raised when the same inputs give another output.
        inputs: JSON values that identify the inputs: names with versions, fingerprints, hashes; no path, no time.
        config: `Section.identity()` of the settings that matter.
    """
    return sha256_json({"stage": stage, "semantics": semantics, "inputs": inputs, "config": config})


def check_format(found: object, *, known: int, what: str, remedy: str = "make it again") -> None:
    """Refuses what is stored in another format than this Tessera's, `known`, or the one before.

    Args:
        what: names the thing that is stored, best by its path.
        remedy: what to do about one that is older.

    Raises:
        FormatError: naming both formats; of a newer one, that it is.
    """
    if found in (known, known - 1):
        return
    newer = isinstance(found, int) and found > known
    advice = "it was written by a newer Tessera; use that" if newer else f"it is too old, or not ours; {remedy}"
    raise FormatError(f"{what} has format {found}, this Tessera reads {known - 1} and {known}: {advice}")


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
