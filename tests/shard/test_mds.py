"""MDS bytes against files put together by hand from the format's description, and against mosaicml-streaming itself.

The second needs an environment of its own: `TESSERA_STREAMING_PYTHON` names a Python with mosaicml-streaming 0.13.
"""

import json
import os
import struct
import subprocess
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.errors import CorruptShard, ShardSetError
from tessera.shard.format import encodings, mds

STREAMING = os.environ.get("TESSERA_STREAMING_PYTHON")

VALUES: dict[str, list[Any]] = {
    "int": [-5, 2**40],
    "uint8": [0, 255],
    "uint16": [1, 65535],
    "uint32": [1, 2**32 - 1],
    "uint64": [1, 2**63],
    "int8": [-128, 127],
    "int16": [-2, 300],
    "int32": [-2, 70000],
    "int64": [-2, 2**50],
    "float16": [0.5, -1.25],
    "float32": [0.1, -3.5],
    "float64": [0.1, 1e300],
    "str": ["", "tessera ü 漢"],
    "bytes": [b"\x00\xff", b"abc"],
    "json": [{"b": [1, None], "a": "ü"}, 3],
    "str_int": [12345678901234567890, -1],
    "str_float": [0.1, -2.5],
    "str_decimal": [Decimal("1.10"), Decimal("-7")],
    "ndarray": [np.arange(6, dtype=np.int16).reshape(2, 3), np.ones(300, np.float32)],
    "ndarray:uint16": [np.array([7], np.uint16), np.arange(70000, dtype=np.uint16)],
    "ndarray:float64": [np.ones((2, 1, 2)), np.zeros(3)],
    "ndarray:int8:2,2": [np.eye(2, dtype=np.int8), np.ones((2, 2), np.int8)],
}


@pytest.mark.parametrize(
    ("encoding", "value", "data"),
    [
        ("int", -2, "feffffffffffffff"),
        ("uint16", 258, "0201"),
        ("float32", 1.0, "0000803f"),
        ("str", "ü", "c3bc"),
        ("bytes", b"\x01", "01"),
        ("json", {"b": 1, "a": "ü"}, b'{"b": 1, "a": "\\u00fc"}'.hex()),
        ("str_int", 12, "3132"),
        ("ndarray", np.array([[1, 2]], np.uint16), "1008010201000200"),
        ("ndarray", np.zeros(256, np.uint8), "08050001" + "00" * 256),
        ("ndarray:uint16", np.array([1, 513], np.uint16), "040201000102"),
        ("ndarray:int8:2", np.array([-1, 1], np.int8), "ff01"),
    ],
)
def test_a_value_has_the_bytes_of_the_format(encoding: str, value: Any, data: str) -> None:
    encoded = encodings.encode(encoding, value)

    assert encoded.hex() == data
    assert encodings.size_of(encoding) in (None, len(encoded))
    assert np.array_equal(encodings.decode(encoding, encoded), value)


@pytest.mark.parametrize("encoding", ["pkl", "jpeg", "ndarray:complex64", "nd", "ndarray:uint8:2:3"])
def test_an_encoding_that_is_not_ours_is_refused(encoding: str) -> None:
    with pytest.raises(ShardSetError, match="is not one of"):
        mds.make_config({"a": encoding})


@pytest.mark.parametrize(
    ("encoding", "value"),
    [("ndarray", np.zeros(0)), ("ndarray", np.float32(1)), ("ndarray:uint16", np.zeros(2, np.uint32)),
     ("ndarray:uint16:3", np.zeros(2, np.uint16)), ("ndarray", np.zeros(2, np.complex64))],
)  # fmt: skip
def test_an_array_that_does_not_fit_is_refused(encoding: str, value: Any) -> None:
    with pytest.raises(ShardSetError):
        encodings.encode(encoding, value)


