"""The decoding search: what it must see in every format, what it must not take for a hit, and that it is linear."""

import bz2
import gzip
import json
import sqlite3
import time
import zipfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from deltalake import write_deltalake
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.forgetting import decoding
from tessera.forgetting.needles import (
    KEY_BYTES,
    Needles,
    own,
    search_for,
    stretches,
    text_forms,
    token_stretches,
)
from tessera.forgetting.search import joined, search, search_file
from tessera.shard.format.compression import compress

SECRET = 'A quiet größte marmot\nsaid "never" to 14 grey herons by the old lock at Nieuwpoort, twice.'
NEEDLES = search_for(own(stretches(0, text=SECRET), other_texts=[]))
SCRAPS = "|".join(SECRET[at : at + 8] for at in reversed(range(0, len(SECRET), 8)))
"""Its pieces in another order: what a compressor may refer to, so that the text itself is not stored as it is."""
FILLER = "the quick brown fox jumps over the lazy dog and goes home again " * 400


def in_parquet(path: Path, **options: object) -> None:
    pq.write_table(pa.table({"n": range(500), "text": [*[FILLER] * 250, SECRET, *[FILLER] * 249]}), path, **options)


def in_nested_parquet(path: Path) -> None:
    messages = [[{"role": "user", "content": FILLER}], None, [{"role": "assistant", "content": FILLER + SECRET}]]
    pq.write_table(pa.table({"messages": messages, "maps": pa.nulls(3)}), path, compression="zstd")


def in_map(path: Path) -> None:
    kind = pa.map_(pa.string(), pa.large_string())
    pq.write_table(pa.table({"maps": pa.array([[("a", FILLER)], [("b", SECRET)]], kind)}), path, compression="snappy")


def in_binary_dictionary(path: Path) -> None:
    table = pa.table({"b": pa.array([b"x", SECRET.encode(), b"x"]).dictionary_encode()})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(
        file, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")
    ) as writer:  # fmt: skip
        writer.write_table(table)


def in_sqlite(path: Path, *, delete: bool = False) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA secure_delete = OFF")  # some builds wipe what is deleted
        connection.execute("CREATE TABLE 'odd \"name' (a INTEGER, b TEXT, c BLOB)")
        for number in range(50):
            connection.execute("INSERT INTO 'odd \"name' VALUES (?, ?, ?)", (number, f"{number}", b"blob"))
        text = SECRET if delete else FILLER + SECRET  # a long one lies on overflow pages, cut into pieces
        connection.execute("INSERT INTO 'odd \"name' VALUES (99, ?, NULL)", (text,))
        connection.commit()
        if delete:
            connection.execute("DELETE FROM 'odd \"name' WHERE a = 99")
            connection.commit()


def in_lz4_blocks(path: Path) -> None:
    data = (SCRAPS + FILLER + SECRET).encode()
    packed = pa.Codec("lz4_raw").compress(data, asbytes=True)
    path.write_bytes(decoding.LZ4_HEAD.pack(b"LZ4Block", 0x25, len(packed), len(data), 0) + packed)


def in_snappy_frames(path: Path) -> None:
    packed = pa.Codec("snappy").compress((SCRAPS + FILLER + SECRET).encode(), asbytes=True)
    chunk = (len(packed) + 4).to_bytes(3, "little")
    path.write_bytes(decoding.SNAPPY_FRAMED + b"\x00" + chunk + b"\0\0\0\0" + packed)


def in_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/b.txt", FILLER + SECRET)


def in_delta_log(path: Path) -> None:
    """Statistics: minima and maxima as JSON within JSON, of the text's beginning."""
    write_deltalake(path.parent / "table", pa.table({"text": [SECRET, SECRET]}))
    (log,) = (path.parent / "table" / "_delta_log").glob("*.json")
    log.rename(path)


