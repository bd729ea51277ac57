"""The evaluate stage on a small real set: scores against document-by-document computation, one row, one commit."""

import gzip
import hashlib
import math
import socket
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np
import pyarrow as pa
import pytest
import torch
from deltalake import write_deltalake

from tessera import publish, tables
from tessera.errors import CorruptCheckpoint
from tessera.evaluate import stage
from tessera.evaluate.bits_per_byte import Score, score
from tessera.evaluate.evaluations import publish_row
from tessera.evaluate.heldout import batches_seen
from tessera.evaluate.scoring import evaluate
from tessera.evaluate.settings import EvaluateSettings, GateSettings
from tessera.home import Home
from tessera.lineage import (
    EvaluateRecord,
    PrepareRecord,
    ShardRecord,
    TableVersion,
    TokenizerRef,
    TrainRecord,
    sha256_file,
)
from tessera.model import build
from tessera.model.settings import ModelSettings
from tessera.shard import tokenizer
from tessera.shard.format import mds
from tessera.shard.pack import pack
from tessera.shard.read.batches import open_split, sequential
from tessera.shard.read.order import Order
from tessera.shard.run_manifest import SCHEMA, SetInfo, write_run_manifest
from tessera.tracking import TrackingSettings, open_run
from tessera.train import replay
from tessera.train.run import RunFolder, RunSpec, to_json
from tessera.train.settings import TrainSettings

from .test_ngrams import Plain, by_hand

SEQ_LEN, BATCH, SEED = 48, 4, 11
WORDS = ["return", "raise", "value", "list", "the", "of", "a", "None", "größte", "argument", "when", "not", "empty"]
SETTINGS = EvaluateSettings(batch_size=3, gate=GateSettings(max_bits_per_byte=20.0, beat=[]))


def no_session():
    raise AssertionError("one rank needs no session")


@dataclass(frozen=True)
class Made:
    """A home with documents, a shard set, a run folder and an MLflow run."""

    home: Home
    texts: dict[str, list[str]]
    """By split, in order of doc_id."""
    train: TrainRecord
    shard: ShardRecord
    prepare: PrepareRecord
    tracking: TrackingSettings

    @property
    def run(self):
        return RunFolder(self.home.resolve(self.train.run))

    def evaluate(self, *, train=None, settings=SETTINGS, told=None, **given):
        return evaluate(
            self.home, train=train or self.train, shard=self.shard, prepare=self.prepare, settings=settings,
            tracking=self.tracking, spark=no_session, **given,
            tell=lambda text, *_: told.append(text) if told is not None else None,
        )  # fmt: skip


def make_texts(count, seed):
    random = np.random.default_rng(seed)
    texts = [" ".join(random.choice(WORDS, random.integers(2, 9))) + f" {seed}{i}" for i in range(count)]
    return sorted(texts, key=doc_id)


def doc_id(text):
    return hashlib.sha256(text.encode()).hexdigest()


def write_split(home, split, texts, loaded):
    """The split's shard files, by the shard room's own parts; returns manifest rows."""
    documents = [np.array([*ids, loaded.end_id], np.uint16) for ids in loaded.encode_batch(texts)]
    keys = np.frombuffer(b"".join(hashlib.sha256(text.encode()).digest()[:16] for text in texts), "<u8").reshape(-1, 2)
    lengths = np.array([len(document) for document in documents])
    whole = pack(np.concatenate(documents), lengths=lengths, keys=keys, seq_len=SEQ_LEN, end_id=loaded.end_id, seed=3)
    columns = {"starts": "ndarray:uint16", "tokens": f"ndarray:uint16:{SEQ_LEN}"}
    config = mds.make_config(columns, size_limit=2**11, hashes=["sha256"])
    rows = []
    (home.shards / "small" / split).mkdir(parents=True)
    shards = mds.token_shards(whole.tokens_ST, starts_P=whole.starts_P, num_starts_S=whole.num_starts_S, config=config)
    for ordinal, (data, samples) in enumerate(shards):
        file = f"{split}/{ordinal}.mds"
        (home.shards / "small" / file).write_bytes(data)
        first = ordinal == 0
        rows.append(
            {"split": split, "generation": 0, "bucket": 0, "ordinal": ordinal, "file": file, "buckets": 1,
             "num_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "samples": samples,
             "tokens": int(lengths.sum()) * first, "text_bytes": sum(len(t.encode()) for t in texts) * first,
             "documents": len(texts) * first, "padding": 0}
        )  # fmt: skip
    return rows


