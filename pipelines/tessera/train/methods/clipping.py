"""Gradient clipping by the norm of all of them (Pascanu, Mikolov and Bengio 2013)."""

from pydantic import Field

from tessera.train.method import Method, MethodSettings

TINY = 1e-12


class ClippingSettings(MethodSettings):
    """Gradients of a larger norm are scaled down to it."""

    norm: float = Field(1.0, gt=0)
    """The largest norm of the gradient of a global batch."""


class Clipping(Method[ClippingSettings]):
    """At half strength a gradient that is too large is brought half of the way down."""

    settings_type = ClippingSettings
    place = 40

    def backward(self, *, norm: float) -> None:
        factor = min(1.0, self.settings.norm / max(norm, TINY))
        if factor < 1:
            self.job.parallel.scale(1 + self.settings.strength * (factor - 1))
