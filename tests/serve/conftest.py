"""A tiny model with its tokenizer, a server-side engine over it, and one MLflow store for all tests here."""

import dataclasses
from pathlib import Path

import pytest
import torch

from tessera.home import Home
from tessera.lineage import EvaluateRecord, PrepareRecord, TableVersion, TokenizerRef, TrainRecord, sha256_file
from tessera.model import build
from tessera.model.settings import ModelSettings
from tessera.serve.engine import Engine
from tessera.shard import tokenizer

CONTEXT = 64
TEXTS = [
    "Return the größte value of a list, or None if it is empty.",
    "Raise ValueError when the argument is not a positive number.",
    "Return the smallest value of a list; 空 lists are refused. \U0001f600",
]


def make_checkpoint(folder: Path, *, seed: int = 1) -> Path:
    """A checkpoint folder as training leaves it, with weights that talk: two layers, width 32."""
    tokenizer.train(TEXTS * 20, folder=folder, vocab_size=300)
    loaded = tokenizer.load(folder)
    settings = ModelSettings(layers=2, width=32, heads=4, kv_heads=2, ffn_width=48, tie_embeddings=False)
    model = build.build(settings, vocab_size=loaded.vocab_size, seq_len=CONTEXT, end_id=loaded.end_id, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.parameters():
            if value.dim() == 2:
                value.normal_(0.0, 0.35, generator=generator)
    build.export(model, folder=folder)
    (folder / "optimizer.safetensors").write_bytes(b"not to be shipped")
    (folder / "state.json").write_text("{}")
    (folder / "record.json").write_text("{}")
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def engine(checkpoint) -> Engine:
    return Engine(checkpoint)


@dataclasses.dataclass(frozen=True)
class Store:
    """A home with an MLflow store, and records of a run in it whose checkpoint exists."""

    home: Home
    uri: str
    train: TrainRecord
    evaluate: EvaluateRecord
    prepare: PrepareRecord


@pytest.fixture(scope="session")
def store(tmp_path_factory) -> Store:
    from mlflow import MlflowClient

    home = Home(tmp_path_factory.mktemp("serve") / "home")
    home.root.mkdir()
    uri = f"sqlite:///{home.mlflow_database}"
    client = MlflowClient(uri, uri)
    experiment = client.create_experiment("tessera", artifact_location=home.mlflow_artifacts.as_uri())
    run_id = client.create_run(experiment).info.run_id
    folder = make_checkpoint(home.runs / "run-1" / "checkpoints" / "step-00000008")
    weights = sha256_file(folder / "model.safetensors")
    table = TableVersion(name="documents", path="tables/documents", version=3)
    source = TableVersion(name="docs", path="tables/python_docs", version=0)
    train = TrainRecord(
        fingerprint="t", run="runs/run-1", run_id=run_id, steps=8, train_tokens=100, ranks=1, parameters=1,
        shard_set=TableVersion(name="default", path="shards/default/manifest", version=2),
        tokenizer=TokenizerRef(path="tokenizers/x", sha256="c" * 64, vocab_size=300, end_id=0),
        bits_per_byte_before=8.0, checkpoint=home.relative(folder), weights_sha256=weights,
    )  # fmt: skip
    evaluate = EvaluateRecord(
        fingerprint="e", run_id=run_id, checkpoint=train.checkpoint, weights_sha256=weights, bits_per_byte=2.5,
        baselines={"gzip": 3.0}, passed=False, reasons=("bits per byte 2.5000 is not below 2.0000, the bigram",),
        table=TableVersion(name="evaluations", path="tables/evaluations", version=0), inputs=(table,),
    )  # fmt: skip
    prepare = PrepareRecord(
        fingerprint="p", rows=1, documents=1, dropped={}, splits={}, num_bytes=1, table=table, inputs=(source,)
    )
    return Store(home=home, uri=uri, train=train, evaluate=evaluate, prepare=prepare)
