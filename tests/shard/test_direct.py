"""Direct mode: no file is stored, and every batch is the one of the stored set, bit for bit, or none is given."""

import pickle
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from deltalake import write_deltalake
from tests.shard import test_encode
from tests.shard.history import History, row_of, texts_of, write_set

from tessera import tables
from tessera.errors import CorruptShard, ShardSetError
from tessera.home import Home
from tessera.lineage import PrepareRecord, ShardRecord, TableVersion
from tessera.shard import manifest, stage
from tessera.shard.read import shards as shards_module
from tessera.shard.read.batches import batch_at, make_order, preference_batch_at, sequential
from tessera.shard.read.direct import read_run_documents
from tessera.shard.read.shards import Shards, documents_path, open_split
from tessera.shard.run_documents import write_run_documents
from tessera.shard.run_manifest import write_run_manifest
from tessera.shard.settings import ShardSettings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.spark

STORED = ShardSettings.model_validate(
    {"name": "docs", "seq_len": 64, "shard_bytes": 2**16, "bucket_bytes": 12_000, "tokenizer": {"vocab_size": 300}}
)
DIRECT = STORED.model_copy(update={"mode": "direct"})
FIRST = texts_of(range(200))


@dataclass(frozen=True)
class Written:
    """A set in a home of its own, and the documents it was made from."""

    home: Home
    prepared: PrepareRecord
    record: ShardRecord

    def open(self, split: str = "train") -> Shards:
        """As the launcher and a rank do."""
        path = self.home.runs / "run" / "shards.arrow"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_run_manifest(manifest.read_manifest(self.home, "docs", self.record.manifest.version), path)
        write_run_documents(self.home, self.record, manifest=path)
        return open_split(path, split=split, shards_root=manifest.set_folder(self.home, name="docs"))


def write(spark: "SparkSession", home: Home, settings: ShardSettings, *versions: dict[int, str]) -> Written:
    """A set of each documents version in turn."""
    history = History(home)
    for texts in versions:
        prepared = history.write(texts)
        record = write_set(spark, home, prepared, settings=settings)
    return Written(home=home, prepared=prepared, record=record)


@pytest.fixture(scope="module")
def pairs(spark: "SparkSession", tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Written, Written]]:
    """(stored, direct) of the first documents, and after an increment that appends, changes and deletes."""
    folder = tmp_path_factory.mktemp("direct")
    later = {key: text for key, text in FIRST.items() if key != 17} | texts_of(range(195, 240), edition=1)
    return [
        tuple(
            write(spark, Home(folder / f"{number}-{settings.mode}"), settings, *versions)
            for settings in (STORED, DIRECT)
        )  # type: ignore[misc]
        for number, versions in enumerate(([FIRST], [FIRST, later]))
    ]


def stored_files(home: Home) -> list[Path]:
    return list(manifest.set_folder(home, name="docs").rglob("*.mds"))


def test_nothing_is_stored_and_the_manifest_is_the_same(pairs: list[tuple[Written, Written]]) -> None:
    for stored, direct in pairs:
        assert stored_files(stored.home)
        assert not stored_files(direct.home)
        assert manifest.read_cells(direct.home, direct.record).equals(manifest.read_cells(stored.home, stored.record))
        assert direct.record.fingerprint == stored.record.fingerprint


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_batches_equal_those_of_stored_files(pairs: list[tuple[Written, Written]], split: str) -> None:
    for stored, direct in pairs:
        theirs, ours = stored.open(split), pickle.loads(pickle.dumps(direct.open(split)))
        orders = [make_order(shards, seed=5, block_shards=2) for shards in (theirs, ours)]
        steps = theirs.num_samples // 4 + 2
        assert steps > 3
        for step in range(steps):
            one, other = (
                batch_at(shards, order, step=step, batch_size=4)
                for shards, order in zip((theirs, ours), orders, strict=True)
            )
            assert all(torch.equal(one[name], other[name]) for name in one)
        for one, other in zip(sequential(theirs, batch_size=16), sequential(ours, batch_size=16), strict=True):
            assert all(torch.equal(one[name], other[name]) for name in one)


