"""Document packing: several documents share a row, and none attends to another.

The shards hold packed rows already (best fit, hardly any padding); without the method each document gets a row of its
own and is padded to the longest of the micro-batch, as in trainers that do not pack. The gradients are the same to the
last digits, the work is 2.4 to 2.8 times as much (see `benchmarks/train`).
"""

from typing import Literal

from tessera.train.method import Method, MethodSettings


class PackingSettings(MethodSettings):
    """Documents share rows, and none attends to another; without it, a padded row for each."""

    strength: Literal[0, 1] = 1  # type: ignore[assignment]
    """1 is with it, 0 without."""


class Packing(Method[PackingSettings]):
    """Takes rows as they lie in the shards."""

    settings_type = PackingSettings
    place = 10

    def init(self) -> None:
        self.job.arrange = lambda part: part
