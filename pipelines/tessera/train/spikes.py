"""Loss spikes: a batch whose loss lies far above those before is not learned from, and counted.

The loss is known before the update, so a lone bad batch leaves no trace. Where spikes go on, the weights themselves
have gone astray: the run goes back to its newest checkpoint and takes none of the batches since then again, after
Chowdhery et al. 2022 ("PaLM", section 5.1). Decisions are a function of the losses, which all ranks share and
checkpoints keep, so that a resumed run decides alike; how far a run goes back hangs on when it saved.
"""

from collections.abc import Sequence
from statistics import fmean, pstdev

from tessera.train.settings import SpikeSettings


def is_spike(loss: float, *, recent: Sequence[float], settings: SpikeSettings) -> bool:
    """Whether a loss, in nats a token, lies further above the mean of the recent ones than they allow."""
    if settings.deviations is None or len(recent) < settings.window:
        return False
    mean = fmean(recent)
    return loss > mean + max(settings.deviations * pstdev(recent), settings.least * mean)
