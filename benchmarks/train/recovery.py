"""What a failure and a checkpoint cost: python benchmarks/train/recovery.py [--size 1m] [--ranks 1 2] [--rounds 3]

Of our trainer under torchrun, with as many restarts as are needed, on a corpus of `corpus.py`:

* a rank gets SIGKILL in mid-training, the last one: seconds until the first step after it, which are torchrun's
  noticing it, new processes, their imports, and the newest checkpoint opened; and seconds until the first step that had
  not been made before, five steps further;
* the stall of a checkpoint: the median time from step to step over one, less the median over none, and its share of the
  time between two by default, `checkpoint.every_seconds`;
* the peak of memory of the whole tree, torchrun included, as `cells.py` measures it for the baseline.
"""

import argparse
import json
import os
import signal
import statistics
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import corpus as corpora
import ours
import processes
import psutil
from cells import ROOT, SIZES, VOCABULARIES
from corpus import Corpus

from tessera.train.metrics import Tail
from tessera.train.run import RunFolder
from tessera.train.settings import CheckpointSettings

EVERY_STEPS = 10
POLL_SECONDS = 0.05
GIVE_UP_SECONDS = 300.0

Lines = Sequence[dict[str, Any]]


def measure(corpus: Corpus, *, size: str, ranks: int, seq_len: int, rounds: int, to: Path) -> dict[str, Any]:
    """Runs `rounds` kills in one training; what they and the checkpoints cost."""
    name = f"{size}-{ranks}-{int(time.time())}"
    settings = {
        "model": SIZES[size], "ranks": ranks, "steps": 1_000_000,
        "checkpoint": {"every_steps": EVERY_STEPS, "every_seconds": None},
    }  # fmt: skip
    run = ours.make_run(to / "recovery", corpus=corpus, seq_len=seq_len, tokens=1, settings=settings, name=name)
    peak, kills, gaps = 0, [], []
    with ours.ranks(run, restarts=rounds, torchrun=True) as process:
        for _ in range(rounds):
            for lines in follow(run):
                peak = max(peak, processes.tree_bytes(process.pid))
                recent, done = since_start(run, lines), int(lines[-1]["step"])
                if len(recent) >= 4 * EVERY_STEPS and done % EVERY_STEPS == EVERY_STEPS // 2:
                    break
            gaps.append(stall(recent))
            kills.append(kill(run, pid=last_rank(process.pid, ranks=ranks), done=done))
            peak = max(peak, processes.tree_bytes(process.pid))
    seconds = statistics.median(gap["step_seconds"] for gap in gaps)
    stalls = statistics.median(gap["stall_seconds"] for gap in gaps)
    return {
        "size": size, "ranks": ranks, "kills": kills, "step_seconds": seconds, "stall_seconds": stalls,
        "stall_share": stalls / (CheckpointSettings().every_seconds or 30.0), "peak_bytes": peak,
    }  # fmt: skip


def follow(run: RunFolder) -> Iterator[Lines]:
    """The step lines of a run, again and again as they grow.

    Raises:
        TimeoutError: nothing new for GIVE_UP_SECONDS.
    """
    before, deadline = -1.0, time.monotonic() + GIVE_UP_SECONDS
    while time.monotonic() < deadline:
        lines = [line for line in Tail(run.metrics).read() if "loss" in line]
        if lines and lines[-1]["time"] != before:
            before, deadline = lines[-1]["time"], time.monotonic() + GIVE_UP_SECONDS
            yield lines
        time.sleep(POLL_SECONDS)
    raise TimeoutError(f"run {run.root.name} makes no steps; see {run.log} and {run.errors}")


def since_start(run: RunFolder, lines: Lines) -> Lines:
    """The lines that were written since the ranks were last started."""
    started = last_start(run)
    return [line for line in lines if line["time"] > started]


def last_start(run: RunFolder) -> float:
    """When rank 0 was last started."""
    starts = run.starts.read_text(encoding="utf-8").splitlines() if run.starts.exists() else []
    return json.loads(starts[-1])["time"] if starts else 0.0


def stall(lines: Lines) -> dict[str, float]:
    """Medians over the steps of one start: of a step, and of what a checkpoint before it adds."""
    gaps = [(sooner["step"] % EVERY_STEPS == 0, later["time"] - sooner["time"]) for sooner, later in pairwise(lines)]
    plain = statistics.median(gap for saved, gap in gaps if not saved)
    return {"step_seconds": plain, "stall_seconds": statistics.median(gap for saved, gap in gaps if saved) - plain}


def last_rank(pid: int, *, ranks: int) -> int:
    """The process of the last rank below torchrun."""
    for child in psutil.Process(pid).children(recursive=True):
        if ours.WORKER in child.cmdline() and child.environ().get("RANK") == str(ranks - 1):
            return child.pid
    raise LookupError(f"no rank {ranks - 1} below process {pid}")


def kill(run: RunFolder, *, pid: int, done: int) -> dict[str, float]:
    """Seconds from SIGKILL of a rank to the first step made after it, and to the first beyond `done`."""
    killed = time.time()
    os.kill(pid, signal.SIGKILL)
    first = None
    for lines in follow(run):
        if last_start(run) <= killed:
            done = max(done, lines[-1]["step"])
            continue
        fresh = since_start(run, lines)
        first = first or (fresh[0]["time"] if fresh else None)
        if beyond := [line["time"] for line in fresh if line["step"] > done]:
            return {"next_step_seconds": first - killed, "new_step_seconds": beyond[0] - killed}
    raise AssertionError


def to_markdown(found: Sequence[dict[str, Any]]) -> str:
    rows = ["| size, ranks | kill to next step, s | kill to the step under way, s | step, ms | checkpoint, ms | "
            "share at 30 s | peak MiB |", "| --- " * 7 + "|"]  # fmt: skip
    for one in found:
        times = {key: sorted(kill[key] for kill in one["kills"]) for key in one["kills"][0]}
        shown = [f"{statistics.median(values):.1f} ({values[0]:.1f} to {values[-1]:.1f})" for values in times.values()]
        rows.append(f"| {one['size']}, {one['ranks']} | {shown[0]} | {shown[1]} | {one['step_seconds'] * 1000:.0f} | "
                    f"{one['stall_seconds'] * 1000:.0f} | {one['stall_share']:.2%} | "
                    f"{one['peak_bytes'] / 2**20:,.0f} |")  # fmt: skip
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", default=corpora.DOCSTRINGS)
    parser.add_argument("--size", choices=SIZES, default="1m")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--train-bytes", type=int)
    parser.add_argument("--heldout-bytes", type=int, default=100_000)
    parser.add_argument("--to", type=Path, default=ROOT / "lakehouse" / "bench-train")
    given = parser.parse_args()
    corpus = corpora.make(given.corpus, to=given.to, vocab_size=VOCABULARIES[given.size],
                          heldout_bytes=given.heldout_bytes, train_bytes=given.train_bytes)  # fmt: skip
    found = []
    for ranks in given.ranks:
        found.append(measure(corpus, size=given.size, ranks=ranks, seq_len=given.seq_len, rounds=given.rounds,
                             to=given.to))  # fmt: skip
        line = {**found[-1], "machine": processes.machine(), "versions": processes.versions("torch", "tessera")}
        with (given.to / "recovery.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    print(to_markdown(found))


if __name__ == "__main__":
    main()