def make_model(folder, loaded):
    settings = ModelSettings(layers=2, width=32, heads=4, kv_heads=2, ffn_width=48, tie_embeddings=False)
    model = build.build(settings, vocab_size=loaded.vocab_size, seq_len=SEQ_LEN, end_id=loaded.end_id, seed=1)
    with torch.no_grad():
        for value in model.parameters():
            if value.dim() == 2:
                value.normal_(0.0, 0.2, generator=torch.Generator().manual_seed(value.numel()))
    build.export(model, folder=folder)
    return sha256_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    home = Home(tmp_path_factory.mktemp("evaluate") / "home")
    texts = {"train": make_texts(150, 1), "heldout": make_texts(40, 2)}
    rows = [{"doc_id": doc_id(t), "text": t, "split": split} for split, some in texts.items() for t in some]
    home.tables.mkdir(parents=True)
    write_deltalake(home.documents, pa.Table.from_pylist(rows[::-1]))
    run = RunFolder(home.runs / "small-1")
    step = run.checkpoints / "step-00000008"
    tokenizer.train(texts["train"], folder=step, vocab_size=290)
    loaded = tokenizer.load(step)
    info = SetInfo(
        name="small", version=2, seq_len=SEQ_LEN, end_id=loaded.end_id, vocab_size=loaded.vocab_size,
        tokenizer=tokenizer.identity(step), root="shards/small",
    )  # fmt: skip
    manifest = [row for split in ("heldout", "train") for row in write_split(home, split, texts[split], loaded)]
    table = pa.Table.from_pylist(manifest, schema=SCHEMA).replace_schema_metadata(info.to_metadata())
    write_run_manifest(table, run.manifest)
    write_spec(run, steps=8)
    tracking = TrackingSettings()
    tracked = open_run(tracking, home=home, name="small-1", run_id=None)
    ref = TokenizerRef(path="x", sha256=info.tokenizer, vocab_size=info.vocab_size, end_id=info.end_id)
    shard_set = TableVersion(name="small", path="shards/small/manifest", version=2)
    documents = TableVersion(name="documents", path="tables/documents", version=0)
    return Made(
        home=home, texts=texts, tracking=tracking,
        train=TrainRecord(
            fingerprint="t", run="runs/small-1", run_id=tracked.run_id, steps=8, train_tokens=0, ranks=1, parameters=1,
            shard_set=shard_set, tokenizer=ref, bits_per_byte_before=8.0, checkpoint=home.relative(step),
            weights_sha256=make_model(step, loaded),
        ),
        shard=ShardRecord(
            fingerprint="s", name="small", manifest=shard_set, spans=shard_set, tokenizer=ref, seq_len=SEQ_LEN,
            tokens=1, shards=1, splits={}, fill=1.0,
        ),
        prepare=PrepareRecord(
            fingerprint="p", rows=1, documents=1, dropped={}, splits={}, num_bytes=1, table=documents
        ),
    )  # fmt: skip


def write_spec(run, *, steps):
    settings = TrainSettings(steps=steps, batch_size=BATCH, seed=SEED, ranks=1)
    spec = RunSpec(run=run.root.name, fingerprint="t", settings=settings, tokenizer="x", block_shards=4)
    run.spec.write_text(to_json(spec.model_dump(mode="json")))


@pytest.fixture(scope="module")
def evaluated(made):
    write_spec(made.run, steps=10_000)  # more than an epoch: the baselines saw every training document
    return made.evaluate()


def heldout_bytes(made):
    return sum(len(text.encode()) for text in made.texts["heldout"])


