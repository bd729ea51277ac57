"""Other readers and writers of MDS beside ours: they read our sets sample for sample, and write our bytes.

They run in an environment of their own, which `make interop` makes and names in TESSERA_STREAMING_PYTHON; without it
these tests are skipped. Starting one takes about ten seconds, so every child does all its work in one process.
"""

import hashlib
import json
import os
import pickle
import random
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.shard.foreign_folders import settings as set_settings
from tests.shard.foreign_folders import text_folder

from tessera.home import Home
from tessera.shard import foreign, manifest
from tessera.shard.export import export
from tessera.shard.format import encodings, mds
from tessera.shard.format.compression import LEVELS, compress, decompress, parse
from tessera.shard.verify import verify
from tessera.shard.write.imported import import_folder

PYTHON = os.environ.get("TESSERA_STREAMING_PYTHON")
CHILDREN = Path(__file__).parent / "children"
NUM_SCHEMAS = 60

pytestmark = pytest.mark.skipif(not PYTHON, reason="TESSERA_STREAMING_PYTHON names no Python with mosaicml-streaming")


def run(child: str, *arguments: Path, data: bytes = b"") -> None:
    assert PYTHON
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run([PYTHON, CHILDREN / child, *map(str, arguments)], input=data, capture_output=True,
                          timeout=280, env=environment)  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()[-3000:]


# Byte parity on random schemas.


@dataclass(frozen=True)
class Schema:
    """What one folder is to hold."""

    columns: Mapping[str, str]
    samples: Sequence[Mapping[str, Any]]
    options: Mapping[str, Any]


INTS = {name: (np.iinfo(name).min, np.iinfo(name).max) for name in encodings.SCALARS if "int" in name}
DTYPES = sorted(encodings.ARRAY_CODES)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


def array_of(dtype: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    made = np.random.default_rng(seed)
    if dtype.startswith("float"):
        return made.normal(size=shape).astype(dtype)
    low, high = INTS[dtype]
    return made.integers(low, high, shape, dtype=dtype, endpoint=True)


def values(encoding: str) -> st.SearchStrategy[Any]:
    """Values that an encoding takes."""
    if encoding in INTS:
        return st.integers(*INTS[encoding]).map(np.dtype(encoding).type)
    if encoding.startswith("float"):
        return st.floats(width=int(encoding[5:]), allow_nan=False).map(np.dtype(encoding).type)
    simple = {
        "int": st.integers(-(2**63), 2**63 - 1),
        "str": TEXT,
        "bytes": st.binary(max_size=60),
        "json": JSON,
        "str_int": st.integers(),
        "str_float": st.floats(allow_nan=False),
        "str_decimal": st.decimals(allow_nan=False, allow_infinity=False, places=4),
    }
    if encoding in simple:
        return simple[encoding]
    _, *rest = encoding.split(":")
    dtypes = st.just(rest[0]) if rest else st.sampled_from(DTYPES)
    shapes = st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple) | st.sampled_from(
        [(255,), (256,), (70_000,)]
    )
    if len(rest) > 1:
        shapes = st.just(tuple(map(int, rest[1].split(","))))
    return st.builds(array_of, dtypes, shapes, st.integers(0, 2**32 - 1))


ENCODINGS = st.one_of(
    st.sampled_from(["int", *encodings.SCALARS, *encodings.TEXTS, "ndarray"]),
    st.sampled_from(DTYPES).map("ndarray:{}".format),
    st.builds("ndarray:{}:{}".format, st.sampled_from(DTYPES), st.sampled_from(["1", "7", "2,3", "1,2,2"])),
)
EVERYTHING = {
    kind: kind
    for kind in ("int", *encodings.SCALARS, *encodings.TEXTS, "ndarray", "ndarray:int16", "ndarray:float32:2,3")
}
COMPRESSIONS = st.none() | st.sampled_from(
    list(LEVELS) + [f"{name}:{level}" for name, span in LEVELS.items() if span for level in span[:2]]
)
HASHES = st.lists(st.sampled_from(["md5", "sha1", "sha256", "blake2b", "sha3_384"]), unique=True, max_size=3).map(
    sorted
)


@st.composite
def schemas(draw: st.DrawFn) -> Schema:
    names = draw(st.lists(st.text("abcXYZ_09é", min_size=1, max_size=6), min_size=1, max_size=5, unique=True))
    return draw(schemas_of({name: draw(ENCODINGS) for name in names}, compressions=COMPRESSIONS))


