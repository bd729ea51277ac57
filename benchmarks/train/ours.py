"""Tessera's side of a cell: a run folder as the launcher makes it, and its ranks, on a corpus of `corpus.py`.

    python benchmarks/train/ours.py train CELL_FOLDER      what is measured: packing, shards, ranks, checkpoints
    python benchmarks/train/ours.py score CELL_FOLDER      held-out bits per byte of its last checkpoint; not measured

CELL_FOLDER/cell.json says what to do. The recipe is what `TrainSettings` and `ShardSettings` give by themselves, with a
cell's method set on top; only sizes, seed and number of steps are set here. One rank is a process, several run under
torchrun, as `tessera train` starts them but without Spark. A run that was stopped goes on from its newest checkpoint,
up to half a minute back; that loss, too, is in its time, as are all of its starts.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from corpus import Corpus, Split, open_corpus

from tessera.home import Home
from tessera.train.run import RunFolder, RunSpec, launcher_lock, to_json
from tessera.train.settings import TrainSettings

WORKER = "tessera.train.worker"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nnodes=1")
ENVIRONMENT = {"PYTHONSAFEPATH": "1", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
HELDOUT_SEQUENCES = 16
"""Of the run's own measurements, before its first and after its last step, which count as training."""
BLOCK_SHARDS = 16
SHARD_BYTES = 8 * 2**20


def train(folder: Path) -> int:
    """Trains a cell's run to its end, from where it stands; the exit status."""
    cell = read_cell(folder)
    run = make_run(
        folder / "home", corpus=open_corpus(Path(cell["corpus"])), seq_len=cell["seq_len"], tokens=cell["tokens"],
        settings=merged({"model": cell["model"], "seed": cell["seed"], "ranks": cell["cores"]}, cell["settings"]),
    )  # fmt: skip
    if run.read_result() is None:
        with ranks(run) as process:
            signal.signal(signal.SIGTERM, lambda *_: process.terminate())
            process.wait()
    return 0 if run.read_result() is not None else 1


def score(folder: Path) -> None:
    """Writes result.json: what the run's last checkpoint is worth."""
    import torch
    from heldout import Heldout

    from tessera.model import build

    cell = read_cell(folder)
    run = RunFolder(Home(folder / "home").runs / "cell")
    result = run.read_result()
    assert result is not None, f"{run.root} is not finished"
    torch.set_num_threads(1)
    corpus = open_corpus(Path(cell["corpus"]))
    measured = Heldout(corpus, seq_len=cell["seq_len"]).bits_per_byte(build.load(run.root / result.checkpoint))
    found = {
        "bits_per_byte": measured, "own_bits_per_byte": result.bits_per_byte_after, "steps": result.steps,
        "train_tokens": result.train_tokens, "parameters": result.parameters, "step_seconds": result.seconds,
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(found) + "\n", encoding="utf-8")


def make_run(
    root: Path, *, corpus: Corpus, seq_len: int, tokens: int, settings: Mapping[str, Any], name: str = "cell"
) -> RunFolder:
    """A new attempt at the run `name` of a home, whose shard set is written if it is not there yet.

    Args:
        tokens: to train on, padding counted; makes the number of steps, unless `settings` do.
        settings: of `TrainSettings`, nested.
    """
    home = Home(root)
    manifest = home.root / "shards.arrow"
    if not manifest.with_suffix(".json").exists():
        write_shards(corpus, home=home, seq_len=seq_len)
    batch_size = settings.get("batch_size", TrainSettings().batch_size)
    fixed = {"device": "cpu", "threads": 1, "heldout": {"sequences": HELDOUT_SEQUENCES}}
    made = merged({**fixed, "steps": ceil(tokens / (batch_size * seq_len))}, settings)
    folder = RunFolder(home.runs / name)
    folder.checkpoints.mkdir(parents=True, exist_ok=True)
    spec = RunSpec(
        run=name, fingerprint="0" * 64, settings=TrainSettings.model_validate(made), tokenizer="tokenizers/corpus",
        block_shards=BLOCK_SHARDS,
    )  # fmt: skip
    folder.spec.write_text(to_json(spec.model_dump(mode="json")), encoding="utf-8")
    for file in (manifest, manifest.with_suffix(".json")):
        (folder.root / file.name).write_bytes(file.read_bytes())
    folder.attempt.write_text(f"{folder.read_attempt() + 1}\n", encoding="utf-8")
    return folder


