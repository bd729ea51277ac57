"""Time to the same loss, ours beside Hugging Face Trainer: a queue of cells that goes on where it stopped.

    python benchmarks/train/cells.py [--quick] [--corpus docstrings|FOLDER|FILE.parquet] [--seeds 17 18 19]

A cell is one training of (system, method set, size, seed). Ours come first, by the default recipe over `--tokens`
tokens; what they end with is the target of their seed. Then, for each baseline, the learning rate is tuned at a fifth
of the horizon, doubled or halved until the best has neighbours on both sides; then it trains for ours' tokens, twice as
many, four times as many, each with its whole schedule, until one reaches the target, or until the next would take more
than `--times` (10) times our CPU seconds: then its last figure is a lower bound. Further seeds leave out the horizons
that were far too short for the first. Systems have one corpus, one tokenizer, the same held-out bytes, the same scorer
(`heldout.py`), and batches of as many tokens. `--quick` takes a tenth of the parameters, and ten tokens for each too.

What to do next is a function of the plan and the results file, FOLDER/results.jsonl, one line a finished cell: started
again, the queue skips what is done. A process of a cell takes `--cell-minutes` (20) at most; a longer cell goes on
from its checkpoint in the next. Before each, the queue waits until others leave the machine alone, ten minutes at
most; every line says how many cores others took meanwhile. Results are of the code that made them: give another `--to`
to measure anew. The report is `report.py`'s.
"""

import argparse
import contextlib
import hashlib
import json
import shutil
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import corpus as corpora
import processes
import report
from processes import Usage

from tessera.lineage import code_version
from tessera.model.settings import ModelSettings
from tessera.train.settings import TrainSettings

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
BASELINES = ("packed", "padded")
RECIPE = "recipe"
"""The method set that baselines are measured against: the defaults."""
SIZES: dict[str, dict[str, Any]] = {
    "0.1m": {"layers": 2, "width": 48, "heads": 1, "kv_heads": 1, "ffn_width": 144},
    "1m": {"layers": 5, "width": 96, "heads": 2, "kv_heads": 2, "ffn_width": 288},
    "3m": {"layers": 8, "width": 160, "heads": 4, "kv_heads": 4, "ffn_width": 480},
}
"""0.11, 0.99 and 3.32 million parameters in the vocabularies below."""
TOKENS = {"0.1m": 1_100_000, "1m": 10_000_000, "3m": 33_000_000}
"""Ten a parameter."""
QUICK_SIZE = "0.1m"
SEEDS = (17, 18, 19)
VOCABULARIES = {"0.1m": 512, "1m": 2048, "3m": 2048}
RATES = (2e-3, 4e-3, 8e-3)
"""Where the search for a baseline's learning rate begins."""
LEAST_RATE, GREATEST_RATE = 1e-4, 0.1
TUNE_PART = 5
GROWTH = 2
MARGIN = 0.95
"""Of the tokens that would take exactly the limit."""
SECONDS_TO_QUIET = 600.0
LEAST_SECONDS = 30.0
"""Of a process of a cell: in less it would hardly start."""

Line = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """All that is to be measured."""

    corpus: str
    """Its name."""
    size: str
    tokens: int
    seeds: tuple[int, ...]
    cores: int
    seq_len: int
    times: float
    systems: tuple[str, ...] = BASELINES
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {RECIPE: {}})
    """Name -> settings of `train` that differ from the defaults."""


@dataclass(frozen=True)
class Cell:
    """One training; everything here is part of its key."""

    corpus: str
    system: str
    role: str
    """`run`, or `tune` for a learning rate."""
    methods: str
    settings: Mapping[str, Any]
    size: str
    model: Mapping[str, Any]
    tokens: int
    seed: int
    cores: int
    seq_len: int
    learning_rate: float | None = None
    target: float | None = None
    """Held-out bits per byte that it is to reach."""
    limit_seconds: float | None = None
    """CPU seconds after which it ends."""

    @property
    def key(self) -> str:
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
        rate = f"-{self.learning_rate:g}" if self.learning_rate else ""
        return f"{self.system}-{self.methods}-{self.role}-{self.size}-{self.tokens}-s{self.seed}{rate}-{digest[:8]}"


