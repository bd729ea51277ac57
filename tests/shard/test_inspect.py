"""Inspecting: numbers that another reader of the files gives too, text only when asked for, 80 columns wide."""

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from tests.shard.foreign_folders import settings as set_settings
from tests.shard.foreign_folders import text_folder

from tessera import tables
from tessera.errors import CorruptShard, ShardSetError
from tessera.home import Home
from tessera.shard import inspect, manifest, tokenizer, views
from tessera.shard.export import export
from tessera.shard.format import mds
from tessera.shard.write.imported import import_folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    folder = tmp_path_factory.mktemp("inspect")
    source, _ = text_folder(folder / "source")
    import_folder(Home(folder / "home"), folder=source, settings=set_settings(), holdout=0.2)
    return Home(folder / "home")


def shown(view: inspect.SetView | inspect.FileView | inspect.SampleView) -> str:
    console = Console(width=80, file=io.StringIO())
    console.print(views.view(view))
    return console.file.getvalue()


def test_a_set_at_a_glance(home: Home) -> None:
    view = inspect.inspect_set(home, name="imported")
    record = manifest.read_record(home, name="imported")

    for split in view.splits:
        files = list((home.shards / "imported" / split.split).glob("*.mds"))
        samples = [sample for file in files for sample in mds.read_samples(file)]
        assert (split.shards, split.samples) == (len(files), len(samples))
        assert split.tokens + split.padding == 64 * len(samples)
        assert split.fill == split.tokens / (64 * len(samples))
    assert f"{record.splits['train'].documents:,}" in shown(view)


def test_a_file_and_its_samples_are_what_the_side_table_says(home: Home) -> None:
    view = inspect.inspect_set(home, name="imported")
    loaded = tokenizer.load(home.resolve(view.record.tokenizer.path))
    spans = tables.read(home.resolve(view.record.spans.path), version=view.record.spans.version).to_pylist()
    for file in view.files[:3]:
        found = inspect.inspect_file(home, view, file)
        samples = list(mds.read_samples(home.shards / "imported" / file.file))
        rows = [row for row in spans if row["file"] == file.file]
        assert found.samples == len(samples)
        assert found.pieces.tolist() == [sum(row["sample"] == n for row in rows) for n in range(len(samples))]
        assert int(found.padding.sum()) == file.padding
        for number, sample in enumerate(samples[:4]):
            one = inspect.inspect_sample(home, view, file, sample=number, with_text=True)
            wanted = sorted(row["start"] for row in rows if row["sample"] == number)
            assert [piece.start for piece in one.pieces] == wanted == sample["starts"].tolist()[: len(wanted)]
            assert one.tokens == sample["tokens"][: 64 - one.padding].tolist()
            assert one.labels == len(one.tokens) == sum(piece.num_tokens for piece in one.pieces)
            assert one.text == loaded.decode(one.tokens)


def test_text_is_shown_when_it_is_asked_for_only(home: Home) -> None:
    view = inspect.inspect_set(home, name="imported")
    file = inspect.find_file(view, "heldout/000000-0000")
    without = inspect.inspect_sample(home, view, file, sample=0)
    with_text = inspect.inspect_sample(home, view, file, sample=0, with_text=True)

    assert with_text.text
    word = next(word for word in with_text.text.split() if len(word) > 4)
    assert word in shown(with_text)
    for other in (without, inspect.inspect_file(home, view, file), view):
        assert word not in shown(other)
        assert word not in str(inspect.as_json(other))


def test_everything_fits_80_columns(home: Home) -> None:
    view = inspect.inspect_set(home, name="imported")
    file = view.files[0]
    for one in (view, inspect.inspect_file(home, view, file), inspect.inspect_sample(home, view, file, sample=0)):
        lines = shown(one).splitlines()
        assert max(map(len, lines)) <= 80
        assert not any("…" in line for line in lines)


def test_what_is_not_there_is_asked_for_by_name(home: Home) -> None:
    view = inspect.inspect_set(home, name="imported")
    with pytest.raises(ShardSetError, match=r"0 of \d+ shards of imported@0 are named 'nothing'"):
        inspect.find_file(view, "nothing")
    with pytest.raises(ShardSetError, match="give more of the name of one"):
        inspect.find_file(view, "train")
    with pytest.raises(ShardSetError, match=r"has samples 0 to \d+, wanted 9999"):
        inspect.inspect_sample(home, view, view.files[0], sample=9999)


# Export.


@pytest.mark.parametrize("compression", [None, "zstd", "gz"])
def test_an_export_holds_the_samples_in_the_order_of_the_manifest(
    home: Home, tmp_path: Path, compression: str | None
) -> None:
    from tessera.shard import foreign

    made = export(home, name="imported", to=tmp_path / "out", compression=compression)

    view = inspect.inspect_set(home, name="imported")
    for split in ("train", "heldout"):
        shards = foreign.read_index(tmp_path / "out" / split)
        assert [shard.name for shard in shards] == [f"shard.{number:05d}.mds" for number in range(len(shards))]
        read = [row for shard in shards for row in foreign.column(foreign.read_shard(shard), shard, name="tokens")]
        files = [home.shards / "imported" / file.file for file in view.files if file.split == split]
        wanted = [sample["tokens"] for file in files for sample in mds.read_samples(file)]
        assert np.array_equal(read, wanted)
    assert made.files == len(view.files)
    with pytest.raises(ShardSetError, match="is not an empty folder"):
        export(home, name="imported", to=tmp_path / "out")


def test_a_damaged_file_is_not_exported(home: Home, tmp_path: Path) -> None:
    view = inspect.inspect_set(home, name="imported")
    path = home.shards / "imported" / view.files[0].file
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[:-1] + b"\x7f")
        with pytest.raises(CorruptShard, match=r"has SHA-256 .*tessera shard verify imported"):
            export(home, name="imported", to=tmp_path / "out")
        with pytest.raises(CorruptShard, match=r"has SHA-256 .*tessera shard verify"):
            inspect.inspect_file(home, view, view.files[0])
    finally:
        path.write_bytes(whole)
    assert not (tmp_path / "out" / "train" / "index.json").exists()
