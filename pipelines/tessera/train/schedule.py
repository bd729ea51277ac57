"""The learning rate of a step, as a pure function: warm-up, stable, decay (WSD).

The stable part knows nothing of the number of steps, so that a run can be branched from any of its checkpoints.
"""

from tessera.train.settings import ScheduleSettings


def multiplier(step: int, *, steps: int, settings: ScheduleSettings) -> float:
    """What the learning rates are multiplied by in step `step` of `steps`, 0-based; above 0 and at most 1.

    Rises linearly over the first `warmup * steps` steps, is 1, and falls linearly over the last `decay * steps`
    towards `final`, which would be reached by the step after the last.
    """
    warmup, decay = settings.warmup * steps, settings.decay * steps
    rising = (step + 1) / warmup if warmup > 0 else 1.0
    falling = settings.final + (1 - settings.final) * (steps - step) / decay if decay > 0 else 1.0
    return min(1.0, rising, falling)
