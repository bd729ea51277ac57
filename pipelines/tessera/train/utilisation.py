"""How much of a device's arithmetic a run uses: model FLOPs utilisation (MFU; Chowdhery et al. 2022, appendix B)."""

import resource

import torch

from tessera.train.settings import TrainSettings

PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "B200": 2250e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12}
"""Dense bf16 FLOP/s from the makers' data sheets (SXM where there are several), by a word of the device's name."""


def peak_flops(device: torch.device, *, settings: TrainSettings) -> float | None:
    """Of one rank's device; None where it is neither given nor known."""
    if settings.peak_flops is not None or device.type != "cuda":
        return settings.peak_flops
    words = torch.cuda.get_device_name(device).replace("-", " ").split()
    return next((flops for word, flops in PEAK_FLOPS.items() if word in words), None)


def speed(tokens: float, *, seconds: float, flops_per_token: float, peak: float | None) -> dict[str, float]:
    """Of one step over all ranks.

    Args:
        tokens: that count in the loss.
        flops_per_token: see `model.cost`; utilisation is tokens/s x this / peak.
        peak: FLOP/s of the devices of all ranks together, if known.
    """
    rate = tokens / seconds
    used = {} if peak is None else {"model_flops_utilisation": rate * flops_per_token / peak}
    return {"tokens_per_second": rate, "model_flops_per_second": rate * flops_per_token, **used}


def memory_bytes(device: torch.device) -> int:
    """The most that this rank held until now: of the GPU, or else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