def test_a_token_shard_put_together_by_hand() -> None:
    config = (
        b'{"column_encodings": ["ndarray:uint16", "ndarray:uint16:4"], "column_names": ["starts", "tokens"], '
        b'"column_sizes": [null, 8], "compression": null, "format": "mds", "hashes": ["sha256"], '
        b'"size_limit": 65536, "version": 2}'
    )
    first = struct.pack("<I", 6) + bytes([0b100, 2]) + struct.pack("<2H", 0, 3) + struct.pack("<4H", 5, 6, 9, 9)
    second = struct.pack("<I", 4) + bytes([0b100, 1]) + struct.pack("<H", 0) + struct.pack("<4H", 7, 8, 513, 9)
    begin = 4 + 4 * 3 + len(config)
    offsets = struct.pack("<4I", 2, begin, begin + len(first), begin + len(first) + len(second))

    made = list(
        mds.token_shards(
            np.array([[5, 6, 9, 9], [7, 8, 513, 9]], np.uint16),
            starts_P=np.array([0, 3, 0], np.uint16),
            num_starts_S=np.array([2, 1]),
            config=mds.make_config(
                {"tokens": "ndarray:uint16:4", "starts": "ndarray:uint16"}, size_limit=65536, hashes=["sha256"]
            ),
        )
    )

    assert made == [(offsets + config + first + second, 2)]


@given(
    num_starts=st.lists(st.one_of(st.integers(1, 6), st.integers(250, 300)), min_size=1, max_size=12),
    dtype=st.sampled_from(["uint16", "uint32"]),
    limit=st.integers(1, 4000),
)
def test_token_shards_are_what_encoding_sample_by_sample_gives(num_starts: list[int], dtype: str, limit: int) -> None:
    random = np.random.default_rng(sum(num_starts))
    tokens = random.integers(0, 60000, (len(num_starts), 300)).astype(dtype)
    starts = [np.sort(random.choice(300, number, replace=False)).astype(np.uint16) for number in num_starts]
    config = mds.make_config({"starts": "ndarray:uint16", "tokens": f"ndarray:{dtype}:300"}, size_limit=limit)
    samples = [{"tokens": row, "starts": begin} for row, begin in zip(tokens, starts, strict=True)]

    made = list(
        mds.token_shards(
            tokens, starts_P=np.concatenate(starts), num_starts_S=np.array(num_starts), config=config
        )
    )  # fmt: skip

    assert made == list(mds.shard_bytes(config, samples))
    assert all(samples > 0 for _, samples in made)
    assert all(len(data) <= limit or samples == 1 for data, samples in made)


def test_an_oversized_first_sample_leaves_no_empty_shard() -> None:
    config = mds.make_config({"a": "bytes"}, size_limit=300)
    made = list(mds.shard_bytes(config, [{"a": bytes(400)}, {"a": b"x"}, {"a": b"y"}]))

    assert [samples for _, samples in made] == [1, 2]


def test_samples_come_back(tmp_path: Path) -> None:
    config = mds.make_config({name: name for name in VALUES})
    samples = [{name: values[number] for name, values in VALUES.items()} for number in (0, 1)]
    ((data, _),) = mds.shard_bytes(config, samples)
    (tmp_path / "0.mds").write_bytes(data)

    for read, sample in zip(mds.read_samples(tmp_path / "0.mds"), samples, strict=True):
        for name, value in sample.items():
            expected = np.asarray(value, dtype=name) if name in encodings.SCALARS else value
            assert np.array_equal(read[name], expected), name


@pytest.mark.parametrize("data", [b"", b"\x01\x00", b"\x01\x00\x00\x00\xff\x00\x00\x00" + b"x" * 300])
def test_a_file_that_is_not_mds_is_reported_by_name(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "bad.mds").write_bytes(data)
    with pytest.raises(CorruptShard, match=r"bad\.mds is not"):
        mds.read_config(tmp_path / "bad.mds")