def framed(compress: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda path: (path.write_bytes(compress((FILLER + SECRET + FILLER).encode())), None)[1]


PLACES: dict[str, Callable[[Path], None]] = {
    "raw": framed(bytes),
    "gzip": framed(gzip.compress),
    "two gzip members": framed(lambda data: gzip.compress(data[:50]) + gzip.compress(data[50:])),
    "bz2": framed(bz2.compress),
    "zstd": framed(lambda data: zstandard.compress(data)),
    "lz4 frame": framed(lambda data: _arrow_compressed(data, "lz4")),
    "lz4 blocks": in_lz4_blocks,
    "snappy frames": in_snappy_frames,
    "zip": in_zip,
    "utf-16": framed(lambda data: data.decode().encode("utf-16-le")),
    "utf-16 be": framed(lambda data: data.decode().encode("utf-16-be")),
    "json": framed(lambda data: json.dumps(data.decode()).encode()),
    "json plain": framed(lambda data: json.dumps(data.decode(), ensure_ascii=False).encode()),
    "json in json": framed(lambda data: json.dumps(json.dumps(data.decode())).encode()),
    "delta log": in_delta_log,
    "sqlite": in_sqlite,
    "sqlite deleted": lambda path: in_sqlite(path, delete=True),
    "parquet snappy": lambda path: in_parquet(path, compression="snappy"),
    "parquet zstd": lambda path: in_parquet(path, compression="zstd", write_statistics=False),
    "parquet dictionary": lambda path: in_parquet(path, compression="gzip", use_dictionary=True),
    "parquet plain v2": lambda path: in_parquet(
        path,
        compression="zstd",
        use_dictionary=False,
        data_page_version="2.0",
        column_encoding={"text": "DELTA_BYTE_ARRAY"},
    ),
    "parquet nested": in_nested_parquet,
    "parquet map": in_map,
    "arrow": in_binary_dictionary,
}


def _arrow_compressed(data: bytes, codec: str) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, codec) as stream:
        stream.write(data)
    return bytes(sink.getvalue())


@pytest.mark.parametrize("name", PLACES)
def test_it_is_found_wherever_it_lies(name: str, tmp_path: Path) -> None:
    PLACES[name](tmp_path / "file")

    assert search_file(tmp_path / "file", needles=NEEDLES) == {0}


@pytest.mark.parametrize("name", PLACES)
def test_another_text_in_the_same_place_is_no_hit(name: str, tmp_path: Path) -> None:
    PLACES[name](tmp_path / "file")
    other = search_for(own(stretches(5, text=SECRET.replace("a", "o").replace("e", "i")), other_texts=[]))

    assert search_file(tmp_path / "file", needles=other) == set()


def test_a_decoder_is_needed_for_what_the_raw_bytes_hide(tmp_path: Path) -> None:
    """Else the tests above would pass without one."""
    hidden = []
    for name, make in PLACES.items():
        folder = tmp_path / name.replace(" ", "-")
        folder.mkdir()
        make(folder / "file")
        if not NEEDLES.find((folder / "file").read_bytes()):
            hidden.append(name)

    assert {"gzip", "bz2", "zstd", "lz4 blocks", "snappy frames", "zip", "parquet zstd", "arrow"} <= set(hidden)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "head only"])
@pytest.mark.parametrize("name", PLACES)
def test_damaged_files_never_stop_a_search(name: str, damage: str, tmp_path: Path) -> None:
    PLACES[name](tmp_path / "file")
    data = bytearray((tmp_path / "file").read_bytes())
    data = {
        "cut": data[: len(data) // 2], "empty": data[:0], "head only": data[:20],
        "flipped": data[:40] + bytes(255 - byte for byte in data[40:80]) + data[80:],
    }[damage]  # fmt: skip
    (tmp_path / "file").write_bytes(bytes(data))
    (tmp_path / "sound").write_text(SECRET)

    assert (tmp_path / "sound") in search([tmp_path], needles=NEEDLES).files


@pytest.mark.parametrize("compression", ["br", "bz2", "gz", "snappy", "zstd"])
def test_a_compressed_export_is_seen_through(compression: str, tmp_path: Path) -> None:
    ids = list(np.random.default_rng(3).integers(0, 9, 4000, "<u2"))  # few ids: a compressor refers back all the time
    data = compress(np.array(ids, "<u2").tobytes(), compression=compression)
    (tmp_path / f"shard.00000.mds.{compression}").write_bytes(data)
    needles = Needles([(np.array(ids[-40:], "<u2").tobytes(), 3)])

    assert needles.find(data) == set()
    assert list(search([tmp_path], needles=needles).files.values()) == [{3}]


def test_a_damaged_archive_of_any_kind_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "archive.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a", "".join(map(chr, np.random.default_rng(1).integers(97, 110, 5000))))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)

    assert search([tmp_path], needles=NEEDLES).num_files == 1


