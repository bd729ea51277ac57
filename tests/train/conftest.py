"""A small real shard set, runs over it in this process, and ranks started as TorchDistributor starts them."""

import hashlib
import importlib
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from tessera import failpoints
from tessera.home import Home
from tessera.shard import tokenizer
from tessera.shard.format import mds
from tessera.shard.pack import pack
from tessera.shard.run_manifest import SCHEMA, SetInfo, write_run_manifest
from tessera.train.job import Job
from tessera.train.opening import open_job
from tessera.train.ranks import Ranks
from tessera.train.run import RunFolder, RunSpec, launcher_lock, to_json
from tessera.train.settings import TrainSettings

SEQ_LEN = 32
TINY: dict[str, Any] = {
    "steps": 6, "batch_size": 8, "ranks": 2, "threads": 1,
    "model": {"layers": 2, "width": 32, "heads": 2, "kv_heads": 1, "ffn_width": 48},
    "checkpoint": {"every_steps": 2, "every_seconds": None},
    "heldout": {"sequences": 20},
}  # fmt: skip

WORKER = "tessera.train.worker"
WRAPPER = ["-m", "pyspark.ml.torch.torch_run_process_wrapper", "--standalone", "--nnodes=1"]
"""The command of TorchDistributor in local mode."""

MakeRun = Callable[..., RunFolder]
MakeJob = Callable[..., Job]


def docstrings() -> list[str]:
    modules = [importlib.import_module(name) for name in ("os", "json", "re", "collections", "subprocess", "random")]
    found = {inspect.getdoc(value) or "" for module in modules for value in vars(module).values() if callable(value)}
    return sorted(text for text in found if len(text) > 20)


@pytest.fixture(scope="session")
def set_home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A home with a tokenizer of 300 entries and a packed set of docstrings, held out one in ten."""
    home = Home(tmp_path_factory.mktemp("train") / "home")
    folder, tokens = home.shards / "small", home.tokenizers / "small"
    tokens.mkdir(parents=True)
    texts = docstrings()
    tokenizer.train(texts, folder=tokens, vocab_size=300)
    loaded = tokenizer.load(tokens)
    rows: list[dict[str, object]] = []
    for split, part in (("heldout", texts[::10]), ("train", [text for i, text in enumerate(texts) if i % 10])):
        documents = [np.array([*ids, loaded.end_id], np.uint16) for ids in loaded.encode_batch(part)]
        keys = np.frombuffer(b"".join(hashlib.sha256(text.encode()).digest()[:16] for text in part), "<u8")
        packed = pack(
            np.concatenate(documents), lengths=np.array([len(one) for one in documents]), keys=keys.reshape(-1, 2),
            seq_len=SEQ_LEN, end_id=loaded.end_id, seed=3,
        )  # fmt: skip
        config = mds.make_config(
            {"starts": "ndarray:uint16", "tokens": f"ndarray:uint16:{SEQ_LEN}"}, size_limit=2**14, hashes=["sha256"]
        )
        files = mds.token_shards(
            packed.tokens_ST, starts_P=packed.starts_P, num_starts_S=packed.num_starts_S, config=config
        )
        (folder / split).mkdir(parents=True)
        for ordinal, (data, samples) in enumerate(files):
            (folder / split / f"{ordinal}.mds").write_bytes(data)
            first = ordinal == 0  # totals of the split stand in its first row
            rows.append({
                "split": split, "generation": 0, "bucket": 0, "ordinal": ordinal, "file": f"{split}/{ordinal}.mds",
                "num_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "samples": samples, "buckets": 1,
                "tokens": sum(map(len, documents)) if first else 0,
                "text_bytes": sum(len(text.encode()) for text in part) if first else 0,
                "documents": len(part) if first else 0,
                "padding": int(packed.padding_S(end_id=loaded.end_id).sum()) if first else 0,
            })  # fmt: skip
    info = SetInfo(
        name="small", version=0, seq_len=SEQ_LEN, end_id=loaded.end_id, vocab_size=loaded.vocab_size,
        tokenizer=tokenizer.identity(tokens), root="shards/small",
    )  # fmt: skip
    table = pa.Table.from_pylist(rows, schema=SCHEMA).replace_schema_metadata(info.to_metadata())
    write_run_manifest(table, home.root / "shards.arrow")
    return home


@pytest.fixture(autouse=True)
def count_failpoints_anew() -> None:
    failpoints._passed.clear()


@pytest.fixture
def make_run(set_home: Home, request: pytest.FixtureRequest) -> MakeRun:
    """Makes a run folder as the launcher does: `make_run("a", steps=3)` over TINY."""

    def make(name: str = "run", **changed: Any) -> RunFolder:
        folder = RunFolder(set_home.runs / f"{request.node.name}-{name}")
        folder.checkpoints.mkdir(parents=True, exist_ok=True)
        spec = RunSpec(
            run=folder.root.name, fingerprint="f" * 64, settings=TrainSettings.model_validate({**TINY, **changed}),
            tokenizer="tokenizers/small", block_shards=2,
        )  # fmt: skip
        folder.spec.write_text(to_json(spec.model_dump(mode="json")))
        for name in ("shards.arrow", "shards.json"):
            (folder.root / name).write_bytes((set_home.root / name).read_bytes())
        folder.attempt.write_text(f"{folder.read_attempt() + 1}\n")
        return folder

    return make


@pytest.fixture
def make_job(make_run: MakeRun) -> MakeJob:
    """Opens a run as its only rank, in this process; resumes when the folder has checkpoints."""

    def make(name: str = "run", **changed: Any) -> Job:
        torch.set_num_threads(1)
        folder = make_run(name, **{"ranks": 1, **changed})
        return open_job(folder, attempt=folder.read_attempt(), ranks=Ranks())

    return make


def rank_command(folder: RunFolder, *, ranks: int, restarts: int = 0) -> tuple[list[str], dict[str, str]]:
    """What TorchDistributor executes, and the environment that `launch` gives it."""
    environment = {"PYTHONSAFEPATH": "1", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable, *WRAPPER, f"--nproc_per_node={ranks}", f"--max_restarts={restarts}", "-m", WORKER,
        str(folder.root), str(folder.read_attempt()),
    ]  # fmt: skip
    return command, {**os.environ, **environment}


def run_ranks(folder: RunFolder, *, ranks: int, restarts: int = 0, fail: str = "") -> None:
    """Runs ranks to their end, this process being their launcher; `fail` is a failpoint."""
    command, environment = rank_command(folder, ranks=ranks, restarts=restarts)
    with launcher_lock(folder), folder.log.open("w") as log:
        subprocess.run(command, env={**environment, "TESSERA_FAIL": fail}, stdout=log, stderr=log, timeout=200)


TIMED = {"seconds", "tokens_per_second", "model_flops_per_second", "memory_bytes", "time"}


def metric_lines(folder: RunFolder) -> list[dict[str, float]]:
    """metrics.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMED} for line in lines]
