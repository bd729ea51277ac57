"""Faults F1 to F7 and F15 to F17 of a shard set: the old version or the new one, whole, and whoever lost hears of it.

F4, and the failpoints within the driver, are in test_write.py and test_history.py; damage of every kind to what
training reads is in test_shards.py too. Here are two real writers, real kills, real damage at random places, and a real
full disk.
"""

import json
import multiprocessing
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
from tests.shard.history import History, hashes, row_of, spans, texts_of, write_set
from tests.shard.test_chat import CHATML, save
from tests.shard.test_encode import make_recipe, text_row, tokenize
from tests.shard.test_increments import SETTINGS

from tessera import failpoints, garbage, publish, tables
from tessera.errors import Conflict, CorruptShard, PublishingFailed, SourceError, StorageFull, TesseraError
from tessera.files import write_once
from tessera.home import Home
from tessera.lineage import Record, ShardRecord
from tessera.shard import manifest, stage
from tessera.shard.garbage import garbage as of_shards
from tessera.shard.read.batches import Batches, make_order

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

CHILD = Path(__file__).parents[1] / "children" / "tests_shard_child.py"
TWIN = CHILD.with_name("tests_twin_child.py")
TEXTS = texts_of(range(120))
MORE = TEXTS | texts_of(range(120, 150))
OTHER = TEXTS | texts_of(range(200, 220))
SEED = int(os.environ.get("TESSERA_SEED", time.time_ns() % 2**32))
"""Decides where files are damaged; a failing test prints it."""


def documents_in(home: Home, record: ShardRecord) -> set[object]:
    return {row["doc_id"] for row in spans(home, record)}


def ids(texts: dict[int, str]) -> set[object]:
    return {row_of(key, "")["doc_id"] for key in texts}


def sweep(home: Home) -> None:
    """Two days pass, and `tessera gc` comes."""
    for file in home.shards.rglob("*"):
        os.utime(file, times=(time.time() - 2 * 86_400,) * 2)
    garbage.remove(list(of_shards(home, before=time.time() - 86_400)))


def files_on_disk(home: Home) -> set[str]:
    folder = manifest.set_folder(home, name="docs")
    return {f"{split}/{file.name}" for split in ("train", "heldout") for file in (folder / split).iterdir()} - {
        "train/index.json", "heldout/index.json"
    }  # fmt: skip


# F1


