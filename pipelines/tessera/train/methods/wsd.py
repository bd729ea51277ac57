"""Warm-up, stable, decay (WSD; Hu et al. 2024, "MiniCPM"): the learning rate of a step as a pure function.

The stable part knows nothing of the number of steps, so that a run can be branched from any checkpoint in it.
"""

from pydantic import Field, model_validator

from tessera.train.method import Method, MethodSettings


class WsdSettings(MethodSettings):
    """The learning rates rise, hold and fall: fractions of the run's steps. Without it they are constant."""

    warmup: float = Field(0.02, ge=0, le=1)
    """Part of the steps in which the learning rate rises from zero, linearly."""
    decay: float = Field(0.5, ge=0, le=1)
    """Part of the steps, at the end, in which it falls linearly."""
    final: float = Field(0.0, ge=0, le=1)
    """The learning rate after the last step, as a part of the stable one."""

    @model_validator(mode="after")
    def _fits(self) -> "WsdSettings":
        if self.warmup + self.decay > 1:
            raise ValueError(f"wsd.warmup {self.warmup} and wsd.decay {self.decay} add up to more than 1")
        return self


class Wsd(Method[WsdSettings]):
    """At half strength the rates fall half of the way."""

    settings_type = WsdSettings
    place = 50

    def schedule(self, step: int) -> float:
        factor = multiplier(step, steps=self.job.spec.settings.steps, settings=self.settings)
        return 1 + self.settings.strength * (factor - 1)


def multiplier(step: int, *, steps: int, settings: WsdSettings) -> float:
    """What the learning rates are multiplied by in step `step` of `steps`, 0-based; above 0 and at most 1.

    Rises linearly over the first `warmup * steps` steps, is 1, and falls linearly over the last `decay * steps`
    towards `final`, which would be reached by the step after the last.
    """
    warmup, decay = settings.warmup * steps, settings.decay * steps
    rising = (step + 1) / warmup if warmup > 0 else 1.0
    falling = settings.final + (1 - settings.final) * (steps - step) / decay if decay > 0 else 1.0
    return min(1.0, rising, falling)
