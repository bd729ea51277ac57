"""Our scores and speed beside lm-evaluation-harness 0.4.13: the same model folder, the same files, one run.

    python benchmarks/evaluation/beside_lm_eval.py MODEL_FOLDER [FILE.jsonl ...] [--limit N] [--threads N]

Without files it takes what is in ../shared/data/eval. Rows are multiple choice (`query`, `choices`, `gold`) or language
modelling (`context`, `continuation`); a file of another kind is left out and said to be. Each system runs in a process
and an environment of its own (`make .venv-lm-eval/ready`), one after the other, `--rounds` times; the best of each
counts. It leaves with 1 when an `acc` differs, or a log-likelihood by more than 0.001.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
SHARED = ROOT.parent / "shared" / "data" / "eval"
KINDS = {"multiple_choice": {"query", "choices", "gold"}, "language_modeling": {"context", "continuation"}}
TOLERANCE = 1e-3

Line = dict[str, Any]


def kind_of(path: Path) -> str | None:
    with path.open(encoding="utf-8") as file:
        keys = json.loads(file.readline()).keys()
    return next((kind for kind, wanted in KINDS.items() if wanted <= keys), None)


def run(python: Path, script: str, asked: Path) -> None:
    done = subprocess.run([str(python), str(HERE / script), str(asked)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{script} ended with {done.returncode}:\n{done.stderr[-3000:]}")


def measure(asked: Line, *, to: Path, rounds: int) -> dict[str, list[Line]]:
    """By system, the results of each task: the first round's values, the best round's times."""
    pythons = {"ours": Path(sys.executable), "theirs": ROOT / ".venv-lm-eval" / "bin" / "python"}
    (to / "asked.json").write_text(json.dumps({**asked, "to": str(to)}))
    best: dict[str, dict[str, Line]] = {"ours": {}, "theirs": {}}
    for _ in range(rounds):
        for system, python in pythons.items():
            run(python, f"{system}.py", to / "asked.json")
            for task in asked["tasks"]:
                line = json.loads((to / f"{task['name']}.{system}.json").read_text())
                before = best[system].get(task["name"], line)
                best[system][task["name"]] = {**line, **{key: min(before[key], line[key]) for key in ("cpu", "wall")}}
    return {system: list(lines.values()) for system, lines in best.items()}


def table(found: dict[str, list[Line]]) -> tuple[str, bool]:
    """Markdown, and whether all is equal."""
    rows = [["file", "items", "acc, ours", "acc, theirs", "largest difference of a log-likelihood", "items/CPU-s, ours",
             "theirs", "ratio", "ratio of wall time"]]  # fmt: skip
    equal = True
    for ours, theirs in zip(found["ours"], found["theirs"], strict=True):
        far = max(abs(a[0] - b[0]) for a, b in zip(ours["pairs"], theirs["pairs"], strict=True))
        same = ours["acc"] == theirs["acc"] and far <= TOLERANCE
        equal &= same
        rows.append(
            [ours["name"], str(ours["n"]), f"{ours['acc']:.10g}", f"{theirs['acc']:.10g}", f"{far:.1e}",
             f"{ours['n'] / ours['cpu']:.0f}", f"{theirs['n'] / theirs['cpu']:.0f}",
             f"{theirs['cpu'] / ours['cpu']:.1f}", f"{theirs['wall'] / ours['wall']:.1f}"]
        )  # fmt: skip
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "| --- " * len(rows[0]) + "|", *lines[1:]]), equal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("files", type=Path, nargs="*")
    parser.add_argument("--limit", type=int, help="the first so many rows of each file")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=16, help="theirs")
    parser.add_argument("--batch-tokens", type=int, default=4096, help="ours")
    parser.add_argument("--rounds", type=int, default=1)
    given = parser.parse_args()
    tasks = []
    for path in given.files or sorted(SHARED.glob("*.jsonl")):
        if kind := kind_of(path):
            tasks.append({"name": path.stem, "path": str(path.absolute()), "kind": kind, "limit": given.limit})
        else:
            print(f"left out: {path.name} is neither multiple choice nor language modelling")
    asked = {"model": str(given.model.absolute()), "threads": given.threads, "batch_size": given.batch_size,
             "batch_tokens": given.batch_tokens, "tasks": tasks}  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="tessera-beside-") as folder:
        found = measure(asked, to=Path(folder), rounds=given.rounds)
        peaks = {system: json.loads((Path(folder) / f"{system}.json").read_text())["peak_bytes"] for system in found}
    shown, equal = table(found)
    print(shown)
    print(f"peak memory: ours {peaks['ours'] / 2**20:,.0f} MiB, theirs {peaks['theirs'] / 2**20:,.0f} MiB")
    print("all equal" if equal else "NOT EQUAL")
    sys.exit(not equal)


if __name__ == "__main__":
    main()