def test_bits_per_byte_is_the_sum_over_documents_alone(made, evaluated):
    checkpoint = made.home.resolve(made.train.checkpoint)
    model, loaded = build.load(checkpoint), tokenizer.load(checkpoint)
    nats = 0.0
    for ids in loaded.encode_batch(made.texts["heldout"]):
        assert len(ids) < SEQ_LEN
        with torch.no_grad():
            chances = model(input_ids=torch.tensor([[loaded.end_id, *ids]])).logits[0].double().log_softmax(-1)
        nats -= float(chances[torch.arange(len(ids) + 1), torch.tensor([*ids, loaded.end_id])].sum())

    assert evaluated.bits_per_byte == pytest.approx(nats / math.log(2) / heldout_bytes(made), rel=1e-6)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_the_sum_does_not_depend_on_who_computes_which_batch(made, workers):
    heldout = open_split(made.run.manifest, split="heldout", shards_root=made.home.shards / "small")
    model = build.load(made.home.resolve(made.train.checkpoint))
    done = []

    def summed(count, progress=None):
        return score(model, batches=sequential(heldout, batch_size=3), text_bytes=9, workers=count, progress=progress)

    assert summed(workers, done.append) == summed(1)
    assert done == sorted(done)
    assert done[-1] == heldout.num_tokens


def test_gzip_is_that_of_the_texts_in_order_of_doc_id(made, evaluated):
    stream = "".join(text + "\n" for text in made.texts["heldout"]).encode()

    assert evaluated.baselines["gzip"] == 8 * len(gzip.compress(stream, compresslevel=9)) / heldout_bytes(made)


def test_ngrams_are_those_of_all_training_documents_once(made, evaluated):
    loaded = tokenizer.load(made.home.resolve(made.train.checkpoint))
    seen, scored = (
        [t for ids in loaded.encode_batch(made.texts[split]) for t in by_hand([ids], end=loaded.end_id)]
        for split in ("train", "heldout")
    )
    plain = Plain(seen, loaded.vocab_size)

    for order, name in enumerate(("unigram", "bigram", "trigram")):
        bits = -sum(math.log2(plain.chance(t[2 - order :])) for t in scored)
        assert evaluated.baselines[name] == pytest.approx(bits / heldout_bytes(made), rel=1e-9)


@pytest.mark.parametrize("steps", [1, 3, 9, 10, 100])
def test_the_tokens_seen_are_the_samples_of_the_first_steps(made, steps):
    write_spec(made.run, steps=steps)
    found = [row[row != -100].tolist() for batch in batches_seen(made.run) for row in batch["labels"]]
    files = sorted((made.home.shards / "small" / "train").glob("*.mds"), key=lambda file: int(file.stem))
    samples = [list(mds.read_samples(file)) for file in files]
    order = Order(np.array([len(some) for some in samples]), seed=SEED, block_shards=4)
    number = min(steps * BATCH, sum(len(some) for some in samples))
    wanted = [samples[shard][at]["tokens"].tolist() for shard, at in zip(*order.locate(np.arange(number)), strict=True)]

    assert len(found) == number
    for mine, stored in zip(found, wanted, strict=True):
        assert mine == stored[: len(mine)]
        assert set(stored[len(mine) :]) <= {made.train.tokenizer.end_id}


def test_the_row_the_commit_and_the_run_say_the_same(made, evaluated):
    (row,) = tables.read(made.home.evaluations, version=evaluated.table.version).to_pylist()
    recorded = EvaluateRecord.model_validate(publish.read_record(made.home.evaluations, version=0))
    from mlflow import MlflowClient

    run = MlflowClient(f"sqlite:///{made.home.mlflow_database}").get_run(made.train.run_id)

    assert recorded == evaluated
    assert row["bits_per_byte"] == evaluated.bits_per_byte == run.data.metrics["eval/bits_per_byte"]
    assert {name: row[name] for name in evaluated.baselines} == evaluated.baselines
    assert run.data.metrics["eval/gzip_bits_per_byte"] == evaluated.baselines["gzip"]
    assert (row["passed"], run.data.tags["tessera.gate"]) == (True, "passed")
    assert row["reasons"] == list(evaluated.reasons)
    assert row["text_bytes"] == heldout_bytes(made)
    assert row["documents_version"] == 0
    assert stage.verify(evaluated, home=made.home)