@st.composite
def schemas_of(draw: st.DrawFn, columns: dict[str, str], compressions: st.SearchStrategy[str | None]) -> Schema:
    names = list(columns)
    samples = draw(st.lists(st.fixed_dictionaries({name: values(kind) for name, kind in columns.items()}), min_size=1,
                            max_size=25))  # fmt: skip
    largest = max(sum(len(encodings.encode(columns[name], one[name])) for name in names) for one in samples)
    # A limit below the first sample makes upstream write an empty shard; ours never does (see reference/mds-format.md).
    limit = largest + 2000 + draw(st.integers(0, 3 * largest))
    options = {"compression": draw(compressions), "hashes": draw(HASHES), "size_limit": limit}
    return Schema(columns=columns, samples=samples, options=options)


@pytest.fixture(scope="module")
def random_folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Schema]]:
    """Schemas drawn by hypothesis, all written by mosaicml-streaming in one process."""
    drawn: list[Schema] = []

    @settings(max_examples=NUM_SCHEMAS, database=None, deadline=None, suppress_health_check=list(HealthCheck),
              derandomize=True)  # fmt: skip
    @given(schemas())
    def draw(schema: Schema) -> None:
        drawn.append(schema)

    @settings(max_examples=3, database=None, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(st.data())
    def draw_all(data: st.DataObject) -> None:
        for extension in (None, *LEVELS):
            drawn.append(data.draw(schemas_of(EVERYTHING, compressions=st.just(extension))))

    draw()
    draw_all()
    folder = tmp_path_factory.mktemp("random")
    cases = {f"{number:03d}": schema for number, schema in enumerate(drawn)}
    request = {name: (dict(one.columns), list(one.samples), dict(one.options)) for name, one in cases.items()}
    run("write_mds.py", folder, data=pickle.dumps(request))
    return folder, cases


def ours(schema: Schema) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    """The files and index entries of our writer."""
    options = schema.options
    config = mds.make_config(schema.columns, **options)
    files, entries = {}, []
    for number, (data, count) in enumerate(mds.shard_bytes(config, list(schema.samples))):
        basename = f"shard.{number:05d}.mds"
        zip_data = None
        stored, name = data, basename
        if options["compression"]:
            stored = compress(data, compression=options["compression"])
            name = f"{basename}.{parse(options['compression'])[0]}"
            zip_data = {"basename": name, "bytes": len(stored), "hashes": hashes_of(stored, options["hashes"])}
        files[name] = stored
        entries.append(
            mds.index_entry(config, basename=basename, num_bytes=len(data), samples=count, zip_data=zip_data,
                            hashes=hashes_of(data, options["hashes"]))
        )  # fmt: skip
    return files, entries


def hashes_of(data: bytes, names: Sequence[str]) -> dict[str, str]:
    return {name: hashlib.new(name, data).hexdigest() for name in names}


INEXACT = ("gz", "snappy")
"""gzip's header holds the time of writing; two libraries of snappy find other matches. What they hold is compared."""


def raw(files: Mapping[str, bytes], schema: Schema) -> dict[str, bytes]:
    """The files, decompressed where their stored bytes may differ."""
    name = str(schema.options["compression"]).partition(":")[0]
    if name not in INEXACT:
        return dict(files)
    wanted = {entry["zip_data"]["basename"]: entry["raw_data"]["bytes"] for entry in ours(schema)[1]}
    return {key: decompress(data, compression=name, num_bytes=wanted[key]) for key, data in files.items()}


def test_our_writer_gives_the_bytes_of_the_original(random_folders: tuple[Path, dict[str, Schema]]) -> None:
    folder, cases = random_folders
    encodings_seen = {kind.split(":")[0] for schema in cases.values() for kind in schema.columns.values()}
    compressions_seen = {(schema.options["compression"] or "none").split(":")[0] for schema in cases.values()}
    shards = 0
    for name, schema in cases.items():
        files, entries = ours(schema)
        theirs = {path.name: path.read_bytes() for path in (folder / name).iterdir() if path.name != "index.json"}
        index = (folder / name / "index.json").read_text()
        assert raw(files, schema) == raw(theirs, schema), (name, schema.options, schema.columns)
        if str(schema.options["compression"]).partition(":")[0] in INEXACT:
            exact = [{key: value for key, value in entry.items() if key != "zip_data"} for entry in entries]
            found = json.loads(index)["shards"]
            assert exact == [{key: value for key, value in entry.items() if key != "zip_data"} for entry in found]
        else:
            assert mds.index_json(entries) == index
        shards += len(files)
    assert shards > len(cases) > 50
    assert encodings_seen >= {"ndarray", "int", *encodings.SCALARS, *encodings.TEXTS}
    assert compressions_seen >= {"none", "zstd", "gz", "br", "bz2", "snappy"}


def test_we_read_what_the_original_wrote(random_folders: tuple[Path, dict[str, Schema]]) -> None:
    folder, cases = random_folders
    for name, schema in cases.items():
        shards = foreign.read_index(folder / name)
        for column, kind in schema.columns.items():
            read = [
                value for shard in shards for value in foreign.column(foreign.read_shard(shard), shard, name=column)
            ]
            for value, sample in zip(read, schema.samples, strict=True):
                assert same(value, sample[column]), (name, column, kind)


def same(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, np.ndarray):
        return value.dtype == wanted.dtype and np.array_equal(value, wanted)
    if isinstance(wanted, Decimal):
        return value == wanted and str(value) == str(wanted)
    return bool(value == wanted)


def test_damage_in_what_the_original_wrote_is_seen(random_folders: tuple[Path, dict[str, Schema]]) -> None:
    """A byte flipped anywhere in a file with hashes is named."""
    folder, cases = random_folders
    chosen = random.Random(5)
    tried = 0
    for name, schema in cases.items():
        if not schema.options["hashes"]:
            continue
        shard = foreign.read_index(folder / name)[0]
        path = (shard.zipped or shard.raw).path
        whole = path.read_bytes()
        data = bytearray(whole)
        data[chosen.randrange(len(data))] ^= 1 << chosen.randrange(8)
        path.write_bytes(bytes(data))
        with pytest.raises(foreign.CorruptShard, match=path.name):
            foreign.read_shard(shard)
        path.write_bytes(whole)
        tried += 1
    assert tried > 20


# Whole sets.


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Home, Path]:
    """A set of ours, as it lies, exported, and exported with compression."""
    folder = tmp_path_factory.mktemp("set")
    home = Home(folder / "home")
    source, _ = text_folder(folder / "source")
    import_folder(home, folder=source, settings=set_settings(), holdout=0.2)
    export(home, name="imported", to=folder / "plain")
    export(home, name="imported", to=folder / "zipped", compression="zstd")
    return home, folder