class Meeting:
    """Two writers come to the last step before their commit, and neither goes on alone while the other may come."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.barrier = threading.Barrier(2)
        hit = failpoints.hit

        def meet(point: str) -> None:
            hit(point)
            if point == "shard.before_manifest":
                with suppress(threading.BrokenBarrierError):  # the other was refused before it came here
                    self.barrier.wait(timeout=100)

        monkeypatch.setattr(failpoints, "hit", meet)


@pytest.mark.spark
@pytest.mark.parametrize("first", [True, False], ids=["new set", "increment"])
def test_f1_of_two_writers_at_once_one_is_published_and_the_other_told(
    spark: "SparkSession", home: Home, monkeypatch: pytest.MonkeyPatch, first: bool
) -> None:
    history = History(home)
    if not first:
        write_set(spark, home, history.write(TEXTS), settings=SETTINGS)
    works = [(history.write(texts), texts) for texts in (MORE, OTHER)]
    meeting = Meeting(monkeypatch)
    ended: list[Any] = [None, None]

    def write(number: int) -> None:
        try:
            ended[number] = write_set(spark, home, works[number][0], settings=SETTINGS)
        except TesseraError as error:
            ended[number] = error
            meeting.barrier.abort()

    threads = [threading.Thread(target=write, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    (won,) = [number for number in range(2) if isinstance(ended[number], ShardRecord)]
    assert isinstance(ended[1 - won], Conflict), ended
    assert documents_in(home, ended[won]) == ids(works[won][1]), "rows read are rows acknowledged"
    assert stage.verify(ended[won], home=home)
    monkeypatch.undo()
    again = write_set(spark, home, works[1 - won][0], settings=SETTINGS)
    assert again.manifest.version == ended[won].manifest.version + 1
    assert documents_in(home, again) == ids(works[1 - won][1])
    assert documents_in(home, ended[won]) == ids(works[won][1])


# F2, F3, F6


@pytest.mark.spark
@pytest.mark.parametrize(
    ("point", "published"),
    [("shard.before_manifest", False), pytest.param("publish.after_commit", True, marks=pytest.mark.slow)],
)
def test_f2_f3_a_killed_driver_leaves_the_old_version_or_the_new(
    spark: "SparkSession", home: Home, point: str, published: bool
) -> None:
    history = History(home)
    first = write_set(spark, home, history.write(TEXTS), settings=SETTINGS)
    before = hashes(home, name="docs")
    prepared = history.write(MORE)
    with subprocess.Popen(
        [sys.executable, str(CHILD), str(home.root), str(prepared.table.version)],
        env={**os.environ, "TESSERA_FAIL": f"{point}:kill"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    ) as child:  # fmt: skip
        said = child.communicate(timeout=200)
        os.killpg(child.pid, signal.SIGKILL) if child.poll() is None else None
    assert child.returncode == -signal.SIGKILL, said

    found = manifest.read_record(home, name="docs")
    assert found.manifest.version == int(published)
    assert hashes(home, name="docs", version=0) == before
    assert stage.verify(first, home=home)
    if not published:
        assert files_on_disk(home) > before.keys(), "orphans lie there"
        sweep(home)
        assert files_on_disk(home) == before.keys()
    record = write_set(spark, home, prepared, settings=SETTINGS)
    assert record.manifest.version == 1 + published
    assert record.written == (0 if published else 30), "nothing is added twice"
    assert documents_in(home, record) == ids(MORE)


@pytest.mark.spark
@pytest.mark.slow
def test_f6_workers_that_are_killed_in_the_middle_of_every_file_publish_nothing(
    spark: "SparkSession", home: Home
) -> None:
    history = History(home)
    prepared = history.write(TEXTS)
    environment = spark.sparkContext.environment
    environment["TESSERA_FAIL"] = "files.before_rename:kill"
    try:
        with pytest.raises(Exception, match=r"(?i)worker|stage|job"):
            write_set(spark, home, prepared, settings=SETTINGS)
    finally:
        del environment["TESSERA_FAIL"]
    assert publish.read_record(manifest.manifest_path(home, name="docs")) is None
    left = {file.name for split in ("train", "heldout") for file in (home.shards / "docs" / split).glob("*")}
    assert left, "passing names"
    assert all(name.startswith(".") for name in left), "no file has its name that is not whole"

    record = write_set(spark, home, prepared, settings=SETTINGS)

    assert documents_in(home, record) == ids(TEXTS)
    sweep(home)
    assert files_on_disk(home) == hashes(home, name="docs").keys()


# F5


def test_f5_twins_of_a_task_write_the_same_files_at_the_same_time(tmp_path: Path) -> None:
    save(tmp_path, template=CHATML)
    recipe = make_recipe(tmp_path, shard_bytes=2**12)
    texts = [text_row(key, f"the text number {key} " * (1 + key % 9)) for key in range(300)]
    tokenized = tokenize(texts, recipe).sort_by([(name, "ascending") for name in ("bucket", "split", "doc_id")])
    (tmp_path / "recipe").write_bytes(pickle.dumps(recipe))
    with pa.ipc.new_file(tmp_path / "tokenized", tokenized.schema) as writer:
        writer.write_table(tokenized)
    command = [sys.executable, str(TWIN), str(tmp_path / "set"), str(tmp_path)]
    twins = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [twin.stdout.readline() for twin in twins if twin.stdout] == ["ready\n"] * 3
    for twin in twins:
        assert twin.stdin is not None
        twin.stdin.write("go\n")
        twin.stdin.flush()
    rows = [json.loads(twin.communicate(timeout=100)[0]) for twin in twins]

    assert rows[0] == rows[1] == rows[2]
    assert len({row["doc_id"] for row in rows[0]}) == 300
    wanted = {row["file"]: row["file_sha256"] for row in rows[0]}
    found = {str(file.relative_to(tmp_path / "set")): file for file in (tmp_path / "set").glob("*/*")}
    assert len(wanted) > 4
    assert found.keys() == wanted.keys(), "one file a name, and nothing else: no twin leaves text behind"
    assert all(Path(file).name[12:28] == sha256[:16] for file, sha256 in wanted.items())


# F7


def places(data: bytes, samples: int) -> dict[str, range]:
    """The kinds of bytes of an MDS file: number of samples, offsets, column config, samples."""
    begin = int.from_bytes(data[4:8], "little")
    config = 4 + 4 * (samples + 1)
    return {"count": range(4), "offsets": range(4, config), "config": range(config, begin),
            "samples": range(begin, len(data))}  # fmt: skip


@pytest.mark.parametrize("kind", ["count", "offsets", "config", "samples"])
def test_f7_any_flipped_bit_is_found_before_a_batch(make_set: Any, kind: str) -> None:
    random = np.random.default_rng(SEED)
    small = make_set()
    for _ in range(25):
        shards = small.open()
        number = int(random.integers(len(shards.files)))
        hurt = shards.files[number]
        path = small.folder / hurt.file
        whole = path.read_bytes()
        within = places(whole, hurt.samples)[kind]
        place = within[int(random.integers(len(within)))]
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(random.integers(8))
        path.write_bytes(damaged)

        with pytest.raises(CorruptShard) as caught:
            shards.gather(np.array([number]), np.array([0]))

        told = str(caught.value)
        assert hurt.file in told, f"seed {SEED}, byte {place}"
        assert hurt.sha256 in told, "the hash that was expected"
        assert told.count("SHA-256") == 1
        path.write_bytes(whole)
    assert shards.gather(np.array([0]), np.array([0])) is not None


def test_f7_any_truncation_and_growth_is_found_and_no_batch_holds_a_sample_of_it(make_set: Any) -> None:
    random = np.random.default_rng(SEED)
    small = make_set()
    grow = "and one byte more"
    for cut in (grow, 0, 1, 3, 7, -1, *(int(size) for size in random.integers(8, 1000, 8))):
        shards = small.open()
        number = int(random.integers(len(shards.files)))
        hurt = shards.files[number]
        path = small.folder / hurt.file
        whole = path.read_bytes()
        damaged = whole + b"\0" if cut == grow else whole[:cut]
        path.write_bytes(damaged)
        order = make_order(shards, seed=len(damaged), block_shards=2)
        batches = iter(Batches(shards, order, start=0, stop=shards.num_samples // 4 + 1, batch_size=4))

        message = f"{hurt.file} has {len(damaged)} bytes, expected {hurt.num_bytes}"
        for step in range(shards.num_samples):
            of_the_damaged = number in order.part(step, batch_size=4, rank=0, world_size=1)[0]
            if of_the_damaged:
                break
            assert next(batches) is not None, f"seed {SEED}: whole files can be read until step {step}"
        with pytest.raises(CorruptShard, match=message):
            next(batches)
        path.write_bytes(whole)


def test_a_manifest_that_leads_out_of_its_folder_is_refused(make_set: Any, tmp_path: Path) -> None:
    from tessera.shard.run_manifest import read_run_manifest, write_run_manifest

    small = make_set()
    secret = tmp_path / "secret"
    secret.write_bytes(b"x" * 100)
    for name in ("../../secret", str(secret), "train/../../../secret"):
        rows = read_run_manifest(small.run_manifest)
        files = pa.array([name, *rows["file"].to_pylist()[1:]])
        write_run_manifest(rows.set_column(rows.schema.get_field_index("file"), "file", files), small.run_manifest)
        split = rows["split"][0].as_py()

        with pytest.raises(CorruptShard, match=f"{name} leads out of its set's folder"):
            small.open(split).gather(np.array([0]), np.array([0]))


@pytest.mark.spark
def test_f7_a_damaged_shard_is_mended_by_writing_the_set_afresh(spark: "SparkSession", home: Home) -> None:
    """What the error advises."""
    prepared = History(home).write(TEXTS)
    write_set(spark, home, prepared, settings=SETTINGS)
    before = hashes(home, name="docs")
    path = manifest.set_folder(home, name="docs") / sorted(before)[2]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)

    write_set(spark, home, prepared, settings=SETTINGS, fresh=True)

    assert hashes(home, name="docs") == before


# F15


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 200 KB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_f15_a_full_disk_leaves_the_name_as_it_was(small_disk: Path) -> None:
    old, new = b"old" * 1000, b"new" * 40_000
    path = small_disk / "train" / "a.mds"
    write_once(path, old)
    fill = small_disk / "fill"
    fill.write_bytes(b"x" * 120_000)

    with pytest.raises(StorageFull, match=r"train has no room for a.mds \(120000 bytes: No space left on device\)"):
        write_once(path, new)

    assert path.read_bytes() == old
    assert [file.name for file in path.parent.iterdir()] == ["a.mds"]
    fill.unlink()
    assert write_once(path, new)
    assert path.read_bytes() == new


def test_f15_a_commit_on_a_full_disk_is_no_conflict_and_publishes_nothing(small_disk: Path) -> None:
    path = small_disk / "t"
    rows = pa.table({"id": ["a"]})
    publish.commit(publish.begin(path, name="t"), rows, record=Record(stage="t", fingerprint="f"), stats_columns="id")
    fill = small_disk / "fill"
    size = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_bsize
    fill.write_bytes(b"x" * size)

    publication = publish.begin(path, name="t")
    with pytest.raises(PublishingFailed, match=r"t: version 1 could not be written .*; nothing was published"):
        publish.commit(publication, rows, record=Record(stage="t", fingerprint="f"), stats_columns="id")

    assert tables.open_table(path).version() == 0
    fill.unlink()
    again = publish.commit(
        publish.begin(path, name="t"), rows, record=Record(stage="t", fingerprint="g"), stats_columns="id"
    )
    assert again == 1


def test_f15_a_limit_on_file_sizes_is_told_like_a_full_disk(tmp_path: Path) -> None:
    def limited(path: Path, results: Any) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            write_once(path, b"x" * 5000)
        except StorageFull as error:
            results.put(str(error))

    context = multiprocessing.get_context("fork")
    results = context.Queue()
    child = context.Process(target=limited, args=(tmp_path / "a.mds", results))
    child.start()

    assert "a.mds (5000 bytes: File too large)" in results.get(timeout=30)
    child.join()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.spark
def test_f15_a_full_disk_under_spark_is_one_clear_error_and_nothing_is_published(
    spark: "SparkSession", home: Home, small_disk: Path
) -> None:
    history = History(home)
    write_set(spark, home, history.write(TEXTS), settings=SETTINGS)
    before = hashes(home, name="docs")
    train = home.shards / "docs" / "train"
    shutil.copytree(train, small_disk / "train")
    shutil.rmtree(train)
    train.symlink_to(small_disk / "train")
    (small_disk / "fill").write_bytes(b"x" * (200 * 1024 - 30_000 - sum(f.stat().st_size for f in train.iterdir())))
    prepared = history.write(TEXTS | texts_of(range(500, 900)))

    with pytest.raises(StorageFull, match="train has no room for 000001-"):
        write_set(spark, home, prepared, settings=SETTINGS)

    assert manifest.read_record(home, name="docs").manifest.version == 0
    assert hashes(home, name="docs") == before
    (small_disk / "fill").unlink()


# F16


def test_f16_leftovers_of_killed_writers_are_taken_after_a_day_and_never_read(home: Home, make_set: Any) -> None:
    publication = publish.begin(manifest.manifest_path(home, name="docs"), name="shards/docs")
    publish.commit(
        publication, pa.table({"file": ["train/a.mds"]}), record=Record(stage="shard", fingerprint="f"),
        stats_columns="file",
    )  # fmt: skip
    train = home.shards / "docs" / "train"
    left = [train / ".b.mds.0123", train / "b.mds", home.tokenizers / ".docs-0123" / "tokenizer.json",
            publication.path / "part-9.parquet"]  # fmt: skip
    for path in (train / "a.mds", *left):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")

    young = list(of_shards(home, before=time.time() - 86_400))
    for path in (*home.shards.rglob("*"), *home.tokenizers.rglob("*"), home.tokenizers):
        os.utime(path, times=(1, 1))
    garbage.remove(list(of_shards(home, before=time.time() - 86_400)))

    assert young == []
    assert not any(path.exists() for path in left)
    assert (train / "a.mds").exists()
    assert tables.read(publication.path)["file"].to_pylist() == ["train/a.mds"]


# F17


@pytest.mark.spark
def test_f17_documents_that_are_written_again_during_the_run_change_nothing(spark: "SparkSession", home: Home) -> None:
    history = History(home)
    prepared = history.write(TEXTS)

    def rewrite(text: str, *_: object) -> None:
        if text == "counting documents":
            history.write(texts_of(range(60), edition=9))

    record = write_set(spark, home, prepared, settings=SETTINGS, progress=rewrite)

    assert len(history.records) == 2
    assert documents_in(home, record) == ids(TEXTS)


@pytest.mark.spark
@pytest.mark.parametrize("when", ["counting documents", "making the tokenizer", "tokenizing and packing"])
def test_f17_documents_that_are_vacuumed_during_the_run_are_told(spark: "SparkSession", home: Home, when: str) -> None:
    history = History(home)
    prepared = history.write(TEXTS)

    def vacuum(text: str, *_: object) -> None:
        if text == when and len(history.records) == 1:
            old = list(home.documents.glob("*.parquet"))
            history.write(texts_of(range(60), edition=9))
            for file in old:
                file.unlink()

    with pytest.raises(SourceError, match="no longer readable"):
        write_set(spark, home, prepared, settings=SETTINGS, progress=vacuum)
    assert publish.read_record(manifest.manifest_path(home, name="docs")) is None
