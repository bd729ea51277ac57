"""Texts, instructions and conversations down the line: the model learns the assistant's words, and is judged by them.

Once with stored shards, once in direct mode. The independent answer is read out of the stored files by the generic MDS
decoder, a document at a time.
"""

import gzip
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from deltalake import write_deltalake

from tessera import tables
from tessera.errors import ShardSetError
from tessera.home import Home
from tessera.lineage import EvaluateRecord, PrepareRecord, ShardRecord, TrainRecord
from tessera.model import build
from tessera.pipeline import Pipeline
from tessera.serve.register import pack
from tessera.settings import Settings
from tessera.shard import manifest, tokenizer
from tessera.shard.format import mds
from tessera.train.run import RunFolder

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = [pytest.mark.spark, pytest.mark.distributed]

SEQ_LEN = 64
MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


def say(key: int, *, words: int) -> str:
    random = np.random.default_rng(key)
    return " ".join(random.choice(["größe", "猫", "the value", "of", "array", "is", "wanted", "number"], words))


def conversation(key: int) -> list[dict[str, str]]:
    """One to nine turns: some lose their later ones."""
    return [
        {"role": role, "content": say(1000 * key + turn, words=5)}
        for turn in range(1 + key % 9)
        for role in ("user", "assistant")
    ]


def write_sources(folder: Path) -> list[dict[str, Any]]:
    """A table of each kind but preference, as `prepare.sources`."""
    texts = [{"id": key, "text": say(key, words=20 + key % 60)} for key in range(80)]
    asked = [  # every fifth answer, and every seventh question, is longer than a sequence
        {"id": key, "q": f"{key} " + say(key, words=90 if key % 7 == 0 else 4),
         "a": f"{key} plain words " * 40 if key % 5 == 0 else say(-1 - key + 10**6, words=6)}
        for key in range(80)
    ]  # fmt: skip
    chats = [{"id": key, "messages": conversation(key)} for key in range(80)]
    write_deltalake(folder / "texts", pa.Table.from_pylist(texts))
    write_deltalake(folder / "asked", pa.Table.from_pylist(asked))
    schema = pa.schema([("id", pa.int64()), ("messages", MESSAGES)])
    write_deltalake(folder / "chats", pa.Table.from_pylist(chats, schema=schema))
    return [
        {"path": str(folder / "texts")},
        {"path": str(folder / "asked"), "kind": "instruction", "prompt": "q", "response": "a"},
        {"path": str(folder / "chats"), "kind": "chat"},
    ]


def settings_of(sources: list[dict[str, Any]], *, mode: str = "sharded") -> Settings:
    return Settings.model_validate(
        {
            "prepare": {"sources": sources, "holdout": 0.2, "min_chars": 1},
            "shard": {
                "name": "mixed", "mode": mode, "seq_len": SEQ_LEN, "bucket_bytes": 16384,
                "tokenizer": {"vocab_size": 400, "sample_bytes": 2**20},
            },
            "train": {
                "steps": 8, "batch_size": 8, "ranks": 1, "heldout": {"sequences": 10_000},
                "model": {"layers": 1, "width": 32, "heads": 2, "kv_heads": 2, "ffn_width": 64},
            },
            "evaluate": {"gate": {"max_bits_per_byte": 30.0, "beat": []}},
        }
    )  # fmt: skip


@dataclass(frozen=True)
class Line:
    """What the stages left."""

    home: Home
    prepare: PrepareRecord
    shard: ShardRecord
    train: TrainRecord
    evaluate: EvaluateRecord

    @property
    def run(self) -> RunFolder:
        return RunFolder(self.home.resolve(self.train.run))

    @property
    def checkpoint(self) -> Path:
        return self.home.resolve(self.train.checkpoint)


