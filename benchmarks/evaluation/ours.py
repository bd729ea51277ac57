"""Tessera's side of `beside_lm_eval.py`: `.venv/bin/python ours.py ASKED.json`

Time is that of reading the file and asking the model, without loading it.
"""

import json
import resource
import sys
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from tessera.evaluate.likelihood import likelihoods
from tessera.evaluate.outcomes import examine
from tessera.evaluate.settings import TaskSettings
from tessera.evaluate.subject import open_subject
from tessera.evaluate.task import Choices, Completion, Task
from tessera.evaluate.task_files import read_task
from tessera.home import Home


def main(asked: dict[str, Any]) -> None:
    torch.set_num_threads(asked["threads"])
    subject = open_subject(Path(asked["model"]), batch_tokens=asked["batch_tokens"])
    for one in asked["tasks"]:
        cpu, wall = time.process_time(), time.perf_counter()
        settings = TaskSettings(name=one["name"], path=one["path"], kind=one["kind"], limit=one["limit"])
        task = read_task(settings, home=Home(Path(asked["to"])))
        outcomes = examine(subject, task)
        used = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
        found = likelihoods(subject, pairs_of(task))  # once more, untimed: outcomes keep no likelihoods of choices
        said = {"name": one["name"], "n": len(task.items), **used, "acc": fmean(outcomes.values["acc"]),
                "acc_norm": fmean(outcomes.values["acc_norm"]) if "acc_norm" in outcomes.values else None}  # fmt: skip
        pairs = [(-likelihood.nats, likelihood.greedy) for likelihood in found]
        (Path(asked["to"]) / f"{one['name']}.ours.json").write_text(json.dumps({**said, "pairs": pairs}))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    (Path(asked["to"]) / "ours.json").write_text(json.dumps({"peak_bytes": peak}))


def pairs_of(task: Task) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for item in task.items:
        if isinstance(item, Choices):
            found += item.pairs
        elif isinstance(item, Completion):
            found.append((item.context, item.continuation))
    return found


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
