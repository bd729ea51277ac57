"""Tables of the results of `cells.py`: python benchmarks/train/report.py FOLDER/results.jsonl

A ratio is a baseline's time to our loss over our time, by seed: both with the same seed, on the same held-out text. The
moment at which a baseline reaches the loss is interpolated between its evaluations, and, where a shorter horizon ended
above it, between the ends of the two horizons, as a schedule of just the right length would have: linear in bits per
byte and in the logarithm of time, and never later than what was measured. A seed that did not reach it gives a lower
bound, with ">=". Tables show the median over seeds and, in brackets, the least and the greatest.
"""

import json
import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Line = dict[str, Any]
CLOCKS = ("cpu_seconds", "wall_seconds", "step_seconds")
"""The last leaves out starts and imports, which weigh in short runs; of ours, checkpoints too."""


NEARLY = 0.8
"""Of the limit: `cells.chain` ends where another horizon would be less than a tenth longer."""


@dataclass(frozen=True)
class Reached:
    """When a baseline was as good as ours."""

    seconds: float
    bound: bool
    """It was not: this is only the time that it had."""


def read(path: Path) -> list[Line]:
    """The finished cells; a last line that was torn is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def to_markdown(lines: Sequence[Line]) -> str:
    """All tables of the runs in `lines`."""
    runs = [line for line in lines if line["role"] == "run"]
    groups: dict[tuple[str, int, int], list[Line]] = defaultdict(list)
    ours = [line for line in runs if line["system"] == "ours"]
    for line in ours:
        groups[line["size"], line["tokens"], line["cores"]].append(line)
    parts = []
    for (size, tokens, cores), members in groups.items():
        title = f"{size} parameters, {tokens / 1e6:g} M tokens, {cores} core{'s' if cores > 1 else ''}"
        parts.append(f"{title}: {machine_of(members[0])}\n\n" + _table(members, runs=runs))
    return "\n\n".join(parts)


def reached(chain: Sequence[Line], *, target: float, clock: str) -> Reached:
    """When the trainings of one seed, in the order of their horizons, reach `target`."""
    found = [time for line in chain if (time := crossing(line["curve"], target=target, clock=clock)) is not None]
    if not found:
        return Reached(max(line[clock] for line in chain), bound=True)
    ends = [line for line in chain if line["ended"] == "horizon"]
    above = [line for line in ends if line["bits_per_byte"] > target]
    below = [line for line in ends if line["bits_per_byte"] <= target]
    if above and below:
        short, long = above[-1], below[0]
        part = (short["bits_per_byte"] - target) / (short["bits_per_byte"] - long["bits_per_byte"])
        between = math.exp((1 - part) * math.log(short[clock]) + part * math.log(long[clock]))
        found.append(between)
    return Reached(min(found), bound=False)


def crossing(curve: Sequence[Line], *, target: float, clock: str) -> float | None:
    """The time at which a curve of evaluations first comes down to `target`, between two of them; None if never."""
    before = None
    for point in curve:
        if point["bits_per_byte"] <= target:
            if before is None:
                return point[clock]
            part = (before["bits_per_byte"] - target) / (before["bits_per_byte"] - point["bits_per_byte"])
            return before[clock] + part * (point[clock] - before[clock])
        before = point
    return None


def machine_of(line: Line) -> str:
    machine, versions = line["machine"], line["versions"]
    known = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB; {known}; {line['code'][:12]}"
    )


def _table(ours: Sequence[Line], *, runs: Sequence[Line]) -> str:
    rows = [["system", "parameters", "bits per byte", "CPU-s", "wall s", "tokens/CPU-s", "peak MiB",
             "x CPU-s", "x wall", "x steps", "others, cores"]]  # fmt: skip
    by_methods = defaultdict(list)
    for line in ours:
        by_methods[line["methods"]].append(line)
    recipe = {line["seed"]: line for line in by_methods["recipe"]}
    rows += [_row(f"ours, {name}", members, ratios=[]) for name, members in by_methods.items()]
    for system in sorted({line["system"] for line in runs} - {"ours"}):
        chains = {seed: found for seed, line in recipe.items() if (found := _chain(runs, system=system, our=line))}
        ratios = [{clock: _ratio(chain, our=recipe[seed], clock=clock) for clock in CLOCKS}
                  for seed, chain in chains.items()]  # fmt: skip
        if chains:
            rate = next(iter(chains.values()))[-1]["learning_rate"]
            rows.append(_row(f"Trainer, {system}, rate {rate:g}", [chain[-1] for chain in chains.values()], ratios))
    return "\n".join(["| " + " | ".join(rows[0]) + " |", "| --- " * len(rows[0]) + "|",
                      *("| " + " | ".join(row) + " |" for row in rows[1:])])  # fmt: skip


def _chain(runs: Iterable[Line], *, system: str, our: Line) -> list[Line]:
    """The trainings of a baseline towards one target, by horizon; none while a longer one is still to come."""
    same = ("corpus", "size", "cores", "seed", "seq_len")
    found = sorted(
        (
            line
            for line in runs
            if line["system"] == system and line["target"] == our["bits_per_byte"]
            and all(line[key] == our[key] for key in same)
        ),
        key=lambda line: line["tokens"],
    )  # fmt: skip
    return found if any(_is_last(line) for line in found) else []


def _is_last(line: Line) -> bool:
    """Whether no longer horizon follows: it reached the target, or took about as long as it may."""
    return line["reached"] or line["ended"] == "limit" or line["cpu_seconds"] > NEARLY * line["limit_seconds"]


def _ratio(chain: Sequence[Line], *, our: Line, clock: str) -> Reached:
    when = reached(chain, target=our["bits_per_byte"], clock=clock)
    return Reached(when.seconds / our[clock], bound=when.bound)


def _row(name: str, lines: Sequence[Line], ratios: Sequence[dict[str, Reached]]) -> list[str]:
    speeds = [(line.get("train_tokens") or line["curve"][-1]["tokens"]) / line["cpu_seconds"] for line in lines]
    return [
        name, f"{lines[0]['parameters']:,}", _spread([line["bits_per_byte"] for line in lines], digits=4),
        _spread([line["cpu_seconds"] for line in lines], digits=0),
        _spread([line["wall_seconds"] for line in lines], digits=0), _spread(speeds, digits=0),
        f"{max(line['usage']['peak_bytes'] for line in lines) / 2**20:,.0f}",
        *(_bounded([ratio[clock] for ratio in ratios]) for clock in CLOCKS),
        f"{max(line['usage']['others'] for line in lines):.2f}",
    ]  # fmt: skip


def _spread(values: Sequence[float], *, digits: int) -> str:
    middle = f"{statistics.median(values):,.{digits}f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def _bounded(values: Sequence[Reached]) -> str:
    """The median and the interval; the median is a lower bound when a value that it is made of, or one below, is."""
    if not values:
        return ""
    middle = statistics.median(value.seconds for value in values)
    upper = statistics.median_high(value.seconds for value in values)
    mark = ">= " if any(value.bound and value.seconds <= upper for value in values) else ""
    ends = [min(values, key=lambda value: value.seconds), max(values, key=lambda value: value.seconds)]
    shown = [f"{'>= ' if value.bound else ''}{value.seconds:.1f}" for value in ends]
    return f"{mark}{middle:.1f}" + (f" ({shown[0]} to {shown[1]})" if len(values) > 1 else "")


if __name__ == "__main__":
    print(to_markdown(read(Path(sys.argv[1]))))
