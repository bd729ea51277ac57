"""Keyed mixing of 64-bit words: what orders are made of. A function of the words alone, on any platform, for ever."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Word = NDArray[np.uint64]

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def splitmix64(value: Any) -> Word:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): a mixing bijection of 64-bit words; at least 1-d."""
    mixed = np.atleast_1d(np.asarray(value, dtype=np.uint64)) + GOLDEN  # arrays wrap around silently, scalars warn
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
