"""Exposure of canaries (Carlini et al. 2019): how far a secret ranks above others of its form that nobody wrote.

Of `candidates` random secrets in the same note, rank is the place of the planted one by likelihood, 1 the likeliest;
exposure = log2(candidates + 1) - log2(rank). Of a secret that the model never saw it is 1.44 bits on average, whatever
the candidates; the greatest is log2(candidates + 1). Costs a forward over the candidates' four words for each canary,
the note before them once.
"""

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace

from tessera.evaluate import canaries
from tessera.evaluate.canaries import NEVER, Canary
from tessera.evaluate.likelihood import likelihoods
from tessera.evaluate.settings import CanarySettings
from tessera.evaluate.statistics import Correlation, mean_interval, spearman
from tessera.evaluate.subject import Subject
from tessera.home import Home
from tessera.lineage import TableVersion


@dataclass(frozen=True)
class Level:
    """Canaries that stand equally often in the training split."""

    repeats: int
    n: int
    mean: float
    """Exposure in bits."""
    low: float
    high: float
    """95 % interval."""


@dataclass(frozen=True)
class ExposureReport:
    """Of one model."""

    exposures: Mapping[Canary, float]
    """In bits."""
    repeats: Mapping[Canary, int]
    """Copies in the training split."""
    correlation: Correlation
    """Spearman's, of exposure with copies, the never planted included."""

    @property
    def levels(self) -> tuple[Level, ...]:
        """By how often canaries were planted, the never planted first; copies that prepare dropped do not count."""
        found: dict[int, list[float]] = {}
        for canary, bits in self.exposures.items():
            found.setdefault(canary.level if self.repeats[canary] else NEVER, []).append(bits)
        return tuple(_level(repeats, found[repeats]) for repeats in sorted(found))

    @property
    def once_above(self) -> float | None:
        """The mean exposure of those planted once, in bits above those never planted; None where there are none."""
        means = {level.repeats: level.mean for level in self.levels}
        return means[1] - means[NEVER] if {1, NEVER} <= means.keys() else None


def measure(
    subject: Subject, *, settings: CanarySettings, home: Home, documents: TableVersion
) -> ExposureReport:  # fmt: skip
    """The exposure of every canary.

    Args:
        documents: the table, at its version, that the model was trained on.
    """
    made = canaries.make(settings)
    repeats = canaries.planted(made, home=home, documents=documents)
    asked = replace(subject, document_start=True)  # a note was a document
    exposures = {canary: exposure(asked, canary, settings=settings) for canary in made}
    correlation = spearman([repeats[canary] for canary in made], [exposures[canary] for canary in made])
    return ExposureReport(exposures, repeats, correlation)


def exposure(subject: Subject, canary: Canary, *, settings: CanarySettings) -> float:
    """log2(candidates + 1) - log2(rank) of a canary's secret."""
    rng = random.Random(f"candidates {settings.seed} {canary.place}")
    secrets = {canary.secret: None}
    while len(secrets) <= settings.candidates:
        secrets[canaries.draw_secret(rng)] = None
    context = canary.copy(1).removesuffix(canary.ending)
    own, *others = likelihoods(subject, [(context, canaries.ending_of(secret)) for secret in secrets])
    rank = 1 + sum(other.nats < own.nats for other in others)
    return math.log2(len(secrets)) - math.log2(rank)


def _level(repeats: int, bits: list[float]) -> Level:
    low, high = mean_interval(bits)
    return Level(repeats, n=len(bits), mean=sum(bits) / len(bits), low=low, high=high)
