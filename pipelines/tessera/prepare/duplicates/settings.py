"""When two documents count as nearly the same, and how candidates for that are found."""

from typing import Self

from pydantic import Field, model_validator

from tessera.config import Section

MIN_FOUND = 0.9
MAX_SIGNATURE = 1024


class NearDuplicateSettings(Section):
    """Everything that decides which documents are near-duplicates; see `minhash` for the curve of the defaults."""

    threshold: float = Field(0.8, gt=0, le=1)
    """Share of two documents' shingles that they have in common (Jaccard similarity), from which they count as one."""
    shingle_words: int = Field(5, ge=1, le=100)
    """Words of a shingle; fewer find more that is alike by chance."""
    bands: int = Field(28, ge=1)
    """Buckets that a document lies in; two that share one are compared. More of them miss fewer pairs and cost more."""
    rows: int = Field(8, ge=1)
    """Minima that must agree for a bucket to be shared. More of them compare fewer pairs in vain and miss more."""

    @model_validator(mode="after")
    def _finds_what_is_asked(self) -> Self:
        if self.bands * self.rows > MAX_SIGNATURE:
            raise ValueError(f"bands x rows is {self.bands * self.rows}, at most {MAX_SIGNATURE} minima; lower one")
        found = candidate_share(self.threshold, bands=self.bands, rows=self.rows)
        if found < MIN_FOUND:
            raise ValueError(
                f"bands {self.bands} and rows {self.rows} find {found:.0%} of the pairs at threshold {self.threshold}, "
                f"wanted {MIN_FOUND:.0%}; give more bands or fewer rows"
            )
        return self


def candidate_share(similarity: float, *, bands: int, rows: int) -> float:
    """The chance that two documents of this similarity share a bucket: 1 - (1 - s^rows)^bands (the S-curve)."""
    return float(1 - (1 - similarity**rows) ** bands)
