"""Verifying a set: clean sets pass; each kind of damage is named with the file, what was found and what was wanted."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from deltalake import write_deltalake
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.shard.foreign_folders import settings as set_settings
from tests.shard.foreign_folders import text_folder

from tessera import tables
from tessera.errors import CorruptShard, ShardSetError
from tessera.home import Home
from tessera.shard import contents, manifest
from tessera.shard.format import mds
from tessera.shard.read.manifest import ShardFile
from tessera.shard.verify import Verified, verify
from tessera.shard.write.imported import import_folder


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verify")
    source, _ = text_folder(folder / "source")
    import_folder(Home(folder / "home"), folder=source, settings=set_settings(), holdout=0.2)
    return folder / "home"


@pytest.fixture
def copy(clean: Path, tmp_path: Path) -> Home:
    shutil.copytree(clean, tmp_path / "home")
    return Home(tmp_path / "home")


def a_file(home: Home, number: int = 0) -> tuple[ShardFile, Path]:
    table = manifest.read_manifest(home, "imported")
    file = list(manifest.shard_files(table, split="train"))[number]
    return file, manifest.set_folder(home, name="imported") / file.file


def test_a_whole_set_passes_with_all_of_it_counted(clean: Path) -> None:
    home = Home(clean)
    found = verify(home, name="imported")
    record = manifest.read_record(home, name="imported")

    assert found.damages == []
    assert (found.tokens, found.files) == (record.tokens, record.shards)
    assert found.num_bytes == sum(path.stat().st_size for path in (home.shards / "imported").glob("*/*.mds"))
    assert found.samples == sum(split.sequences for split in record.splits.values())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_bit_and_any_truncation_is_named(clean: Path, data: st.DataObject) -> None:
    home = Home(clean)
    file, path = a_file(home, data.draw(st.integers(0, 7), label="file"))
    whole = path.read_bytes()
    kind = data.draw(st.sampled_from(["flip", "cut", "grow", "gone"]))
    damaged = bytearray(whole)
    if kind == "flip":
        damaged[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    if kind == "cut":
        del damaged[data.draw(st.integers(0, len(whole) - 1)) :]
    if kind == "grow":
        damaged += b"\0"
    try:
        if kind == "gone":
            path.unlink()
        else:
            path.write_bytes(bytes(damaged))
        found = verify(home, name="imported", threads=2)
    finally:
        path.write_bytes(whole)

    (damage,) = found.damages
    assert damage.file == f"shards/imported/{file.file}"
    if kind == "flip":
        assert (damage.found, damage.expected) == (hashlib.sha256(damaged).hexdigest(), file.sha256)
    else:
        assert damage.expected == f"{file.num_bytes:,} bytes"


def rewrite(home: Home, change: Callable[[contents.Sequences], None]) -> Verified:
    """Changes a file's samples and has the manifest say its new hash, as a faulty writer would."""
    file, path = a_file(home)
    samples = contents.parse(path.read_bytes(), seq_len=64)
    assert isinstance(samples, contents.Sequences)
    change(samples)
    config = mds.read_config(path)
    ((data, _),) = mds.token_shards(
        samples.tokens_ST, starts_P=samples.starts_P, num_starts_S=samples.num_starts_S, config=config
    )
    path.write_bytes(data)
    table = manifest.read_manifest(home, "imported")
    hashes = [hashlib.sha256(data).hexdigest() if name == file.file else sha256
              for name, sha256 in zip(table["file"].to_pylist(), table["sha256"].to_pylist(), strict=True)]  # fmt: skip
    row = table.column_names.index("sha256")
    changed = table.set_column(row, table.schema.field(row), pa.chunked_array([hashes], pa.string()))
    with pytest.MonkeyPatch.context() as patch:  # the manifest itself is Delta's; only what is read of it is changed
        patch.setattr(manifest, "read_manifest", lambda *given, **named: changed)
        return verify(home, name="imported")


def test_a_token_outside_the_vocabulary_is_named(copy: Home) -> None:
    def change(samples: contents.Sequences) -> None:
        samples.tokens_ST[1, 2] = 4000

    (damage,) = rewrite(copy, change).damages
    assert (damage.what, damage.found) == ("token id", "4000")
    assert damage.expected.startswith("less than 3")


def test_starts_out_of_order_are_named(copy: Home) -> None:
    def change(samples: contents.Sequences) -> None:
        first = int(samples.num_starts_S[:2].sum())
        samples.starts_P[first] = 1

    (damage,) = rewrite(copy, change).damages
    assert damage.what == "sample 2"


def test_a_last_start_outside_its_sequence_is_named(copy: Home) -> None:
    def change(samples: contents.Sequences) -> None:
        samples.starts_P[int(samples.num_starts_S[:3].sum()) - 1] = 60_000

    assert "sample 2" in {damage.what for damage in rewrite(copy, change).damages}


def test_padding_that_is_no_padding_is_counted(copy: Home) -> None:
    def change(samples: contents.Sequences) -> None:
        padded = np.flatnonzero(samples.padding_S(end_id=manifest.read_record(copy, name="imported").tokenizer.end_id))
        samples.tokens_ST[padded[0], samples.starts_of(int(padded[0]))[-1]] = 7

    whats = {damage.what for damage in rewrite(copy, change).damages}
    assert {"padding", "tokens", "document pieces"} <= whats