def write_shards(corpus: Corpus, *, home: Home, seq_len: int) -> None:
    """Packs both splits and writes them as a shard set with its manifest, as `tessera shard` would."""
    import shutil

    import pyarrow as pa

    from tessera.shard import tokenizer
    from tessera.shard.run_manifest import SCHEMA, SetInfo, write_run_manifest

    shutil.copytree(corpus.tokenizer, home.tokenizers / "corpus", dirs_exist_ok=True)
    info = SetInfo(
        name="corpus", version=0, seq_len=seq_len, end_id=corpus.end_id, vocab_size=corpus.vocab_size,
        tokenizer=tokenizer.identity(corpus.tokenizer), root="shards/corpus",
    )  # fmt: skip
    rows = [row for name in ("heldout", "train")
            for row in _shards(corpus.split(name), name=name, info=info, folder=home.shards / "corpus")]  # fmt: skip
    table = pa.Table.from_pylist(rows, schema=SCHEMA).replace_schema_metadata(info.to_metadata())
    write_run_manifest(table, home.root / "shards.arrow")


def _shards(split: Split, *, name: str, info: Any, folder: Path) -> Iterator[dict[str, object]]:
    import hashlib

    from tessera.shard.format import mds
    from tessera.shard.pack import pack

    packed = pack(
        np.asarray(split.tokens_N), lengths=np.asarray(split.lengths_D), keys=np.asarray(split.keys_D2),
        seq_len=info.seq_len, end_id=info.end_id, seed=17,
    )  # fmt: skip
    columns = {"starts": "ndarray:uint16", "tokens": f"ndarray:uint16:{info.seq_len}"}
    files = mds.token_shards(
        packed.tokens_ST, starts_P=packed.starts_P, num_starts_S=packed.num_starts_S,
        config=mds.make_config(columns, size_limit=SHARD_BYTES, hashes=["sha256"]),
    )  # fmt: skip
    totals = {"tokens": len(split.tokens_N), "text_bytes": split.text_bytes, "documents": len(split.lengths_D),
              "padding": int(packed.padding_S(end_id=info.end_id).sum())}  # fmt: skip
    (folder / name).mkdir(parents=True, exist_ok=True)
    for ordinal, (data, samples) in enumerate(files):
        (folder / name / f"{ordinal}.mds").write_bytes(data)
        yield {
            "split": name, "generation": 0, "bucket": 0, "ordinal": ordinal, "file": f"{name}/{ordinal}.mds",
            "num_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "samples": samples, "buckets": 1,
            **(totals if ordinal == 0 else dict.fromkeys(totals, 0)),  # a split's totals stand in its first row
        }  # fmt: skip


@contextmanager
def ranks(run: RunFolder, *, restarts: int = 0, torchrun: bool = False) -> "Iterator[subprocess.Popen[bytes]]":
    """The ranks of a run's newest attempt, as processes; this process is their launcher while the block runs.

    Args:
        restarts: how often torchrun starts them again; one rank runs without torchrun unless `torchrun` asks for it.
    """
    world = run.read_spec().settings.ranks
    start = (*TORCHRUN, f"--nproc_per_node={world}", f"--max_restarts={restarts}") if world > 1 or torchrun else ()
    command = [sys.executable, *start, "-m", WORKER, str(run.root), str(run.read_attempt())]
    with launcher_lock(run), run.log.open("ab") as log:
        process = subprocess.Popen(command, env={**os.environ, **ENVIRONMENT}, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.terminate()
            process.wait()


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`below` with the keys of `above` on top, sections key by key."""
    result = dict(below)
    for key, value in above.items():
        inner = result.get(key)
        result[key] = merged(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return result


def read_cell(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "cell.json").read_text(encoding="utf-8"))


if __name__ == "__main__":
    what, where = sys.argv[1], Path(sys.argv[2]).absolute()
    sys.exit(train(where) if what == "train" else score(where))
