"""Settings of evaluation: what decides the verdict, and how fast it is reached."""

from typing import Literal

from pydantic import Field, field_validator

from tessera.config import EXECUTION, Section

Baseline = Literal["gzip", "unigram", "bigram", "trigram"]


class GateSettings(Section):
    """What a checkpoint must reach to become champion."""

    max_bits_per_byte: float = Field(3.0, gt=0)
    """The largest held-out bits per byte that passes."""
    beat: tuple[Baseline, ...] = ("gzip", "unigram", "bigram")
    """Baselines whose bits per byte the model must stay below; all of them are computed and shown in any case."""

    @field_validator("beat")
    @classmethod
    def _once(cls, beat: tuple[Baseline, ...]) -> tuple[Baseline, ...]:
        if len(set(beat)) != len(beat):
            raise ValueError(f"{', '.join(beat)} names a baseline twice; keep one")
        return beat


class EvaluateSettings(Section):
    """How a checkpoint is scored on the held-out split."""

    batch_size: int = Field(16, ge=1, json_schema_extra=EXECUTION)
    """Sequences in one forward; changes speed and memory, and the sum only in its last bits."""
    device: Literal["auto", "cpu", "cuda"] = Field("auto", json_schema_extra=EXECUTION)
    """Where the model runs; `auto` takes a GPU if there is one."""
    gate: GateSettings = GateSettings()
