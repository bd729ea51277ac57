"""MDS folders of others: every encoding and compression is read, what may not be trusted is refused by name, and text
or tokens become a set whose every token is where the side table says."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest
from tests.shard.foreign_folders import WORDS, settings, text_folder, write_folder

from tessera import erasures, garbage, tables
from tessera.errors import CorruptShard, ShardSetError, TokenizerError
from tessera.home import Home
from tessera.shard import foreign, forget, manifest, tokenizer
from tessera.shard.format import mds
from tessera.shard.verify import verify
from tessera.shard.write.imported import import_folder

SAMPLES = [
    {
        "a": number, "b": bytes([number % 256]) * (number % 5), "c": f"text {number} ü", "d": {"k": [number, None]},
        "e": np.arange(number + 1, dtype=np.int16), "f": Decimal(number) / 8, "g": np.float32(number), "h": str(number),
        "i": np.full((2, 3), number, np.uint16), "j": number * 1.5,
    }
    for number in range(300)
]  # fmt: skip
COLUMNS = {
    "a": "int", "b": "bytes", "c": "str", "d": "json", "e": "ndarray", "f": "str_decimal", "g": "float32",
    "h": "str_int", "i": "ndarray:uint16:2,3", "j": "str_float",
}  # fmt: skip


@pytest.mark.parametrize("compression", [None, "zstd", "zstd:7", "gz", "gz:1", "bz2", "br", "br:4", "snappy"])
def test_every_column_is_read_whatever_the_compression(tmp_path: Path, compression: str | None) -> None:
    folder = write_folder(tmp_path / "f", SAMPLES, columns=COLUMNS, compression=compression, size_limit=2**13)
    shards = foreign.read_index(folder)

    for name in COLUMNS:
        values = [value for shard in shards for value in foreign.column(foreign.read_shard(shard), shard, name=name)]
        for value, sample in zip(values, SAMPLES, strict=True):
            wanted = int(sample[name]) if name == "h" else sample[name]
            assert np.array_equal(value, wanted), name
    assert len(shards) > 3


def test_a_merged_index_names_files_in_folders(tmp_path: Path) -> None:
    for part in ("0", "1"):
        write_folder(tmp_path / part, SAMPLES[int(part) * 100 :][:100], columns=COLUMNS)
    entries = []
    for part in ("0", "1"):
        for entry in json.loads((tmp_path / part / "index.json").read_text())["shards"]:
            entry["raw_data"]["basename"] = f"{part}/{entry['raw_data']['basename']}"
            entries.append(entry)
    with pytest.raises(ShardSetError, match=r"has no index.json; import each of 0, 1, or merge"):
        foreign.read_index(tmp_path)
    (tmp_path / "index.json").write_text(mds.index_json(entries))

    shards = foreign.read_index(tmp_path)

    read = [value for shard in shards for value in foreign.column(foreign.read_shard(shard), shard, name="a")]
    assert read == list(range(200))


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    index = json.loads((folder / "index.json").read_text())
    edit(index)
    (folder / "index.json").write_text(json.dumps(index))


def first(index: dict[str, Any]) -> dict[str, Any]:
    return dict(index["shards"][0])


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda index: index.update(version=3), "has version 3, wanted 2"),
        (lambda index: index.pop("shards"), "lists no shards"),
        (lambda index: index["shards"][0].update(version=1), "shard 0 is mds version 1"),
        (lambda index: index["shards"][1].update(format="csv"), "shard 1 is csv version 2"),
        (lambda index: index["shards"][0].pop("raw_data"), "shard 0 has no raw_data"),
        (lambda index: index["shards"][0]["column_encodings"].__setitem__(2, "pkl"), "'c' is pkl, which runs foreign"),
        (lambda index: index["shards"][0]["raw_data"].update(basename="../up.mds"), "leads out of the folder"),
        (lambda index: index["shards"][0]["raw_data"].update(basename="/etc/passwd"), "leads out of the folder"),
        (lambda index: index["shards"][0]["raw_data"].update(basename="a/../../b"), "leads out of the folder"),
        (lambda index: index["shards"][0]["raw_data"].update(basename="link/shard.mds"), "leads out of the folder"),
        (lambda index: index["shards"][0].update(compression="lzma"), "'lzma' is not one of"),
        (lambda index: index["shards"][0]["raw_data"].pop("bytes"), "no name, size and hashes"),
        (lambda index: index["shards"][0]["column_names"].pop(), "columns that do not match"),
        (lambda index: index["shards"][0].update(column_names=None), "has a column_names of the wrong type"),
        (lambda index: index["shards"][0].update(column_names=[["a"], "b", "c"]), "a column_names of the wrong type"),
        (lambda index: index["shards"][1].update(column_sizes=["8"]), "shard 1 has a column_sizes of the wrong type"),
        (lambda index: index["shards"][0].update(samples="many"), "has a samples of the wrong type"),
        (lambda index: index["shards"][0].update(compression=3), "has a compression of the wrong type"),
    ],
)
def test_an_index_that_may_not_be_trusted_is_refused(
    tmp_path: Path, edit: Callable[[dict[str, Any]], object], words: str
) -> None:
    folder = write_folder(tmp_path / "f", SAMPLES, columns=COLUMNS, size_limit=2**13)
    (tmp_path / "elsewhere").mkdir()
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    change(folder, edit)

    with pytest.raises(ShardSetError, match=words):
        foreign.read_index(folder)


def test_no_index_and_no_json_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ShardSetError, match=r"has no index.json; give an MDS folder"):
        foreign.read_index(tmp_path)
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(ShardSetError, match="cannot be read as JSON"):
        foreign.read_index(tmp_path)


def flip(path: Path, *, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("compression", [None, "zstd", "gz", "snappy"])
def test_a_damaged_file_is_named_with_what_was_wanted(tmp_path: Path, compression: str | None) -> None:
    folder = write_folder(tmp_path / "f", SAMPLES, columns=COLUMNS, size_limit=2**13, compression=compression)
    shard = foreign.read_index(folder)[1]
    file = shard.zipped or shard.raw
    whole = file.path.read_bytes()
    damages = [
        (lambda: flip(file.path, at=len(whole) // 2), f"sha256 .*expected {file.hashes['sha256']}"),
        (lambda: file.path.write_bytes(whole[:-1]), f"has {len(whole) - 1} bytes, expected {len(whole)}"),
        (lambda: file.path.write_bytes(b""), f"has 0 bytes, expected {len(whole)}"),
        (file.path.unlink, f"expected {file.num_bytes} bytes"),
    ]
    for damage, words in damages:
        damage()
        with pytest.raises(CorruptShard, match=words) as caught:
            foreign.read_shard(shard)
        assert file.path.name in str(caught.value)
        file.path.write_bytes(whole)
    assert foreign.read_shard(shard)


def test_offsets_that_lead_astray_are_seen_although_hashes_agree(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "f", SAMPLES, columns=COLUMNS, size_limit=2**13)
    path = foreign.read_index(folder)[0].raw.path
    for at, words in ((0, "samples, expected"), (8, "lead astray")):
        whole = path.read_bytes()
        flip(path, at=at + 3)
        change(folder, lambda index: index["shards"][0]["raw_data"].update(hashes={}))
        with pytest.raises(CorruptShard, match=words if at else "cut short|samples, expected"):
            foreign.read_shard(foreign.read_index(folder)[0])
        path.write_bytes(whole)


# Import.


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_text_becomes_a_set_with_every_token(tmp_path: Path, home: Home, compression: str | None) -> None:
    folder, texts = text_folder(tmp_path / "f", compression=compression)

    record, imported = import_folder(home, folder=folder, settings=settings(), holdout=0.2)

    assert imported is not None
    assert imported.dropped == {"blank": 2}
    assert record.splits["train"].documents + record.splits["heldout"].documents == len(texts)
    assert record.splits["heldout"].documents == pytest.approx(0.2 * len(texts), rel=0.4)
    assert sum(split.num_bytes for split in record.splits.values()) == sum(len(text.encode()) for text in texts)
    loaded = tokenizer.load(home.resolve(record.tokenizer.path))
    assert documents_of(home) == sorted(
        (hashlib.sha256(text.encode()).hexdigest(), (*loaded.encode_batch([text])[0], loaded.end_id)) for text in texts
    )
    assert not verify(home, name="imported").damages
    assert not list(home.spill.glob("*")), "what was kept on disk meanwhile is gone"


def documents_of(home: Home) -> list[tuple[str, tuple[int, ...]]]:
    """Content hash and tokens of all documents, put together from files and side table."""
    record = manifest.read_record(home, name="imported")
    spans = tables.read(home.resolve(record.spans.path), version=record.spans.version)
    samples = {
        file: list(mds.read_samples(manifest.set_folder(home, name="imported") / file))
        for file in pc.unique(spans["file"]).to_pylist()
    }
    pieces: dict[tuple[str, str], list[tuple[int, np.ndarray]]] = {}
    for row in spans.to_pylist():
        tokens = samples[row["file"]][row["sample"]]["tokens"][row["start"] : row["start"] + row["num_tokens"]]
        pieces.setdefault((row["sha256"], row["doc_id"]), []).append((row["piece"], tokens))
    whole = {
        key: np.concatenate([part for _, part in sorted(parts, key=lambda pair: pair[0])])
        for key, parts in pieces.items()
    }
    return sorted((sha256, tuple(tokens.tolist())) for (sha256, _), tokens in whole.items())


def test_the_same_folder_gives_the_same_files_wherever_it_lies_and_is_found_again(tmp_path: Path) -> None:
    folder, _ = text_folder(tmp_path / "one" / "f")
    shutil.copytree(folder, tmp_path / "two" / "f")
    hashes = []
    for number, place in enumerate(("one", "two")):
        home = Home(tmp_path / f"home{number}")
        record, _ = import_folder(home, folder=tmp_path / place / "f", settings=settings(), holdout=0.2)
        again, read = import_folder(home, folder=tmp_path / place / "f", settings=settings(), holdout=0.2)
        assert read is None
        assert again == record
        table = manifest.read_manifest(home, "imported")
        hashes.append(dict(zip(table["file"].to_pylist(), table["sha256"].to_pylist(), strict=True)))
    assert hashes[0] == hashes[1]
    assert len(hashes[0]) > 4


@pytest.mark.parametrize("fresh", [False, True])
def test_what_was_erased_does_not_come_back(tmp_path: Path, home: Home, fresh: bool) -> None:
    folder, texts = text_folder(tmp_path / "f")
    gone = {hashlib.sha256(text.encode()).hexdigest() for text in (texts[4], texts[60])}
    by_id = hashlib.sha256(b'imported\n{"sample":4}').hexdigest()
    pairs = [(by_id, None), ("0" * 64, hashlib.sha256(texts[60].encode()).hexdigest())]
    if not fresh:
        import_folder(home, folder=folder, settings=settings(), holdout=0.2)
        assert gone < {sha256 for sha256, _ in documents_of(home)}
    erased = erasures.record(home, pairs=pairs, why="asked for")
    if not fresh:
        forget.publish_without(home, name="imported", erased=erased, documents=None, replaces=lambda _: False)
        without = manifest.read_manifest(home, "imported")["file"].to_pylist()

    record, imported = import_folder(home, folder=folder, settings=settings(), holdout=0.2)

    assert imported is not None
    assert imported.dropped == {"blank": 2, "erased": 2}
    left = {hashlib.sha256(text.encode()).hexdigest() for text in texts} - gone
    assert {sha256 for sha256, _ in documents_of(home)} == left
    assert fresh or manifest.read_manifest(home, "imported")["file"].to_pylist() == without
    assert import_folder(home, folder=folder, settings=settings(), holdout=0.2) == (record, None)


def test_a_missing_file_is_written_again_and_a_damaged_one_when_asked(tmp_path: Path, home: Home) -> None:
    folder, _ = text_folder(tmp_path / "f")
    record, _ = import_folder(home, folder=folder, settings=settings(), holdout=0.2)
    missing, damaged = (manifest.set_folder(home, name="imported") / file
                        for file in manifest.read_manifest(home, "imported")["file"].to_pylist()[:2])  # fmt: skip
    missing.unlink()

    again, imported = import_folder(home, folder=folder, settings=settings(), holdout=0.2)

    assert imported is not None
    assert (again.fingerprint, again.manifest.version) == (record.fingerprint, 1)
    flip(damaged, at=1000)
    assert verify(home, name="imported").damages
    import_folder(home, folder=folder, settings=settings(), holdout=0.2, fresh=True)
    assert not verify(home, name="imported").damages


def test_what_a_killed_import_leaves_is_found_by_gc(
    tmp_path: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = text_folder(tmp_path / "f")
    monkeypatch.setattr(shutil, "rmtree", lambda *given, **named: None)  # as a killed process does
    import_folder(home, folder=folder, settings=settings(), holdout=0.2)

    (left,) = home.spill.glob("*")

    assert [one.path for one in garbage.spill(home, before=time.time() + 60)] == [left]


def test_tokens_of_an_erased_text_are_left_out(tmp_path: Path, home: Home) -> None:
    folder, texts = text_folder(tmp_path / "f")
    record, _ = import_folder(home, folder=folder, settings=settings(), holdout=0.2)
    given = home.resolve(record.tokenizer.path)
    encoded = tokenizer.load(given).encode_batch(texts)
    samples = [{"tokens": np.array(ids, np.uint16)} for ids in encoded]
    tokens = write_folder(tmp_path / "t", samples, columns={"tokens": "ndarray:uint16"})
    erasures.record(home, pairs=[("0" * 64, hashlib.sha256(texts[60].encode()).hexdigest())], why="asked for")

    _, imported = import_folder(
        home, folder=tokens, settings=settings(name="tokens", tokenizer={"path": str(given)}), holdout=0.2
    )

    assert imported is not None
    assert imported.dropped == {"erased": 1}


def test_another_folder_of_the_name_makes_a_new_version_and_another_source_is_refused(
    tmp_path: Path, home: Home
) -> None:
    folder, _ = text_folder(tmp_path / "f")
    import_folder(home, folder=folder, settings=settings(), holdout=0.2)
    shutil.rmtree(folder)
    text_folder(folder, number=200)

    record, _ = import_folder(home, folder=folder, settings=settings(), holdout=0.2)

    assert record.manifest.version == 1
    assert manifest.read_record(home, name="imported", version=0).tokenizer == record.tokenizer
    assert not verify(home, name="imported").damages
    assert not verify(home, name="imported", version=0).damages
    other, _ = text_folder(tmp_path / "other")
    with pytest.raises(ShardSetError, match=r"is of mds:f, not of mds:other; give another --name"):
        import_folder(home, folder=other, settings=settings(), holdout=0.2)


@pytest.mark.parametrize("encoding", ["ndarray:int32", "ndarray:uint16", "ndarray:int64:40", "bytes"])
def test_tokens_become_documents_as_they_are(tmp_path: Path, home: Home, encoding: str) -> None:
    texts = text_folder(tmp_path / "texts")[1]
    tokenizer.train(texts, folder=tmp_path / "tokenizer", vocab_size=300)
    end = tokenizer.load(tmp_path / "tokenizer").end_id
    random = np.random.default_rng(2)
    dtype = encoding.split(":")[1] if ":" in encoding else "int64"
    rows = random.integers(1, 300, (200, 40))
    rows[random.random(rows.shape) < 0.1] = end
    rows[7] = end
    samples = [{"tokens": row.astype(dtype)} for row in rows]
    if encoding == "bytes":
        samples = [{"tokens": sample["tokens"].tobytes()} for sample in samples]
    folder = write_folder(tmp_path / "f", samples, columns={"tokens": encoding})

    given = settings(tokenizer={"path": str(tmp_path / "tokenizer")})
    record, imported = import_folder(home, folder=folder, settings=given, holdout=0.2)

    wanted = []
    for row in rows.tolist():
        text = ",".join(map(str, row)) + f",{end}"
        wanted += [(*map(int, part.split(",")), end) for part in by_hand(text, end) if part]
    assert sorted(tokens for _, tokens in documents_of(home)) == sorted(wanted)
    assert imported is not None
    assert imported.dropped == {"empty": 1}
    assert record.tokens == sum(map(len, wanted))
    assert not verify(home, name="imported").damages


def by_hand(text: str, end: int) -> list[str]:
    """The stretches between end tokens of numbers written with commas."""
    parts: list[list[str]] = [[]]
    for word in text.split(","):
        if int(word) == end:
            parts.append([])
        else:
            parts[-1].append(word)
    return [",".join(part) for part in parts]


def token_folder(tmp_path: Path, value: Any, *, encoding: str = "ndarray:int32") -> Path:
    tokenizer.train([" ".join(WORDS)] * 9, folder=tmp_path / "tokenizer", vocab_size=270)
    return write_folder(tmp_path / "f", [{"tokens": value}] * 40, columns={"tokens": encoding})


@pytest.mark.parametrize(
    ("value", "encoding", "words"),
    [
        (np.array([1, 270], np.int32), "ndarray:int32", r"sample 0 has token 27\d, the tokenizer has 0 to 26\d"),
        (np.array([1, -2], np.int32), "ndarray:int32", "sample 0 has token -2"),
        (np.ones((2, 2), np.int32), "ndarray:int32", "of 2 dimensions"),
        (b"abc", "bytes", "has 3 bytes, no whole number of int64"),
        (np.ones(2, np.float32), "ndarray:float32", "is ndarray:float32, wanted str for text"),
    ],
)
def test_values_that_are_no_tokens_are_refused(
    tmp_path: Path, home: Home, value: Any, encoding: str, words: str
) -> None:
    folder = token_folder(tmp_path, value, encoding=encoding)

    with pytest.raises(ShardSetError, match=words):
        import_folder(
            home, folder=folder, holdout=0.2, settings=settings(tokenizer={"path": str(tmp_path / "tokenizer")})
        )
    assert not (home.shards / "imported" / "manifest").exists()


def test_what_import_needs_is_asked_for_by_name(tmp_path: Path, home: Home) -> None:
    folder = token_folder(tmp_path, np.ones(4, np.int32))
    with pytest.raises(ShardSetError, match="give the one that they were written with: --tokenizer"):
        import_folder(home, folder=folder, settings=settings(), holdout=0.2)
    with pytest.raises(ShardSetError, match="has no column 'body', but tokens"):
        import_folder(home, folder=folder, settings=settings(), holdout=0.2, column="body")
    with pytest.raises(TokenizerError, match=r"has no tokenizer.json"):
        import_folder(home, folder=folder, settings=settings(tokenizer={"path": str(tmp_path)}), holdout=0.2)
    few = write_folder(tmp_path / "few", [{"text": "one"}], columns={"text": "str"})
    with pytest.raises(ShardSetError, match=r"no heldout documents of 1 samples|no train documents of 1 samples"):
        import_folder(home, folder=few, settings=settings(), holdout=0.2)
    other = write_folder(tmp_path / "other", [{"body": "one"}], columns={"body": "str"})
    with pytest.raises(ShardSetError, match="neither a column tokens nor a column text, but body"):
        import_folder(home, folder=other, settings=settings(), holdout=0.2)


def test_a_vocabulary_above_65536_is_stored_in_32_bits(tmp_path: Path, home: Home) -> None:
    wide_tokenizer(tmp_path / "tokenizer", vocab_size=70_000)
    random = np.random.default_rng(1)
    samples = [{"tokens": random.integers(2, 70_000, 30).astype(np.uint32)} for _ in range(100)]
    folder = write_folder(tmp_path / "f", samples, columns={"tokens": "ndarray:uint32"})

    given = settings(tokenizer={"path": str(tmp_path / "tokenizer")})
    record, _ = import_folder(home, folder=folder, settings=given, holdout=0.2)

    assert record.tokenizer.vocab_size == 70_000
    table = manifest.read_manifest(home, "imported")
    config = mds.read_config(manifest.set_folder(home, name="imported") / table["file"][0].as_py())
    assert config["column_encodings"] == ["ndarray:uint16", "ndarray:uint32:64"]
    assert max(max(tokens) for _, tokens in documents_of(home)) > 2**16
    assert not verify(home, name="imported").damages


def wide_tokenizer(folder: Path, *, vocab_size: int) -> None:
    """A tokenizer of whole words, one for each number."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"<|endoftext|>": 0, "[unk]": 1, **{f"w{number}": number for number in range(2, vocab_size)}}
    fast = Tokenizer(models.WordLevel(words, unk_token="[unk]"))
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    folder.mkdir(parents=True)
    fast.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
