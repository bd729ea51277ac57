"""Settings of evaluation: what is asked, what decides the verdict, and how fast it is reached."""

from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from tessera.config import EXECUTION, Section

Baseline = Literal["gzip", "unigram", "bigram", "trigram"]
TaskKind = Literal["multiple_choice", "schema", "language_modeling", "generation", "code", "perplexity"]
BuiltIn = Literal["reading", "reading_pairs", "knowledge", "signatures", "dyck", "operators", "arithmetic", "ordering"]
BUILT_IN: tuple[BuiltIn, ...] = (
    "reading", "reading_pairs", "knowledge", "signatures", "dyck", "operators", "arithmetic", "ordering",
)  # fmt: skip
PROBLEM = "problem"
"""The name under which the one problem is scored."""


class TaskSettings(Section):
    """A benchmark from a file or a table."""

    name: str
    """What its score is called."""
    path: str | None = None
    """A file of JSON lines, or a Delta table's folder."""
    table: str | None = None
    """Instead of `path`: a table of the home."""
    version: int | None = None
    """Of the table; the latest without it."""
    kind: TaskKind | None = None
    """What its rows hold; without it the keys of the first row decide."""
    category: str = ""
    """Of the gauntlet."""
    metric: str = ""
    """The primary metric; without it the first of its kind."""
    prompt: str | None = None
    """A template over the row's columns, `Question: {query}`; without it the row's own query or context."""
    delimiter: str = " "
    """Between a prompt and a continuation."""
    shots: int = Field(0, ge=0, le=64)
    """Solved examples in front of each prompt, drawn from the other rows."""
    shot_delimiter: str = "\n\n"
    """Between them."""
    seed: int = 17
    """Of the draw of examples, and of answers that are sampled."""
    limit: int | None = Field(None, ge=1)
    """The first so many rows."""
    max_tokens: int = Field(64, ge=1)
    """Of a generated answer."""
    stop: tuple[str, ...] = ("\n",)
    """A generated answer ends before the first of these."""
    temperature: float = Field(0.0, ge=0, le=2)
    """Of generated answers; 0 is greedy."""
    samples: int = Field(1, ge=1, le=256)
    """Answers of each prompt, for pass@k."""
    ks: tuple[Annotated[int, Field(ge=1)], ...] = (1,)
    """Of pass@k."""
    chance: float | None = Field(None, ge=0, lt=1)
    """Accuracy by chance; without it one over the choices."""

    @model_validator(mode="after")
    def _one_place(self) -> "TaskSettings":
        if (self.path is None) == (self.table is None):
            raise ValueError("give path or table")
        if max(self.ks, default=1) > self.samples:
            raise ValueError(f"pass@{max(self.ks)} wants as many samples, found samples: {self.samples}")
        return self


class ProblemSettings(Section):
    """The one problem that the organisation trains for: its own table, template and metric; the headline score."""

    table: str
    """A table of the home, or a Delta table's folder."""
    version: int | None = None
    """The latest without it."""
    id: str | None = None
    """Column of the row key, where rows are documents too: those that a model was trained on are left out."""
    prompt: str = Field(min_length=1)
    """A template over the columns: `{signature}`."""
    reference: str = Field(min_length=1)
    """A template over the columns: what the answer should be."""
    metric: Literal["exact_match", "f1", "bits_per_byte", "choice"] = "f1"
    """`choice` asks which of five references is the row's own, by likelihood; `bits_per_byte` is of the reference."""
    where: dict[str, str] = Field(default_factory=dict)
    """Column -> value that a row must have."""
    split: Literal["heldout", "all"] = "heldout"
    """`heldout`: the rows of held-out documents, by the same hash as prepare's; `all`: every row."""
    limit: int = Field(300, ge=1)
    """Rows, the first by the hash of their content."""
    max_tokens: int = Field(48, ge=1)
    """Of an answer."""
    stop: tuple[str, ...] = ("\n",)
    """An answer ends before the first of these."""
    seed: int = 17
    """Of the draw of wrong choices."""