def test_mlflow_that_fails_loses_nothing(made, evaluated):
    told = []
    absent = made.train.model_copy(update={"run_id": "0" * 32})
    settings = EvaluateSettings(batch_size=7, gate=GateSettings(max_bits_per_byte=0.5, beat=["gzip"]))

    record = made.evaluate(train=absent, settings=settings, told=told)

    assert any("did not take the evaluation: it says RESOURCE_DOES_NOT_EXIST; it is kept in" in text for text in told)
    (kept,) = replay.unsent_evaluations(made.run)
    kept.unlink()
    assert record.bits_per_byte == pytest.approx(evaluated.bits_per_byte, rel=1e-6)
    assert not record.passed
    rows = tables.read(made.home.evaluations, version=record.table.version).to_pylist()
    assert sorted(row["passed"] for row in rows) == [False, True]
    assert stage.verify(evaluated, home=made.home)


def test_scores_that_mlflow_missed_are_sent_later_once_and_as_they_were(made, evaluated):
    told, later = [], []
    with closing(socket.create_server(("127.0.0.1", 0))) as closed:
        port = closed.getsockname()[1]
    nowhere = TrackingSettings(uri=f"http://127.0.0.1:{port}", flush_seconds=0)
    settings = EvaluateSettings(batch_size=3, gate=GateSettings(max_bits_per_byte=0.25, beat=[]))
    record = replace(made, tracking=nowhere).evaluate(settings=settings, told=told)
    assert [folder.root for folder in replay.unsent(made.home)] == [made.run.root]
    before = scores_of(made)
    for _ in range(2):
        replay.replay(made.home, settings=made.tracking, notice=later.append)

    (said,) = (text for text in told if "MLflow" in text and text != "telling MLflow")
    assert said.startswith("MLflow did not take the evaluation: the connection was refused; it is kept in evaluation-")
    ((step, value, moment),) = scores_of(made) - before
    assert (step, value) == (made.train.steps, record.bits_per_byte)
    assert moment / 1000 == pytest.approx(datetime.fromisoformat(record.created).timestamp(), abs=5)
    assert later == []
    with sqlite3.connect(made.home.mlflow_database) as database:
        tag = "select value from tags where run_uuid = ? and key = 'tessera.gate'"
        assert database.execute(tag, (made.train.run_id,)).fetchall() == [("failed",)]
        assert database.execute("select count(*) from metrics where key = 'step'").fetchall() == [(0,)]


def scores_of(made):
    with sqlite3.connect(made.home.mlflow_database) as database:
        query = "select step, value, timestamp from metrics where run_uuid = ? and key = 'eval/bits_per_byte'"
        return set(database.execute(query, (made.train.run_id,)))


def test_the_fingerprint_covers_weights_text_and_gate(made):
    def taken(train=made.train, prepare=made.prepare, settings=SETTINGS):
        return stage.fingerprint(train, shard=made.shard, prepare=prepare, settings=settings)

    assert taken() == taken(settings=SETTINGS.model_copy(update={"batch_size": 99}))
    others = {
        taken(train=made.train.model_copy(update={"weights_sha256": "other"})),
        taken(prepare=made.prepare.model_copy(update={"fingerprint": "other"})),
        taken(settings=EvaluateSettings()),
    }
    assert len(others | {taken()}) == 4


def test_a_record_whose_table_is_gone_does_not_hold(made, evaluated, tmp_path):
    later = evaluated.table.model_copy(update={"version": 99})

    assert not stage.verify(evaluated.model_copy(update={"table": later}), home=made.home)
    assert not stage.verify(evaluated, home=Home(tmp_path))


def test_other_weights_than_recorded_are_refused(made):
    changed = made.train.model_copy(update={"weights_sha256": "0" * 64})
    with pytest.raises(CorruptCheckpoint, match="train again"):
        made.evaluate(train=changed)


def test_rows_of_evaluations_at_the_same_time_are_all_kept(made, evaluated, tmp_path):
    home = Home(tmp_path)
    score = Score(nats=1.0, tokens=1, text_bytes=1)

    def append(number):
        record = evaluated.model_copy(update={"fingerprint": str(number)})
        return publish_row(home, record=record, train=made.train, score=score).table.version

    with ThreadPoolExecutor(4) as pool:
        versions = list(pool.map(append, range(8)))

    assert sorted(versions) == list(range(8))
    found = {row["fingerprint"] for row in tables.read(home.evaluations).to_pylist()}
    assert found == {str(number) for number in range(8)}
    for number, version in enumerate(versions):
        assert publish.read_record(home.evaluations, version=version)["fingerprint"] == str(number)