Done = Mapping[str, Line]
"""Finished cells by key."""


def next_cell(plan: Plan, done: Done) -> Cell | None:
    """The cell to measure now; None when all is measured."""
    for seed in plan.seeds:
        for methods in plan.methods:
            if (cell := ours(plan, methods=methods, seed=seed)).key not in done:
                return cell
    for system in plan.systems:
        rate = tuned_rate(plan, done, system=system)
        if isinstance(rate, Cell):
            return rate
        begin = plan.tokens
        for seed in plan.seeds:
            cells = chain(plan, done, system=system, seed=seed, rate=rate, begin=begin)
            if cells[-1].key not in done:
                return cells[-1]
            begin = next_begin(cells, done)
    return None


def ours(plan: Plan, *, methods: str, seed: int) -> Cell:
    return _cell(plan, system="ours", role="run", tokens=plan.tokens, seed=seed, methods=methods)


def tuned_rate(plan: Plan, done: Done, *, system: str) -> "float | Cell":
    """The learning rate that is best at a fifth of the horizon, with a worse one on either side; or what to measure."""
    rates = sorted(RATES)
    while True:
        losses = {}
        for rate in rates:
            cell = _cell(plan, system=system, role="tune", tokens=plan.tokens // TUNE_PART, seed=plan.seeds[0],
                         learning_rate=rate)  # fmt: skip
            if cell.key not in done:
                return cell
            losses[rate] = done[cell.key]["bits_per_byte"]
        best = min(rates, key=lambda rate: losses[rate])
        if best == rates[-1] and best * GROWTH <= GREATEST_RATE:
            rates.append(best * GROWTH)
        elif best == rates[0] and best / GROWTH >= LEAST_RATE:
            rates.insert(0, best / GROWTH)
        else:
            return best


def next_begin(cells: list[Cell], done: Done) -> int:
    """The first horizon of the next seed: one before that in which this seed reached the target, or the last one."""
    before_last = done[cells[-1].key]["reached"] and len(cells) > 1
    return cells[-2 if before_last else -1].tokens


