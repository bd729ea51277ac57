"""Which evaluation sets documents must not share text with, and what happens to those that do."""

from typing import Literal

from pydantic import Field, field_validator

from tessera.config import EXECUTION, Section


class EvaluationSetSettings(Section):
    """One evaluation set: a file of items."""

    name: str = Field(pattern=r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
    """What the set is called in reasons and counts."""
    path: str = Field(json_schema_extra=EXECUTION)
    """A file of JSON lines (.jsonl, .ndjson), .parquet, .csv or plain text (.txt, an item a line), compressed or not,
    or a folder that holds a Delta table. Its contents decide the outcome, wherever it lies."""
    columns: tuple[str, ...] | None = None
    """The columns whose texts, or lists of texts, are looked for; null takes all that hold such."""


class DecontaminateSettings(Section):
    """Documents that have a run of words in common with an evaluation set."""

    sets: tuple[EvaluationSetSettings, ...] = Field(min_length=1)
    """In the order in which they are tried: a document is counted for the first that it shares text with."""
    ngram_words: int = Field(13, ge=1, le=100)
    """Words of a run, as GPT-3 was cleaned (Brown et al. 2020, appendix C); items of fewer words are not looked for."""
    action: Literal["drop", "flag"] = "drop"
    """Documents found are dropped, or kept and named in `tables/decisions`."""
    min_ngrams: int = Field(1, ge=1)
    """Places of a document at which a run of an evaluation set must begin, for it to count as found."""
    min_share: float = Field(0.0, ge=0, le=1)
    """Share of all runs of a document that these must be as well; 0.8 finds only what is an evaluation set for the most
    part."""

    @field_validator("sets")
    @classmethod
    def _distinct(cls, sets: tuple[EvaluationSetSettings, ...]) -> tuple[EvaluationSetSettings, ...]:
        names = [one.name for one in sets]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two evaluation sets are called {twice[0]!r}; give each its own name")
        return sets
