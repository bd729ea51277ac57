"""Hugging Face Trainer's side of a cell: `.venv-trainer/bin/python benchmarks/train/trainer.py CELL_FOLDER`

Two ways to use it, both as its documentation shows them. `padded`: GPT-2 from `GPT2Config`, its dropout of 0.1 as it
comes, one document a row, truncated at T, padded by `DataCollatorForLanguageModeling` to the longest of the batch: what
one gets by following the course's chapter on training a causal model from scratch. The model is GPT-2 because that is
what they take, with our width, layers and heads, its feed-forward part as wide as makes the parameters of a block
equal to ours, and as many in the embeddings. `packed`: documents end to end, cut into rows of T (`group_texts` of
run_clm.py), and our own Qwen3 configuration without dropout, initialised by `transformers`, so that nothing but the
training differs. Both: AdamW (fused) with the course's weight decay of 0.1, a norm of 1, 5 % of linear warm-up and a
cosine to zero over the horizon; batches of as many tokens as ours, counting for `padded` the mean of its rows without
padding. The learning rate comes with the cell, tuned before. A run that reaches the target goes on to its horizon, so
that the ends of horizons can be compared. Documents stand between end tokens, so that their first token is learned
too, and padding has a token of its own, so that end tokens are learned: the usual `pad = eos` would not learn them,
and lose here. `padded` loses what a document has beyond T, 41 % of the tokens of our docstrings at 256, and is
measured on it: so it is with truncation. The tokens that it is said to train on were no padding.

The clock: CPU seconds of this process and wall seconds, from its start, imports and checkpoints counted; evaluation
is not. `step_seconds` are wall seconds without the start. A cell that is told to end (SIGTERM) saves a checkpoint; the
next start goes on from it, and neither the imports nor the skipping of batches that it costs are counted again. One
process with `cores` threads.
"""

import json
import math
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DISABLE_TELEMETRY"):
    os.environ[name] = "1"
BEGAN_WALL = time.monotonic()

import numpy as np  # noqa: E402
import psutil  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from corpus import Corpus, Split, open_corpus  # noqa: E402
from heldout import Heldout  # noqa: E402
from transformers import (  # noqa: E402
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)

PAD = "<|pad|>"
EVALUATIONS = 20
"""Over a horizon; the moment at which a loss is reached is interpolated between two."""
CHECKPOINT_SECONDS = 60.0
WARMUP = 0.05
WEIGHT_DECAY = 0.1
STOPPED = 3
"""Exit status of a cell that will go on."""


class Rows(torch.utils.data.Dataset):
    """Token rows that the collator is given one by one."""

    def __init__(self, rows: list[np.ndarray], *, labels: bool) -> None:
        self._rows, self._labels = rows, labels

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: int) -> dict[str, Any]:
        ids = self._rows[place].astype(np.int64)
        return {"input_ids": ids, "labels": ids} if self._labels else {"input_ids": ids}


class Clock(TrainerCallback):
    """Counts time, evaluates, saves, and ends the training; everything that is not the Trainer's own."""

    def __init__(self, folder: Path, *, cell: dict[str, Any], heldout: Heldout, every: int, row_tokens: float) -> None:
        self.folder, self.cell, self.heldout, self.every = folder, cell, heldout, every
        self.tokens_a_step = row_tokens
        self.lines = read_lines(folder / "curve.jsonl")
        self.counted = {"cpu_seconds": 0.0, "wall_seconds": 0.0}
        self._from = {"cpu_seconds": 0.0, "wall_seconds": -start_age()}
        self._saved = time.monotonic()
        self.started = 0.0
        """Wall seconds before the first step."""
        self.ended = ""
        self.told_to_stop = False
        signal.signal(signal.SIGTERM, self._tell)

    def resume(self, step: int) -> None:
        """Goes on from the checkpoint after `step`: what came after it in the curve is not so any more."""
        self.lines = [line for line in self.lines if line["step"] <= step]
        kept = json.loads((self.folder / f"clock-{step}.json").read_text(encoding="utf-8"))
        self.counted, self.started, self._from = kept["counted"], kept["started"], {}

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._from = self._from or now()
        self.started = self.started or self._read()["wall_seconds"]

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        step, last = state.global_step, state.global_step >= state.max_steps
        if step % self.every == 0 or last:
            self._measure(step, model=given["model"])
        limit = self.cell["limit_seconds"]
        if last:
            self.ended = "horizon"
        elif limit is not None and self._read()["cpu_seconds"] > limit:
            self._measure(step, model=given["model"])
            self.ended = "limit"
        if self.ended or self.told_to_stop:
            control.should_training_stop = True
        control.should_save = not self.ended and (
            self.told_to_stop or time.monotonic() - self._saved > CHECKPOINT_SECONDS
        )

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._saved = time.monotonic()
        kept = {"counted": self._read(), "started": self.started}
        (self.folder / f"clock-{state.global_step}.json").write_text(json.dumps(kept), encoding="utf-8")
        self._write()

    def _measure(self, step: int, *, model: torch.nn.Module) -> None:
        if self.lines and self.lines[-1]["step"] == step:
            return
        self.counted, self._from = self._read(), {}
        value = self.heldout.bits_per_byte(model)
        step_seconds = self.counted["wall_seconds"] - self.started
        line = {"step": step, "tokens": round(step * self.tokens_a_step), **self.counted}
        self.lines.append({**line, "step_seconds": step_seconds, "bits_per_byte": value})
        self._write()
        self._from = now()

    def _write(self) -> None:
        text = "".join(json.dumps(line) + "\n" for line in self.lines)
        (self.folder / "curve.jsonl").write_text(text, encoding="utf-8")

    def _read(self) -> dict[str, float]:
        if not self._from:
            return dict(self.counted)
        return {key: self.counted[key] + value - self._from[key] for key, value in now().items()}

    def _tell(self, *_: Any) -> None:
        self.told_to_stop = True