def test_what_is_made_is_kept_up_to_a_bound(
    pairs: list[tuple[Written, Written]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards_module, "MADE_BYTES", 1)
    shards = pairs[0][1].open()
    order = make_order(shards, seed=5, block_shards=1)
    made: list[int] = []
    make = shards._make
    assert make is not None
    shards._make = lambda number: made.append(number) or make(number)  # type: ignore[func-returns-value]

    for step in range(shards.num_samples):
        batch_at(shards, order, step=step, batch_size=1)
        held = sum(len(data) for data in shards._memory.held.values())
        assert held <= 2 * int(shards.files.numbers("num_bytes").max())

    assert sorted(made) == list(range(len(shards.files))), "blocks of one: every file is made just once an epoch"


def test_other_documents_are_refused_by_name(pairs: list[tuple[Written, Written]], tmp_path: Path) -> None:
    """The launcher's documents.json names a table whose rows are not those of the set."""
    home = Home(tmp_path / "home")
    shutil.copytree(pairs[0][1].home.root, home.root)
    direct = Written(home=home, prepared=pairs[0][1].prepared, record=pairs[0][1].record)
    shutil.rmtree(home.documents)
    History(home).write(FIRST | {40: "other words"})
    shards = direct.open()

    with pytest.raises(CorruptShard, match=r"made of documents@0: found .* SHA-256 .*expected .* SHA-256") as caught:
        list(sequential(shards, batch_size=8))

    assert "other words" not in str(caught.value)
    file = str(caught.value).split(",")[0]
    bucket = int(str(row_of(40, "")["doc_id"])[:8], 16) * int(shards.files.numbers("buckets")[0]) >> 32
    assert file.startswith(f"train/000000-{bucket:04d}-")


@pytest.mark.parametrize(("kind", "words"), [("short", "bytes, expected"), ("gone", "cannot be read")])
def test_a_damaged_documents_file_is_named(
    pairs: list[tuple[Written, Written]], tmp_path: Path, kind: str, words: str
) -> None:
    home = Home(tmp_path / "home")
    shutil.copytree(pairs[0][1].home.root, home.root)
    direct = Written(home=home, prepared=pairs[0][1].prepared, record=pairs[0][1].record)
    assert stage.verify(direct.record, home=home, stored=False)
    assert not stage.verify(direct.record, home=home), "a set that is to be stored has no files"
    shards = direct.open()
    (name,) = tables.data_files(home.documents, version=0)
    if kind == "short":
        (home.documents / name).write_bytes((home.documents / name).read_bytes()[:-1])
    else:
        (home.documents / name).unlink()

    assert not stage.verify(direct.record, home=home, stored=False)
    with pytest.raises(ShardSetError, match=words) as caught:
        shards.gather(np.array([0]), np.array([0]))
    assert name in str(caught.value)


def test_documents_json_and_the_tokenizer_are_checked(pairs: list[tuple[Written, Written]], tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    shutil.copytree(pairs[0][1].home.root, home.root)
    direct = Written(home=home, prepared=pairs[0][1].prepared, record=pairs[0][1].record)
    shards = direct.open()
    path = documents_path(home.runs / "run" / "shards.arrow")
    text = path.read_text()

    for damaged in (text.replace('"seed": 17', '"seed": 18'), text[:-20], "[]"):
        path.write_text(damaged)
        with pytest.raises(ShardSetError, match=r"documents\.json"):
            read_run_documents(path)
    tokenizer = home.resolve(direct.record.tokenizer.path) / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + " ")
    with pytest.raises(ShardSetError, match="restore the tokenizer"):
        shards.gather(np.array([0]), np.array([0]))


def test_a_stored_set_has_no_documents_json_and_may_follow_a_direct_one(
    spark: "SparkSession", pairs: list[tuple[Written, Written]], tmp_path: Path
) -> None:
    home = Home(tmp_path / "home")
    shutil.copytree(pairs[0][1].home.root, home.root)
    direct = pairs[0][1]

    record = write_set(spark, home, direct.prepared, settings=STORED)

    written = Written(home=home, prepared=direct.prepared, record=record)
    shards = written.open()
    assert not documents_path(home.runs / "run" / "shards.arrow").exists()
    assert len(stored_files(home)) == record.shards
    assert manifest.read_cells(home, record).equals(manifest.read_cells(direct.home, direct.record))
    assert sum(len(batch["labels"]) for batch in sequential(shards, batch_size=8)) == shards.num_samples


def write_kinds(spark: "SparkSession", home: Home, settings: ShardSettings, rows: Sequence[dict[str, Any]]) -> Written:
    """A set of documents of any kind; every eighth is held out."""
    split = [{**row, "split": "heldout" if number % 8 == 3 else "train"} for number, row in enumerate(rows)]
    write_deltalake(home.documents, pa.Table.from_pylist(split, schema=test_encode.SCHEMA))
    prepared = PrepareRecord(
        fingerprint="k", rows=len(rows), documents=len(rows), dropped={}, splits={}, num_bytes=1,
        table=TableVersion(name="documents", path="tables/documents", version=0),
    )  # fmt: skip
    return Written(home=home, prepared=prepared, record=write_set(spark, home, prepared, settings=settings))


def test_conversations_beside_text_are_made_with_their_labels(spark: "SparkSession", tmp_path: Path) -> None:
    """The words of a user are read and not learned, whether the file is stored or made."""
    texts = [test_encode.text_row(key, f"a text without a user {key} " * (1 + key % 9)) for key in range(60)]
    chats = [
        test_encode.chat_row(100 + key, *[f"{word} said {key}" for word in ("one", "other") * (1 + key % 6)])
        for key in range(60)
    ]
    stored, direct = (
        write_kinds(spark, Home(tmp_path / settings.mode), settings, [*texts, *chats]) for settings in (STORED, DIRECT)
    )
    theirs, ours = stored.open(), direct.open()

    ignored = 0
    for one, other in zip(sequential(theirs, batch_size=16), sequential(ours, batch_size=16), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
        ignored += int(((other["labels"] == -100) & (other["document_ids"] >= 0)).sum())
    assert not stored_files(direct.home)
    masked = sum(source.tokens - source.loss_tokens for source in direct.record.sources)
    assert 0 < ignored < masked, "the held-out split has the rest"


def test_preferences_are_made_as_pairs(spark: "SparkSession", tmp_path: Path) -> None:
    rows = [
        test_encode.preference_row(key, f"which of {key} " * (1 + key % 5), f"the better {key}", f"a worse {key}" * 2)
        for key in range(90)
    ]
    stored, direct = (
        write_kinds(spark, Home(tmp_path / settings.mode), settings, rows) for settings in (STORED, DIRECT)
    )
    theirs, ours = stored.open(), direct.open()
    orders = [make_order(shards, seed=5, block_shards=1) for shards in (theirs, ours)]

    assert not stored_files(direct.home)
    steps = theirs.num_samples // 4
    assert steps > 10
    for step in range(steps):
        one, other = (
            preference_batch_at(shards, order, step=step, batch_size=4)
            for shards, order in zip((theirs, ours), orders, strict=True)
        )
        for side in ("chosen", "rejected"):
            assert all(torch.equal(one[side][name], other[side][name]) for name in one[side])
    with pytest.raises(ShardSetError, match="hold preference pairs"):
        batch_at(ours, orders[1], step=0, batch_size=4)