def test_a_changed_tokenizer_and_a_stale_index_are_named(copy: Home) -> None:
    record = manifest.read_record(copy, name="imported")
    config = copy.resolve(record.tokenizer.path) / "tokenizer_config.json"
    config.write_text(config.read_text() + " ")
    index = copy.shards / "imported" / "heldout" / "index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "tessera_manifest_version": 7}))
    (copy.shards / "imported" / "train" / "index.json").unlink()

    found = {damage.what: damage for damage in verify(copy, name="imported").damages}

    assert found["tokenizer"].expected == record.tokenizer.sha256
    indexes = [one for one in verify(copy, name="imported").damages if "index" in one.what]
    assert {(Path(one.file).parent.name, one.found) for one in indexes} == {
        ("heldout", "7"),
        ("train", "FileNotFoundError"),
    }


def test_documents_that_only_the_side_table_knows_are_named(copy: Home) -> None:
    record = manifest.read_record(copy, name="imported")
    _, path = a_file(copy)
    spans = tables.read(copy.resolve(record.spans.path), version=record.spans.version)
    table = manifest.read_manifest(copy, "imported")
    fewer = table.filter(pa.array([name != f"train/{path.name}" for name in table["file"].to_pylist()]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest, "read_manifest", lambda *given, **named: fewer)
        (damage,) = verify(copy, name="imported").damages

    assert damage.file.endswith(path.name)
    assert damage.what == "in the side table"
    assert spans.num_rows > 0


def change_side_table(home: Home, column: str) -> list[str]:
    """Changes one value of the side table, as a damaged byte does that decodes; what is found then."""
    record = manifest.read_record(home, name="imported")
    path = home.resolve(record.spans.path)
    rows = tables.read(path, version=record.spans.version)
    values = rows[column].to_pylist()
    values[5] = values[5] + 1 if isinstance(values[5], int) else f"{values[5]}0"
    place = rows.column_names.index(column)
    kind = rows.schema.field(place)
    write_deltalake(path, rows.set_column(place, kind, pa.chunked_array([values], kind.type)), mode="overwrite")
    changed = record.model_copy(update={"spans": record.spans.model_copy(update={"version": record.spans.version + 1})})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest, "read_record", lambda *given, **named: changed)
        return [damage.what for damage in verify(home, name="imported").damages]


@pytest.mark.parametrize(
    ("column", "what"),
    [("doc_id", "documents of"), ("sha256", "documents of"), ("sample", "places"), ("start", "places"),
     ("num_tokens", "places"), ("source", "counts by source"), ("document_bytes", "counts by source")],
)  # fmt: skip
def test_a_changed_value_of_the_side_table_is_named(copy: Home, column: str, what: str) -> None:
    assert any(found.startswith(what) for found in change_side_table(copy, column))


def test_a_side_table_that_cannot_be_read_is_named_and_the_files_still_are_read(copy: Home) -> None:
    record = manifest.read_record(copy, name="imported")
    path = copy.resolve(record.spans.path)
    (name,) = tables.data_files(path, version=record.spans.version)
    whole = (path / name).read_bytes()
    (path / name).write_bytes(whole[: len(whole) // 2])

    found = verify(copy, name="imported")

    (damage,) = found.damages
    assert (damage.file, damage.what) == (record.spans.path, "side table")
    assert found.files == record.shards


def test_a_set_that_is_not_there_is_refused(copy: Home) -> None:
    with pytest.raises(ShardSetError, match="shard set imported has versions 0 to 0, wanted 7; give one of them"):
        verify(copy, name="imported", version=7)
    with pytest.raises(ShardSetError, match="shard set other is not published"):
        verify(copy, name="other")
    with pytest.raises(Exception, match=r"imported@9|versions 0 to 0"):
        verify(copy, name="imported", version=9)


@pytest.mark.parametrize("data", [b"", b"\1", b"\0" * 12, bytes(range(64)), b"\xff" * 40])
def test_what_is_no_shard_is_refused(data: bytes) -> None:
    with pytest.raises(CorruptShard):
        contents.parse(data, seq_len=64)


def test_preferences_are_taken_apart_and_their_common_beginning_checked() -> None:
    config = mds.make_config({"chosen": "ndarray:uint16", "prompt": "uint32", "rejected": "ndarray:uint16"})
    pair = {"chosen": np.array([1, 2, 3, 0], np.uint16), "prompt": 2, "rejected": np.array([1, 2, 9, 9, 0], np.uint16)}
    ((good, _),) = mds.shard_bytes(config, [pair, pair])
    ((bad, _),) = mds.shard_bytes(config, [pair, {**pair, "prompt": 3}])

    parsed = contents.parse(good, seq_len=8)
    assert isinstance(parsed, contents.Preferences)
    assert [one.tolist() for one in parsed.rejected] == [[1, 2, 9, 9, 0]] * 2
    assert parsed.first_odd() is None
    wrong = contents.parse(bad, seq_len=8)
    assert isinstance(wrong, contents.Preferences)
    assert wrong.first_odd() == 1
