"""gzip against the `gzip` module, the order of documents, and n-grams against hand-counted figures."""

import gzip
import hashlib
import math

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from tessera.errors import ShardSetError
from tessera.evaluate import baselines
from tessera.shard import labels

from .conftest import batch_of

TEXTS = ["Return the größte value.", "Raises\nan error", "Return the smallest value.", "x" * 500]


def documents(path):
    rows = [
        {"doc_id": hashlib.sha256(text.encode()).hexdigest(), "text": text, "split": split}
        for text, split in [*((text, "heldout") for text in TEXTS), ("never seen here", "train")]
    ]
    write_deltalake(path, pa.Table.from_pylist(rows[:2]))
    write_deltalake(path, pa.Table.from_pylist(rows[2:]), mode="append")
    write_deltalake(path, pa.Table.from_pylist(rows[:1]), mode="append")  # version 2 is not asked for
    return [row["text"] for row in sorted(rows[:4], key=lambda row: row["doc_id"])]


@pytest.mark.parametrize("range_bytes", [2**27, 40])
def test_heldout_texts_come_in_order_of_doc_id_from_the_pinned_version(tmp_path, monkeypatch, range_bytes):
    monkeypatch.setattr(labels, "RANGE_BYTES", range_bytes)
    expected = documents(tmp_path / "documents")

    found = list(baselines.heldout_texts(tmp_path / "documents", version=1, text_bytes=600))

    assert found == expected


@pytest.mark.parametrize("parts", [1, 2, 16, 256])
def test_ranges_hold_every_hash_once(parts):
    bounds = list(labels.ranges(parts))
    hashes = [hashlib.sha256(bytes([i, j])).hexdigest() for i in range(64) for j in range(8)]
    hashes += ["0" * 64, "f" * 64, "80000000" + "0" * 56, "7fffffff" + "f" * 56]

    assert len(bounds) == parts
    for doc_id in hashes:
        assert sum(low <= doc_id and (high is None or doc_id < high) for low, high in bounds) == 1


def test_gzip_is_the_size_of_gzip_nine_of_the_same_stream():
    text_bytes = sum(len(text.encode()) for text in TEXTS)
    stream = b"".join(text.encode() + b"\n" for text in TEXTS)

    found = baselines.gzip_bits_per_byte(iter(TEXTS), text_bytes=text_bytes)

    assert found == 8 * len(gzip.compress(stream, compresslevel=9)) / text_bytes


def test_other_text_than_the_shards_were_made_from_is_refused_without_showing_it():
    with pytest.raises(ShardSetError, match="shard set says 7") as error:
        baselines.gzip_bits_per_byte(TEXTS, text_bytes=7)

    assert "Return" not in str(error.value)


def test_ngrams_in_bits_per_byte_of_the_heldout_text():
    seen = [batch_of([[[1, 1]], [[2]]], seq_len=4, end_id=0)]
    heldout = batch_of([[[1]]], seq_len=4, end_id=0)

    found = baselines.ngram_bits_per_byte(
        seen=iter(seen), heldout=lambda: iter([heldout]), end_id=0, vocab_size=4, text_bytes=10
    )

    # seen: 1 1 0 | 2 0, so c = {1: 2, 0: 2, 2: 1}, 3 kinds; held out: 1 0
    p1 = (2 + 3 / 4) / 8
    p0 = (2 + 3 / 4) / 8
    assert found["unigram"] == pytest.approx(-math.log2(p1 * p0) / 10)
    b1 = (1 + 2 * p1) / 4  # after the end token: 1 once, 2 once
    b0 = (1 + 2 * p0) / 4  # after 1: 1 once, 0 once
    assert found["bigram"] == pytest.approx(-math.log2(b1 * b0) / 10)
    t1 = (1 + 2 * b1) / 4
    t0 = (0 + 1 * b0) / 2  # after end, 1: only 1
    assert found["trigram"] == pytest.approx(-math.log2(t1 * t0) / 10)
