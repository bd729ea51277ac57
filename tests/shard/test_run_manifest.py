"""A run's manifest: Arrow for everyone, read by ranks with numpy; what Arrow itself reads is the answer."""

import json
import pickle
import subprocess
import sys
from dataclasses import astuple, fields
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.errors import ShardSetError
from tessera.shard.read.manifest import SetInfo, ShardFile, index_path, open_manifest
from tessera.shard.run_manifest import SCHEMA, ensure_index, read_run_manifest, write_run_manifest

INFO = SetInfo(
    name="docs", version=3, seq_len=64, end_id=0, vocab_size=70_000, tokenizer="ab" * 32, root="shards/żółw 🐢"
)

numbers = st.integers(-(2**63), 2**63 - 1)
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
row = st.tuples(*[
    st.sampled_from(["train", "heldout", "held", "trains", ""]) if field.name == "split"
    else words if field.type == pa.string() else numbers
    for field in SCHEMA
])  # fmt: skip


def table_of(rows) -> pa.Table:
    columns = [[row[place] for row in rows] for place in range(len(SCHEMA))]
    table = pa.table([pa.array(values, kind) for values, kind in zip(columns, SCHEMA.types, strict=True)], SCHEMA.names)
    return table.replace_schema_metadata(INFO.to_metadata())


def by_arrow(path: Path, *, split: str) -> list[ShardFile]:
    with pa.ipc.open_file(path) as reader:
        return [ShardFile(**row) for row in reader.read_all().to_pylist() if row["split"] == split]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("manifests")


@settings(deadline=None, max_examples=150)
@given(rows=st.lists(row, max_size=9), cut=st.integers(0, 9))
def test_numpy_reads_what_arrow_reads(folder, rows, cut):
    path = folder / "shards.arrow"
    chunks = pa.concat_tables([table_of(rows[:cut]), table_of(rows[cut:])]).replace_schema_metadata(INFO.to_metadata())
    write_run_manifest(chunks, path)

    with pa.ipc.open_file(path) as reader:
        assert reader.read_all().to_pylist() == table_of(rows).to_pylist()
    for split in ("train", "heldout", "", "none"):
        info, files = open_manifest(path, split=split)
        assert (info, list(files)) == (INFO, by_arrow(path, split=split))
        assert files.numbers("tokens").tolist() == [file.tokens for file in files]


@settings(deadline=None, max_examples=60)
@given(rows=st.lists(row, min_size=1, max_size=9), low=st.integers(0, 8), high=st.integers(0, 9))
def test_a_slice_of_a_table_is_written_as_that_slice(folder, rows, low, high):
    path = folder / "slice.arrow"
    write_run_manifest(table_of(rows).slice(low, max(high - low, 0)), path)

    assert list(open_manifest(path, split="train")[1]) == [ShardFile(*r) for r in rows[low:high] if r[0] == "train"]


def plain_rows(number: int) -> list[tuple]:
    return [("train", 1, i, 0, f"train/{i}.mds", 10, "ab" * 32, 4, 40, 90, 3, 2, 8) for i in range(number)]


def test_rows_are_those_of_a_list(tmp_path):
    path = tmp_path / "shards.arrow"
    rows = plain_rows(5)
    write_run_manifest(table_of(rows), path)
    _, files = open_manifest(path, split="train")

    assert [astuple(files[i]) for i in (0, -1, 3)] == [rows[0], rows[-1], rows[3]]
    assert {type(value) for value in astuple(files[0])} == {str, int}
    assert [field.name for field in fields(ShardFile)] == SCHEMA.names
    assert list(pickle.loads(pickle.dumps(files))) == list(files)
    with pytest.raises(IndexError):
        files[5]


def test_any_flipped_byte_is_refused(tmp_path):
    path = tmp_path / "shards.arrow"
    sha256 = write_run_manifest(table_of(plain_rows(1)), path)
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ShardSetError, match=rf"shards.arrow has SHA-256 \w{{64}}, shards.json says {sha256}"):
            open_manifest(path, split="train")
    path.write_bytes(whole[:-1])
    with pytest.raises(ShardSetError, match=sha256):
        open_manifest(path, split="train")
    path.write_bytes(whole)
    assert len(open_manifest(path, split="train")[1]) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text.replace('"rows": 2', '"rows": 1'), "within, and says"),
        (lambda text: text[:40], "JSONDecodeError"),
        (lambda text: "{}", "KeyError"),
        (lambda text: "[]", "TypeError"),
    ],
)
def test_a_damaged_index_is_refused(tmp_path, change, words):
    path = tmp_path / "shards.arrow"
    write_run_manifest(table_of(plain_rows(2)), path)
    text = index_path(path).read_text()
    assert change(text) != text
    index_path(path).write_text(change(text))

    with pytest.raises(ShardSetError, match=words):
        open_manifest(path, split="train")


def test_a_run_from_before_there_was_an_index_gets_one(tmp_path):
    path = tmp_path / "shards.arrow"
    write_run_manifest(table_of(plain_rows(3)), path)
    index_path(path).unlink()
    ensure_index(path)

    assert list(open_manifest(path, split="train")[1]) == by_arrow(path, split="train")


def test_a_compressed_file_is_not_taken_for_a_plain_one(tmp_path):
    path = tmp_path / "shards.arrow"
    table = table_of(plain_rows(500))
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with path.open("wb") as file, pa.ipc.new_file(file, table.schema, options=options) as writer:
        writer.write_table(table)

    with pytest.raises(AssertionError, match="compressed"):
        ensure_index(path)


def test_the_file_says_what_the_set_is_to_any_arrow_reader(tmp_path):
    path = tmp_path / "shards.arrow"
    write_run_manifest(table_of(plain_rows(2)), path)
    table = read_run_manifest(path)

    assert SetInfo.from_metadata(table.schema.metadata) == INFO
    assert table.schema.metadata[b"tessera.dtype"] == b"uint32"
    assert json.loads(index_path(path).read_text())["index"]["set"]["root"] == INFO.root


READ = """
import sys
from pathlib import Path
for name in ("pyarrow", "deltalake", "pandas"):
    sys.modules[name] = None
from tessera.shard.read.manifest import open_manifest
print(len(open_manifest(Path(sys.argv[1]), split="train")[1]))
"""


def test_ranks_read_it_without_arrow_and_say_what_is_missing(tmp_path):
    path = tmp_path / "shards.arrow"
    write_run_manifest(table_of(plain_rows(4)), path)

    def read() -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", READ, str(path)], capture_output=True, text=True)

    assert read().stdout == "4\n"
    index_path(path).unlink()
    assert "ShardSetError" in (said := read().stderr)
    assert "shards.json cannot be read" in said
    ensure_index(path)  # as evaluating a run of the version before does
    assert read().stdout == "4\n"