class CanarySettings(Section):
    """Secrets of our own that are planted, to measure what a model remembers."""

    levels: tuple[Annotated[int, Field(ge=1)], ...] = (1, 4, 16)
    """How often each canary of a level stands in the table."""
    per_level: int = Field(20, ge=2)
    """Canaries of a level, and as many that are never planted."""
    seed: int = 17
    """Decides their text."""
    candidates: int = Field(1000, ge=10)
    """Texts of the same form that each is ranked among: exposure is at most log2(candidates + 1)."""


class SafetySettings(Section):
    """What is measured about private data."""

    canaries: CanarySettings | None = None
    """Set it where `tables/canaries` was written and prepared: `tessera canaries`."""
    extraction: int = Field(0, ge=0)
    """Training documents whose beginning is given, to see whether the model goes on word for word; 0 leaves it out."""
    emission: int = Field(0, ge=0)
    """Texts that are sampled from the model and searched for personal data, counted by type; 0 leaves it out."""


class NonInferiority(Section):
    """How a challenger is held against the champion."""

    task: str
    """Of the tasks, `heldout` (bits per byte by document) or `problem`."""
    margin: float = Field(gt=0)
    """How much worse it may be: the 95 % bound of the paired difference must stay within; in the metric's unit."""


class GateSettings(Section):
    """What a checkpoint must reach to become champion."""

    max_bits_per_byte: float = Field(3.0, gt=0)
    """The largest held-out bits per byte that passes."""
    beat: tuple[Baseline, ...] = ("gzip", "unigram", "bigram")
    """Baselines whose bits per byte the model must stay below; all of them are computed and shown in any case."""
    at_least: dict[str, float] = Field(default_factory=dict)
    """Task, category or `overall` -> the least score that passes."""
    not_worse: tuple[NonInferiority, ...] = ()
    """Held against the champion, where there is one."""
    max_exposure: float | None = Field(None, gt=0)
    """The greatest mean exposure, in bits above the held-out canaries', of canaries planted once."""
    max_latency_ms: float | None = Field(None, gt=0)
    """The greatest median time to a next token, one prompt at a time, on the machine that evaluates."""

    @field_validator("beat")
    @classmethod
    def _once(cls, beat: tuple[Baseline, ...]) -> tuple[Baseline, ...]:
        if len(set(beat)) != len(beat):
            raise ValueError(f"{', '.join(beat)} names a baseline twice; keep one")
        return beat


class EvaluateSettings(Section):
    """How a checkpoint is scored."""

    batch_size: int = Field(16, ge=1, json_schema_extra=EXECUTION)
    """Sequences in one forward; changes speed and memory, and the sum only in its last bits."""
    batch_tokens: int = Field(4096, ge=64, json_schema_extra=EXECUTION)
    """Tokens in one forward over the items of tasks, padding included."""
    device: Literal["auto", "cpu", "cuda"] = Field("auto", json_schema_extra=EXECUTION)
    """Where the model runs; `auto` takes a GPU if there is one."""
    ranks: int = Field(1, ge=1, json_schema_extra=EXECUTION)
    """Processes that the items are shared out over, by TorchDistributor; 1 stays in this one."""
    built_in: tuple[BuiltIn, ...] = ()
    """Benchmarks that are made here, of held-out documents, tables and a seed."""
    items: int = Field(200, ge=10)
    """Of each built-in benchmark."""
    seed: int = 17
    """Of the built-in benchmarks."""
    tasks: tuple[TaskSettings, ...] = ()
    """Benchmarks from files and tables."""
    gauntlet: str | None = None
    """A file of categories, beside base.yaml: `gauntlet.yaml`; its tasks come on top of `tasks`."""
    problem: ProblemSettings | None = None
    """The one problem."""
    document_start: bool = False
    """Whether a context starts with the end token, as a training document does; lm-evaluation-harness leaves it out."""
    safety: SafetySettings = SafetySettings()
    gate: GateSettings = GateSettings()

    @field_validator("gauntlet")
    @classmethod
    def _in_conf(cls, gauntlet: str | None) -> str | None:
        if gauntlet is not None and PurePosixPath(gauntlet).suffix not in (".yaml", ".yml"):
            raise ValueError("name a YAML file")
        return gauntlet
