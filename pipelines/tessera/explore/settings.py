"""What the map shows. Imports pydantic only."""

from typing import Literal

from pydantic import Field

from tessera.config import EXECUTION, Section


class ExploreSettings(Section):
    """Decides what is drawn; no result of another stage depends on it."""

    quality: Literal["heldout_bits_per_byte", "eval/bits_per_byte"] = Field(
        "heldout_bits_per_byte", json_schema_extra=EXECUTION
    )
    """The measure of quality, lower is better: of the first `train.heldout.sequences` held-out sequences, which every
    run takes, or of the whole held-out split, which `tessera evaluate` takes and which compares tokenizers too."""
    max_runs: int = Field(1000, ge=1, json_schema_extra=EXECUTION)
    """Training runs shown, the newest; the page says how many older ones it leaves out."""
    curve_points: int = Field(120, ge=2, json_schema_extra=EXECUTION)
    """Points of a run's curve; a longer one is thinned by means of neighbouring steps."""
