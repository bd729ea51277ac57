"""lm-evaluation-harness's side of `beside_lm_eval.py`: `.venv-lm-eval/bin/python theirs.py ASKED.json`

Its own model class with its defaults on a CPU, its own tasks made of local JSON lines. Time is that of its `evaluate`,
without loading the model; each log-likelihood and each `acc` is left for comparison.
"""

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
    os.environ[name] = "1"

import torch  # noqa: E402
from lm_eval.api.task import ConfigurableTask  # noqa: E402
from lm_eval.evaluator import evaluate  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402

SHAPES: dict[str, dict[str, Any]] = {
    "multiple_choice": {
        "output_type": "multiple_choice", "doc_to_text": "{{query}}", "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{gold}}", "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "language_modeling": {
        "output_type": "loglikelihood", "doc_to_text": "{{context}}", "doc_to_target": " {{continuation}}",
        "metric_list": [{"metric": "acc"}],
    },
}  # fmt: skip


def main(asked: dict[str, Any]) -> None:
    torch.set_num_threads(asked["threads"])
    model = HFLM(pretrained=asked["model"], device="cpu", dtype="float32", batch_size=asked["batch_size"])
    for one in asked["tasks"]:
        task = ConfigurableTask(
            config={
                "task": one["name"], "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": one["path"]}},
                "test_split": "test", "num_fewshot": 0, "metadata": {"version": 1}, **SHAPES[one["kind"]],
            }
        )  # fmt: skip
        cpu, wall = time.process_time(), time.perf_counter()
        asked_of = {one["name"]: task}
        found = evaluate(lm=model, task_dict=asked_of, limit=one["limit"], bootstrap_iters=0, log_samples=True)
        used = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
        samples = sorted(found["samples"][one["name"]], key=lambda sample: sample["doc_id"])
        pairs = [pair for sample in samples for pair in _pairs(sample["filtered_resps"])]
        scores = {key.partition(",")[0]: value for key, value in found["results"][one["name"]].items()}
        accuracy = {"acc": scores["acc"], "acc_norm": scores.get("acc_norm")}
        said = {"name": one["name"], "n": len(samples), **used, **accuracy}
        (Path(asked["to"]) / f"{one['name']}.theirs.json").write_text(json.dumps({**said, "pairs": pairs}))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    (Path(asked["to"]) / "theirs.json").write_text(json.dumps({"peak_bytes": peak}))


def _pairs(answers: list[Any]) -> list[tuple[float, bool]]:
    return [(float(value), bool(greedy)) for value, greedy in answers]


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