@dataclass(frozen=True)
class Stored:
    """A held-out document as the shard files hold it."""

    pieces: list[tuple[np.ndarray, np.ndarray]]
    """Tokens and their mask, a piece in each sequence."""

    def said(self, *, end_id: int) -> Iterator[list[int]]:
        """What the labels stand for: a text, or each turn of the assistant."""
        tokens, loss = (np.concatenate(parts) for parts in zip(*self.pieces, strict=True))
        labels = tokens[loss == 1]
        for turn in np.split(labels, np.flatnonzero(labels == end_id) + 1):
            if len(kept := turn[turn != end_id]):
                yield kept.tolist()


@pytest.fixture(scope="module")
def lines(spark: "SparkSession", tmp_path_factory: pytest.TempPathFactory) -> dict[str, Line]:
    folder = tmp_path_factory.mktemp("kinds")
    sources = write_sources(folder)
    made = {}
    for mode in ("sharded", "direct"):
        home = Home(folder / mode)
        pipeline = Pipeline(settings_of(sources, mode=mode), home=home)
        records: Any = [pipeline.do(stage) for stage in ("prepare", "shard", "train", "evaluate")]
        made[mode] = Line(home, *records)
    return made


@pytest.fixture(scope="module")
def heldout(lines: dict[str, Line]) -> list[Stored]:
    """In order of doc_id."""
    line = lines["sharded"]
    folder = manifest.set_folder(line.home, name="mixed")
    spans = tables.read(line.home.resolve(line.shard.spans.path), version=line.shard.spans.version).to_pylist()
    files = {span["file"]: list(mds.read_samples(folder / span["file"])) for span in spans}
    found: dict[str, dict[int, tuple[np.ndarray, np.ndarray]]] = {}
    for span in spans:
        if span["split"] == "heldout":
            sample = files[span["file"]][span["sample"]]
            part = slice(span["start"], span["start"] + span["num_tokens"])
            loss = sample.get("loss", np.ones(SEQ_LEN, np.uint8))
            found.setdefault(span["doc_id"], {})[span["piece"]] = sample["tokens"][part].astype(int), loss[part]
    assert len(found) == line.prepare.splits["heldout"]
    return [Stored([pieces[number] for number in sorted(pieces)]) for _, pieces in sorted(found.items())]


def test_the_data_has_what_can_go_wrong(lines: dict[str, Line], heldout: list[Stored]) -> None:
    """Texts in pieces, dropped turns, cut answers, questions that leave no room for one: all of them held out."""
    line = lines["sharded"]
    spans = tables.read(line.home.resolve(line.shard.spans.path), version=line.shard.spans.version).to_pylist()
    out = [span for span in spans if span["split"] == "heldout"]

    assert any(len(one.pieces) > 1 for one in heldout)
    assert any(span["dropped_turns"] for span in out)
    assert any(span["cut_tokens"] and span["loss_tokens"] for span in out)
    assert any(span["cut_tokens"] and not span["loss_tokens"] for span in out)


def test_bits_per_byte_are_of_the_assistants_words(lines: dict[str, Line], heldout: list[Stored]) -> None:
    """The loss of each document alone, over the bytes of what its labels decode to; gzip of the same."""
    line = lines["sharded"]
    model, loaded = build.load(line.checkpoint), tokenizer.load(line.checkpoint)
    nats, num_labels = 0.0, 0
    for tokens, loss in (piece for one in heldout for piece in one.pieces):
        with torch.no_grad():
            inputs = torch.tensor([[loaded.end_id, *tokens[:-1]]])
            chances = model(input_ids=inputs).logits[0].double().log_softmax(-1)
        own = chances[torch.arange(len(tokens)), torch.tensor(tokens)]
        nats -= float(own[torch.tensor(loss == 1)].sum())
        num_labels += int(loss.sum())
    texts = [loaded.decode(turn) for one in heldout for turn in one.said(end_id=loaded.end_id)]
    text_bytes = sum(len(text.encode()) for text in texts)
    (row,) = tables.read(line.home.evaluations).to_pylist()

    assert (row["tokens"], row["text_bytes"]) == (num_labels, text_bytes)
    assert line.evaluate.bits_per_byte == pytest.approx(nats / math.log(2) / text_bytes, rel=1e-5)
    compressed = gzip.compress("".join(f"{text}\n" for text in texts).encode(), 9)
    assert line.evaluate.baselines["gzip"] == pytest.approx(8 * len(compressed) / text_bytes)
    result = line.run.read_result()
    assert result is not None
    assert result.bits_per_byte_after == pytest.approx(line.evaluate.bits_per_byte, rel=1e-4)
    assert text_bytes < line.shard.splits["heldout"].num_bytes, "as many bytes as all are would prove nothing"


