"""What a person sees of a run while it trains: the newest numbers in one line, the most wanted first."""

from collections.abc import Mapping, Sequence


def describe(lines: Sequence[Mapping[str, float]], *, steps: int) -> str:
    """Loss (nats a token), held-out bits per byte, time left, speed, utilisation and memory, as far as they are known.

    Args:
        lines: the newest of metrics.jsonl, oldest first, the last one of a step.
        steps: of the whole run.
    """
    last = lines[-1]
    measured = [line["heldout_bits_per_byte"] for line in lines if "heldout_bits_per_byte" in line]
    words = [f"loss {last['loss']:.3f}"]
    if measured:
        words.append(f"{measured[-1]:.3f} bpb")
    if (left := seconds_left(lines, steps=steps)) is not None:
        words.append(f"{_clock(left)} left")
    words.append(f"{_short(last['tokens_per_second'])} tok/s")
    if "model_flops_utilisation" in last:
        words.append(f"{last['model_flops_utilisation']:.1%} MFU")
    elif "model_flops_per_second" in last:
        words.append(f"{_short(last['model_flops_per_second'])}FLOP/s")
    if "memory_bytes" in last:
        words.append(f"{_short(last['memory_bytes'])}B")
    return ", ".join(words)


def seconds_left(lines: Sequence[Mapping[str, float]], *, steps: int) -> float | None:
    """By the pace of these lines; None where they are of one step."""
    timed = [line for line in lines if "seconds" in line]
    if len(timed) < 2 or timed[-1]["step"] <= timed[0]["step"]:
        return None
    pace = (timed[-1]["seconds"] - timed[0]["seconds"]) / (timed[-1]["step"] - timed[0]["step"])
    return (steps - timed[-1]["step"]) * pace


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _short(number: float) -> str:
    """Three digits and a unit: 12.3k."""
    units = iter(("", "k", "M", "G", "T", "P"))
    unit = next(units)
    while number >= 999.5:
        number, unit = number / 1000, next(units)
    return f"{number:.3g}{unit}"