def samples_of(home: Home, split: str) -> list[dict[str, Any]]:
    """The set's samples in the manifest's order."""
    table = manifest.read_manifest(home, "imported")
    files = list(manifest.shard_files(table, split=split))
    root = manifest.set_folder(home, name="imported")
    return [sample for file in files for sample in mds.read_samples(root / file.file)]


def assert_same_samples(read: Sequence[Mapping[str, Any]], wanted: Sequence[Mapping[str, Any]]) -> None:
    assert len(read) == len(wanted) > 20
    for one, other in zip(read, wanted, strict=True):
        assert one.keys() == other.keys()
        for name in other:
            assert np.array_equal(one[name], other[name])


@pytest.mark.parametrize("child", ["read_streaming.py", "read_mdsreader.py"])
def test_streaming_reads_our_sets_sample_for_sample(exported: tuple[Home, Path], tmp_path: Path, child: str) -> None:
    home, folder = exported
    places = {
        home.shards / "imported" / "train": "train", home.shards / "imported" / "heldout": "heldout",
        folder / "plain" / "train": "train",
    }  # fmt: skip
    if child == "read_streaming.py":  # MDSReader alone reads what is decompressed already
        places[folder / "zipped" / "heldout"] = "heldout"
    run(child, tmp_path / "read.pkl", *places)

    read = pickle.loads((tmp_path / "read.pkl").read_bytes())

    for place, split in places.items():
        assert_same_samples(read[str(place)], samples_of(home, split))
    assert verify(home, name="imported").damages == [], "they changed nothing"


def test_litdata_reads_our_sets_sample_for_sample(exported: tuple[Home, Path], tmp_path: Path) -> None:
    home, folder = exported
    run("read_litdata.py", tmp_path / "read.pkl", folder / "zipped" / "train")

    (read,) = pickle.loads((tmp_path / "read.pkl").read_bytes()).values()

    assert_same_samples(read, samples_of(home, "train"))


def test_a_folder_of_the_original_becomes_the_set_that_ours_does(tmp_path: Path) -> None:
    source, texts = text_folder(tmp_path / "ours" / "f")
    samples = [{"text": text} for text in texts]
    options = {"compression": "zstd", "hashes": ["sha256"], "size_limit": 2**14}
    run("write_mds.py", tmp_path / "theirs", data=pickle.dumps({"f": ({"text": "str"}, samples, options)}))
    files = []
    for number, folder in enumerate((tmp_path / "theirs" / "f", source)):
        home = Home(tmp_path / f"home{number}")
        given = set_settings(tokenizer={"vocab_size": 320})
        record, _ = import_folder(home, folder=folder, settings=given, holdout=0.2)
        assert not verify(home, name="imported").damages
        files.append((record.tokens, record.tokenizer.sha256, record.splits["train"].documents))
    assert files[0] == files[1]