def test_ngrams_are_scored_on_the_same_labels(lines: dict[str, Line], heldout: list[Stored]) -> None:
    """A unigram counted by hand over the training labels that the run saw."""
    from tessera.evaluate.heldout import batches_seen

    line = lines["sharded"]
    seen = [label for batch in batches_seen(line.run) for label in batch["labels"].ravel().tolist() if label != -100]
    counts, vocab_size = np.bincount(seen, minlength=400), line.shard.tokenizer.vocab_size
    kinds = int((counts > 0).sum())
    labels = np.concatenate([tokens[loss == 1] for one in heldout for tokens, loss in one.pieces])
    chances = (counts[labels] + kinds / vocab_size) / (len(seen) + kinds)

    (row,) = tables.read(line.home.evaluations).to_pylist()
    assert line.evaluate.baselines["unigram"] == pytest.approx(-np.log2(chances).sum() / row["text_bytes"])
    assert line.train.train_tokens == len(seen), "eight steps are less than an epoch"


def test_direct_mode_trains_the_same_weights(lines: dict[str, Line]) -> None:
    stored, direct = lines["sharded"], lines["direct"]

    assert not list(manifest.set_folder(direct.home, name="mixed").rglob("*.mds"))
    assert direct.train.weights_sha256 == stored.train.weights_sha256
    assert direct.evaluate.bits_per_byte == stored.evaluate.bits_per_byte
    assert direct.evaluate.baselines == stored.evaluate.baselines


def test_the_model_comes_with_the_template_that_it_was_trained_by(
    lines: dict[str, Line], heldout: list[Stored], tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    line = lines["sharded"]
    packed = pack(line.checkpoint, into=tmp_path, weights_sha256=line.train.weights_sha256)
    (template,) = packed.rglob("chat_template.jinja")
    theirs = AutoTokenizer.from_pretrained(template.parent)
    rows = tables.read(line.home.documents, columns=["doc_id", "messages", "split"]).to_pylist()
    messages = [row["messages"] for row in sorted(rows, key=lambda row: row["doc_id"]) if row["split"] == "heldout"]

    compared = 0
    for one, own in zip(heldout, messages, strict=True):
        tokens = np.concatenate([tokens for tokens, _ in one.pieces])
        if own is None or len(tokens) == SEQ_LEN:
            continue
        rendered = theirs.apply_chat_template(own, tokenize=False)
        compared += rendered == theirs.decode(tokens)
        assert rendered.startswith(theirs.decode(tokens)), "it may have lost its later turns"
    assert compared > 3


def test_preferences_are_refused_before_a_rank_starts(spark: "SparkSession", tmp_path: Path) -> None:
    rows = [
        {"id": key, "prompt": say(key, words=4), "chosen": f"yes {key}", "rejected": f"no {key}"} for key in range(60)
    ]
    write_deltalake(tmp_path / "pairs", pa.Table.from_pylist(rows))
    settings = settings_of([{"path": str(tmp_path / "pairs"), "kind": "preference"}])
    pipeline = Pipeline(settings, home=Home(tmp_path / "home"))
    for stage in ("prepare", "shard"):
        pipeline.do(stage)

    with pytest.raises(ShardSetError, match="shard set mixed@0 holds preferences"):
        pipeline.do("train")