def chain(plan: Plan, done: Done, *, system: str, seed: int, rate: float, begin: int) -> list[Cell]:
    """A baseline's trainings of one seed, over longer and longer horizons; only the last can be unfinished.

    A finished chain ends with one that reached the target, or after which none fits into the limit. It begins at
    `begin`, or shorter where that one reached the target already.
    """
    our_line = done[ours(plan, methods=RECIPE, seed=seed).key]
    limit = plan.times * our_line["cpu_seconds"]
    cells: list[Cell] = []
    tokens = begin
    while True:
        cell = _cell(plan, system=system, role="run", tokens=tokens, seed=seed, learning_rate=rate,
                     target=our_line["bits_per_byte"], limit_seconds=limit)  # fmt: skip
        cells.append(cell)
        line = done.get(cell.key)
        if line is not None and line["reached"] and begin == tokens > plan.tokens:
            shorter = max(plan.tokens, begin // GROWTH)
            return chain(plan, done, system=system, seed=seed, rate=rate, begin=shorter)
        if line is None or line["reached"] or line["ended"] == "limit":
            return cells
        fitting = int(MARGIN * tokens * limit / line["cpu_seconds"])
        if fitting < tokens * 1.1:
            return cells
        tokens = min(tokens * GROWTH, fitting)


def run_cell(
    cell: Cell, *, corpus: Path, to: Path, cell_seconds: float, until: float, max_others: float
) -> Line | None:
    """Trains a cell to its end, slice by slice; None if the time is up, or somebody asked to stop.

    Raises:
        SystemExit: its process failed.
    """
    folder = to / "cells" / cell.key
    folder.mkdir(parents=True, exist_ok=True)
    batch_tokens = cell.settings.get("batch_size", TrainSettings().batch_size) * cell.seq_len
    told = {**asdict(cell), "corpus": str(corpus), "batch_tokens": batch_tokens}
    (folder / "cell.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    _recover(cell, folder=folder)
    while not _finished(cell, folder=folder):
        before = processes.wait_until_quiet(max_others=max_others, limit_seconds=SECONDS_TO_QUIET)
        if (limit := min(cell_seconds, until - time.monotonic())) < LEAST_SECONDS:
            return None
        usage = _slice(cell, folder=folder, limit_seconds=limit, others_before=before)
        if usage.interrupted:
            return None
        if not usage.told_to_end and not _finished(cell, folder=folder):
            raise SystemExit(f"cell {cell.key} ended with status {usage.status}; its last words are in {folder}/log")
    return _line(cell, folder=folder)


def _slice(cell: Cell, *, folder: Path, limit_seconds: float, others_before: float) -> Usage:
    """One process of a cell, its use added to usage.json."""
    usage = processes.run(
        _command(cell, folder), log=folder / "log", limit_seconds=limit_seconds, note=folder / "running",
        environment={"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    total = processes.add(_read_usage(folder), usage)
    total["others_before"] = max(others_before, _read_usage(folder).get("others_before", 0.0))
    (folder / "usage.json").write_text(json.dumps(total) + "\n", encoding="utf-8")
    if cell.system == "ours" and usage.status == 0:
        score = processes.run([*_python(cell), str(HERE / "ours.py"), "score", str(folder)], log=folder / "log",
                              limit_seconds=600, environment={"OMP_NUM_THREADS": "1"})  # fmt: skip
        usage.interrupted |= score.interrupted
    return usage


def _recover(cell: Cell, *, folder: Path) -> None:
    """After a queue that was killed: what ours had taken until then is unknown, so it begins anew.

    The Trainer's clock is its own, kept beside its checkpoints; only its slices of usage.json are then too few.
    """
    if processes.end_left_over(folder / "running") and cell.system == "ours":
        shutil.rmtree(folder / "home", ignore_errors=True)
        (folder / "usage.json").unlink(missing_ok=True)


def _finished(cell: Cell, *, folder: Path) -> bool:
    return (folder / "result.json").exists() and (folder / "usage.json").exists()


def _line(cell: Cell, *, folder: Path) -> Line:
    """What goes into the results file; checkpoints are removed."""
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    usage = _read_usage(folder)
    counted = {"ended": "horizon", "cpu_seconds": usage["cpu_seconds"], "wall_seconds": usage["wall_seconds"]}
    curve = folder / "curve.jsonl"
    for name in ("checkpoints", "home"):
        shutil.rmtree(folder / name, ignore_errors=True)
    return {
        "key": cell.key, **asdict(cell), **counted, **result, "usage": usage, "machine": processes.machine(),
        "curve": [json.loads(line) for line in curve.read_text().splitlines()] if curve.exists() else [],
        "versions": result.get("versions") or processes.versions("torch", "transformers", "numpy", "tessera"),
        "code": code_version(), "time": time.strftime("%Y-%m-%dT%H:%M:%S"),
    }  # fmt: skip


def _cell(plan: Plan, *, system: str, methods: str = RECIPE, **given: Any) -> Cell:
    model = ModelSettings(**SIZES[plan.size]).model_dump()
    settings = plan.methods.get(methods, {}) if system == "ours" else {}
    return Cell(corpus=plan.corpus, system=system, methods=methods if system == "ours" else "adamw", settings=settings,
                size=plan.size, model=model, cores=plan.cores, seq_len=plan.seq_len, **given)  # fmt: skip


def _command(cell: Cell, folder: Path) -> list[str]:
    script = [str(HERE / "ours.py"), "train"] if cell.system == "ours" else [str(HERE / "trainer.py")]
    return [*_python(cell), *script, str(folder)]


def _python(cell: Cell) -> list[str]:
    return [sys.executable] if cell.system == "ours" else [str(ROOT / ".venv-trainer" / "bin" / "python")]


def _read_usage(folder: Path) -> dict[str, float]:
    path = folder / "usage.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def work(plan: Plan, *, corpus: Path, to: Path, minutes: float, cell_minutes: float, max_others: float) -> bool:
    """Measures until all is done, or the time is up; whether all is done."""
    results, until = to / "results.jsonl", time.monotonic() + 60 * minutes
    done = {line["key"]: line for line in report.read(results)}
    while cell := next_cell(plan, done):
        if time.monotonic() > until:
            return False
        print(f"{time.strftime('%H:%M:%S')} {cell.key}", flush=True)
        line = run_cell(cell, corpus=corpus, to=to, cell_seconds=60 * cell_minutes, until=until, max_others=max_others)
        if line is None:
            return False
        with results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        done[cell.key] = line
        ended = "reached the target" if line.get("reached") else line["ended"]
        print(f"         {ended}: {line['bits_per_byte']:.4f} bits per byte after "
              f"{line['cpu_seconds']:.0f} CPU-s, {line['wall_seconds']:.0f} s", flush=True)  # fmt: skip
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small model, ten tokens a parameter: about an hour")
    parser.add_argument("--corpus", default=corpora.DOCSTRINGS, help="docstrings, a folder of text, or a Parquet file")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--size", choices=SIZES, help="1m by default")
    parser.add_argument("--tokens", type=int, help="that ours trains on; ten a parameter by default")
    parser.add_argument("--systems", nargs="*", choices=BASELINES, default=list(BASELINES))
    parser.add_argument("--methods", type=Path, help="JSON: name -> settings of `train`; they run beside the recipe")
    parser.add_argument("--cores", type=int, default=1, help="ranks of ours, threads of the Trainer")
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--times", type=float, default=10.0, help="of our CPU seconds that a baseline may take")
    parser.add_argument("--train-bytes", type=int, help="of text, at most")
    parser.add_argument("--heldout-bytes", type=int, default=100_000)
    parser.add_argument("--minutes", type=float, default=1e6, help="then stop; started again, it goes on")
    parser.add_argument("--cell-minutes", type=float, default=20.0)
    parser.add_argument("--max-others", type=float, default=0.3, help="cores that others may use when a cell starts")
    parser.add_argument("--to", type=Path, default=ROOT / "lakehouse" / "bench-train")
    given = parser.parse_args()
    if given.cell_minutes < 2:
        parser.error("--cell-minutes: in less than 2, a cell might never come to its next checkpoint")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    size = given.size or (QUICK_SIZE if given.quick else "1m")
    corpus = corpora.make(given.corpus, to=given.to, vocab_size=VOCABULARIES[size], heldout_bytes=given.heldout_bytes,
                          train_bytes=given.train_bytes)  # fmt: skip
    own = json.loads(given.methods.read_text(encoding="utf-8")) if given.methods else {}
    plan = Plan(
        corpus=corpus.name, size=size, tokens=given.tokens or TOKENS[size],
        seeds=tuple(given.seeds), cores=given.cores,
        seq_len=given.seq_len, times=given.times, systems=tuple(given.systems), methods={RECIPE: {}, **own},
    )  # fmt: skip
    complete = False
    with contextlib.suppress(KeyboardInterrupt):
        complete = work(plan, corpus=corpus.folder, to=given.to, minutes=given.minutes,
                        cell_minutes=given.cell_minutes, max_others=given.max_others)  # fmt: skip
    lines = [line for line in report.read(given.to / "results.jsonl") if line["corpus"] == corpus.name]
    print(report.to_markdown(lines))
    if not complete:
        print("not complete; the same command goes on")


if __name__ == "__main__":
    main()