def now() -> dict[str, float]:
    return {"cpu_seconds": time.process_time(), "wall_seconds": time.monotonic() - BEGAN_WALL}


def start_age() -> float:
    """Seconds that this process had lived at BEGAN_WALL."""
    return time.time() - psutil.Process().create_time() - (time.monotonic() - BEGAN_WALL)


def rows_of(split: Split, *, padded: bool, corpus: Corpus, seq_len: int) -> list[np.ndarray]:
    """What the Trainer trains on, before padding: an end token in front of each document, and its own behind it."""
    end = np.array([corpus.end_id], np.uint16)
    if padded:
        return [np.concatenate([end, one[: seq_len - 1]]) for one in split.documents()]
    order = np.random.default_rng(17).permutation(len(split.lengths_D))
    documents = split.documents()
    stream = np.concatenate([end, *(documents[place] for place in order)])
    return list(stream[: len(stream) // seq_len * seq_len].reshape(-1, seq_len))


def model_of(cell: dict[str, Any], *, corpus: Corpus) -> torch.nn.Module:
    """GPT-2 for `padded`, our Qwen3 for `packed`; see the top of this file. One more entry is the padding's."""
    shape = cell["model"]
    if cell["system"] == "packed":
        config = transformers.Qwen3Config(
            vocab_size=corpus.vocab_size, hidden_size=shape["width"], intermediate_size=shape["ffn_width"],
            num_hidden_layers=shape["layers"], num_attention_heads=shape["heads"],
            num_key_value_heads=shape["kv_heads"], head_dim=shape["head_dim"] or shape["width"] // shape["heads"],
            max_position_embeddings=cell["seq_len"], tie_word_embeddings=shape["tie_embeddings"], attention_dropout=0.0,
            rope_parameters={"rope_type": "default", "rope_theta": shape["rope_theta"]},
            rms_norm_eps=shape["norm_epsilon"], bos_token_id=corpus.end_id, eos_token_id=corpus.end_id, use_cache=False,
        )  # fmt: skip
        return transformers.Qwen3ForCausalLM(config)
    config = transformers.GPT2Config(
        vocab_size=corpus.vocab_size + 1, n_positions=cell["seq_len"], n_embd=shape["width"], n_layer=shape["layers"],
        n_head=shape["heads"], n_inner=shape["ffn_width"] * 3 // 2, tie_word_embeddings=shape["tie_embeddings"],
        bos_token_id=corpus.end_id, eos_token_id=corpus.end_id, use_cache=False,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def arguments(folder: Path, *, cell: dict[str, Any], rows_a_step: int, steps: int) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder / "checkpoints"), max_steps=steps, per_device_train_batch_size=rows_a_step,
        learning_rate=cell["learning_rate"], lr_scheduler_type="cosine", warmup_steps=math.ceil(WARMUP * steps),
        weight_decay=WEIGHT_DECAY, seed=cell["seed"], use_cpu=True, report_to="none", disable_tqdm=True,
        logging_strategy="no", save_strategy="no", save_total_limit=1,
    )  # fmt: skip


def collator(corpus: Corpus, *, padded: bool) -> Any:
    if not padded:
        return default_data_collator
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(corpus.tokenizer / "tokenizer.json"), pad_token=PAD)
    return DataCollatorForLanguageModeling(tokenizer, mlm=False)


def newest(folder: Path) -> tuple[Path, int] | None:
    """The newest checkpoint whose clock was written, and its step."""
    found = sorted((folder / "checkpoints").glob("checkpoint-*"), key=lambda path: -step_of(path))
    return next(
        ((path, step_of(path)) for path in found if (folder / f"clock-{step_of(path)}.json").exists()), None
    )  # fmt: skip


def step_of(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


def read_lines(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def main(folder: Path) -> int:
    cell = json.loads((folder / "cell.json").read_text(encoding="utf-8"))
    torch.set_num_threads(cell["cores"])
    corpus, padded = open_corpus(Path(cell["corpus"])), cell["system"] == "padded"
    rows = rows_of(corpus.split("train"), padded=padded, corpus=corpus, seq_len=cell["seq_len"])
    mean_tokens = sum(map(len, rows)) / len(rows)
    rows_a_step = max(1, round(cell["batch_tokens"] / mean_tokens))
    steps = math.ceil(cell["tokens"] / (rows_a_step * mean_tokens))
    transformers.set_seed(cell["seed"])
    clock = Clock(
        folder, cell=cell, heldout=Heldout(corpus, seq_len=cell["seq_len"]), every=math.ceil(steps / EVALUATIONS),
        row_tokens=rows_a_step * mean_tokens,
    )  # fmt: skip
    trainer = Trainer(
        model=model_of(cell, corpus=corpus), train_dataset=Rows(rows, labels=not padded), callbacks=[clock],
        args=arguments(folder, cell=cell, rows_a_step=rows_a_step, steps=steps),
        data_collator=collator(corpus, padded=padded),
    )  # fmt: skip
    if found := newest(folder):
        clock.resume(found[1])
    trainer.train(resume_from_checkpoint=str(found[0]) if found else None)
    if not clock.ended:
        return STOPPED
    target = cell["target"]
    result = {
        **clock.lines[-1], "ended": clock.ended, "steps": steps, "rows_a_step": rows_a_step,
        "reached": target is not None and any(line["bits_per_byte"] <= target for line in clock.lines),
        "parameters": sum(value.numel() for value in trainer.model.parameters()), "optimizer": trainer.args.optim,
        "versions": {name.__name__: name.__version__ for name in (torch, transformers)},
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).absolute()))
