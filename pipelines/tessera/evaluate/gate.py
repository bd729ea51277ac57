"""The gate: scores in, a verdict with a sentence for each condition out. A pure function; nothing is read or moved."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from tessera.evaluate.settings import GateSettings


@dataclass(frozen=True)
class Verdict:
    """Whether a checkpoint may become champion, and why."""

    passed: bool
    reasons: tuple[str, ...]
    """One sentence a condition, met or not, in the order of the settings."""


def judge(bits_per_byte: float, *, baselines: Mapping[str, float], settings: GateSettings) -> Verdict:
    """Holds `bits_per_byte` against the limit and against each baseline in `settings.beat`, which it must stay below.

    A score that is not finite meets no condition.
    """
    conditions = [
        _condition(
            bits_per_byte,
            met=bits_per_byte <= settings.max_bits_per_byte,
            limit=f"at most {settings.max_bits_per_byte:.4f}, the limit",
        )
    ]
    for name in settings.beat:
        beaten = bits_per_byte < baselines[name]
        conditions.append(_condition(bits_per_byte, met=beaten, limit=f"below {baselines[name]:.4f}, the {name}"))
    return Verdict(passed=all(met for met, _ in conditions), reasons=tuple(reason for _, reason in conditions))


def _condition(bits_per_byte: float, *, met: bool, limit: str) -> tuple[bool, str]:
    met = met and math.isfinite(bits_per_byte)
    return met, f"bits per byte {bits_per_byte:.4f} {'is' if met else 'is not'} {limit}"