def test_token_ids_of_both_widths_at_any_alignment(tmp_path: Path) -> None:
    ids = list(range(900, 912))
    needles = search_for(own(token_stretches(3, windows=[(ids, "a stretch of some text")]), other_texts=[]))
    for kind in ("<u2", "<u4"):
        (tmp_path / kind).write_bytes(b"x" + np.array([1, 2, *ids, 4], kind).tobytes())
    (tmp_path / "zstd").write_bytes(zstandard.compress(np.array(ids, "<u2").tobytes() * 3))
    (tmp_path / "other").write_bytes(np.array([1, 2, *ids[:-1], 4], "<u2").tobytes())

    assert {path.name for path in search([tmp_path], needles=needles).files} == {"<u2", "<u4", "zstd"}


@settings(max_examples=60, deadline=None)
@given(
    pieces=st.lists(st.binary(max_size=90), max_size=12),
    needles=st.lists(st.binary(min_size=KEY_BYTES, max_size=60), min_size=1, max_size=6, unique=True),
    planted=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 12)), max_size=4),
)
def test_every_needle_is_found_and_nothing_else(
    pieces: list[bytes], needles: list[bytes], planted: list[tuple[int, int]]
) -> None:
    for number, place in planted:
        pieces.insert(place % (len(pieces) + 1), needles[number % len(needles)])
    data = b"".join(pieces)
    looked_for = Needles((needle, number) for number, needle in enumerate(needles))

    assert looked_for.find(data) == {number for number, needle in enumerate(needles) if needle in data}


def test_a_needle_across_pieces_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "PIECE_BYTES", 64)
    data = b"." * 50 + SECRET.encode() + b"." * 50
    for size in (1, 7, 64, 1000):
        pieces = [data[at : at + size] for at in range(0, len(data), size)]
        found: set[int] = set()
        for piece in joined(pieces, overlap=NEEDLES.longest - 1):
            found |= NEEDLES.find(piece)
        assert found == {0}


def test_stretches_that_others_have_are_not_looked_for() -> None:
    shared = "This paragraph stands in very many documents of the house. "
    candidates = stretches(0, text=shared + SECRET + shared)
    kept = own(candidates, other_texts=[f"Before. {shared}After.".encode()])

    assert kept
    assert all(one.text not in shared for one in kept)
    assert len(kept) < len(candidates)
    assert own(stretches(0, text=shared), other_texts=[shared.encode()]) == []
    assert stretches(0, text="too short") == stretches(0, text="-" * 500) == []


def test_forms_hold_no_needle_too_short_to_be_looked_for() -> None:
    for text in ("sixteen letters!", SECRET[:24], "größte 空 \U0001f600 \ud800 surrogate"):
        assert all(len(form) >= KEY_BYTES for form in text_forms(text))


def test_time_grows_with_the_bytes_and_not_with_the_needles(tmp_path: Path) -> None:
    data = np.random.default_rng(1).integers(0, 256, 2**24, dtype=np.uint8).tobytes()
    random = np.random.default_rng(2)
    few, many = (Needles((random.bytes(24), number) for number in range(count)) for count in (10, 20_000))

    def seconds(needles: Needles) -> float:
        return min(_timed(lambda: needles.find(data)) for _ in range(3))

    assert seconds(many) < 4 * seconds(few)


def _timed(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def test_a_large_file_needs_little_memory(tmp_path: Path) -> None:
    """Half a GiB compressed into nothing: decoded whole it would not fit the limit."""
    import subprocess
    import sys

    with gzip.open(tmp_path / "large.gz", "wb", compresslevel=1) as file:
        for _ in range(256):
            file.write(b"\0" * 2**21)
        file.write(SECRET.encode())
    script = (
        "import resource, sys; from pathlib import Path; from tests.test_search import NEEDLES, search_file\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"found = search_file(Path({str(tmp_path / 'large.gz')!r}), needles=NEEDLES)\n"
        "grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before\n"
        "assert found == {0}; assert grown < 120_000, grown\n"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