UPSTREAM_WRITER = """
import hashlib, json, pickle, sys
from streaming import MDSWriter
request = pickle.load(sys.stdin.buffer)
for name, (columns, samples, limit) in request.items():
    with MDSWriter(out=f"{sys.argv[1]}/{name}", columns=columns, size_limit=limit, hashes=["sha256"]) as writer:
        for sample in samples:
            writer.write(sample)
"""

UPSTREAM_READER = """
import json, sys
import numpy as np
from streaming import StreamingDataset
dataset = StreamingDataset(local=sys.argv[1], shuffle=False, batch_size=1, validate_hash="sha256")
samples = [dataset[index] for index in range(len(dataset))]
np.savez(sys.argv[2], tokens=np.stack([sample["tokens"] for sample in samples]),
         starts=np.concatenate([sample["starts"] for sample in samples]),
         counts=np.array([len(sample["starts"]) for sample in samples]))
"""


def run_upstream(script: str, *arguments: Path, data: bytes = b"") -> None:
    assert STREAMING
    done = subprocess.run([STREAMING, "-c", script, *map(str, arguments)], input=data, capture_output=True, timeout=200)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.skipif(not STREAMING, reason="TESSERA_STREAMING_PYTHON names no Python with mosaicml-streaming")
def test_upstream_writes_the_same_bytes(tmp_path: Path) -> None:
    import pickle

    random = np.random.default_rng(1)
    tokens = [{"tokens": random.integers(0, 60000, 64).astype(np.uint16),
               "starts": np.arange(random.integers(1, 9), dtype=np.uint16)} for _ in range(900)]  # fmt: skip
    everything = [{name: values[number % 2] for name, values in VALUES.items()} for number in range(5)]
    cases = {
        "tokens": ({"tokens": "ndarray:uint16:64", "starts": "ndarray:uint16"}, tokens, 2**14),
        "everything": ({name: name for name in VALUES}, everything, 2**18),
    }

    run_upstream(UPSTREAM_WRITER, tmp_path, data=pickle.dumps(cases))

    for name, (columns, samples, limit) in cases.items():
        index = json.loads((tmp_path / name / "index.json").read_text())
        config = mds.make_config(columns, size_limit=limit, hashes=["sha256"])
        made = list(mds.shard_bytes(config, samples))
        entries = []
        for (data, number), entry in zip(made, index["shards"], strict=True):
            assert data == (tmp_path / name / entry["raw_data"]["basename"]).read_bytes()
            entries.append(mds.index_entry(config, samples=number, num_bytes=len(data), **{
                key: entry["raw_data"][key] for key in ("basename", "hashes")}))  # fmt: skip
        assert len(made) > 1
        assert mds.index_json(entries) == (tmp_path / name / "index.json").read_text()


@pytest.mark.skipif(not STREAMING, reason="TESSERA_STREAMING_PYTHON names no Python with mosaicml-streaming")
def test_upstream_reads_the_same_tokens(make_set: Any, tmp_path: Path) -> None:
    small = make_set()
    shards = small.open()
    entries = [
        mds.index_entry(
            mds.read_config(small.folder / file.file), basename=Path(file.file).name, num_bytes=file.num_bytes,
            samples=file.samples, hashes={"sha256": file.sha256},
        )
        for file in shards.files
    ]  # fmt: skip
    (small.folder / "train" / "index.json").write_text(mds.index_json(entries, tessera_manifest_version=3))

    run_upstream(UPSTREAM_READER, small.folder / "train", tmp_path / "read.npz")

    upstream = np.load(tmp_path / "read.npz")
    where = [(shard, sample) for shard, number in enumerate(shards.samples_per_shard) for sample in range(number)]
    samples = shards.gather(*np.array(where).T)
    tokens, starts, counts = samples.tokens_BT, samples.starts_P, samples.num_starts_B
    assert np.array_equal(upstream["tokens"], tokens)
    assert np.array_equal(upstream["starts"], starts)
    assert np.array_equal(upstream["counts"], counts)
