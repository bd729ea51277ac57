"""The bytes of a file, as they are and as its format hides them: what a search for text has to look through.

Every file is read raw; Parquet, Arrow, SQLite, zip and compressed frames are decoded too. A stream is an iterator of
buffers that follow on one another. Files are read in pieces of a few MiB, tables in batches of rows; a part that cannot
be decoded ends its stream, the raw bytes were looked through before.
"""

import lzma
import sqlite3
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tessera import arrow_text

PIECE_BYTES = 2**22
BATCH_ROWS = 512

Stream = Iterator[Any]

CODECS = {
    b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"\x04\x22\x4d\x18": "lz4", b"BZh": "bz2",
}  # fmt: skip
"""First bytes -> what Arrow calls it."""

HEADLESS = (".br", ".snappy")
"""Compressed forms that only a file's name tells, as MDS folders have them."""

SNAPPY_FRAMED = b"\xff\x06\x00\x00sNaPpY"
LZ4_BLOCK = b"LZ4Block"
LZ4_HEAD = struct.Struct("<8sBIII")
"""Of the blocks that Spark writes: magic, token, compressed size, size, checksum."""

ERRORS = (
    OSError, ValueError, EOFError, struct.error, sqlite3.Error, zipfile.BadZipFile, zlib.error, lzma.LZMAError,
    pa.ArrowException, NotImplementedError, RuntimeError,
)  # fmt: skip
"""What damaged data raises; RuntimeError is zipfile's, of an encrypted member."""


def streams(path: Path) -> Iterator[Stream]:
    """The streams of a file; the first is the file itself.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(16)
    yield _pieces(path)
    decode = _decoder(head, suffix=path.suffix)
    if decode is not None:
        yield from _whole(decode(path))


def _decoder(head: bytes, *, suffix: str) -> "Callable[[Path], Iterator[Stream]] | None":
    if head.startswith(b"PAR1"):
        return _parquet
    if head.startswith(b"ARROW1"):
        return _arrow
    if head.startswith(b"SQLite format 3\x00"):
        return _sqlite
    if head.startswith(b"PK\x03\x04"):
        return _zip
    if head.startswith(LZ4_BLOCK):
        return lambda path: iter([_lz4_blocks(path)])
    if head.startswith(SNAPPY_FRAMED):
        return lambda path: iter([_snappy_frames(path)])
    for magic, codec in CODECS.items():
        if head.startswith(magic):
            return lambda path: iter([_compressed(path, codec=codec)])
    if suffix in HEADLESS:
        return lambda path: iter([_headless(path)])
    return None


def _whole(found: Iterator[Stream]) -> Iterator[Stream]:
    """The streams up to the first fault."""
    while True:
        try:
            stream = next(found)
        except StopIteration:
            return
        except ERRORS:
            return
        yield _sound(stream)


def _sound(stream: Stream) -> Stream:
    while True:
        try:
            piece = next(stream)
        except StopIteration:
            return
        except ERRORS:
            return
        yield piece


def _pieces(path: Path) -> Stream:
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            yield piece


def _parquet(path: Path) -> Iterator[Stream]:
    """Each column in turn, over all rows."""
    with pq.ParquetFile(path) as file:
        for name in dict.fromkeys(file.schema_arrow.names):
            yield _column(file, name)


def _column(file: pq.ParquetFile, name: str) -> Stream:
    for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=[name]):
        for column in batch.columns:
            yield from arrow_text.buffers(column)


def _arrow(path: Path) -> Iterator[Stream]:
    """Each batch; Arrow decompresses its buffers."""
    with pa.OSFile(str(path)) as source:
        reader = pa.ipc.open_file(source)
        for number in range(reader.num_record_batches):
            yield (piece for column in reader.get_batch(number).columns for piece in arrow_text.buffers(column))


def _sqlite(path: Path) -> Iterator[Stream]:
    """Each table's texts and blobs; deleted rows stay in free pages, which the raw bytes show."""
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        connection.text_factory = bytes
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for name in names:
            quoted = name.decode().replace('"', '""')
            yield _cells(connection.execute(f'SELECT * FROM "{quoted}"'))


def _cells(rows: Any) -> Stream:
    for row in rows:
        yield b"\x00" + b"\x00".join(value for value in row if isinstance(value, bytes))


def _zip(path: Path) -> Iterator[Stream]:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            yield _member(archive, member)


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Stream:
    with archive.open(member) as file:
        while piece := file.read(PIECE_BYTES):
            yield piece


def _compressed(path: Path, *, codec: str) -> Stream:
    with pa.input_stream(str(path), compression=codec) as file:
        while piece := file.read(PIECE_BYTES):
            yield piece


def _headless(path: Path) -> Stream:
    """Brotli, or one snappy block, which is in memory whole: an MDS file."""
    if path.suffix == ".br":
        yield from _compressed(path, codec="brotli")
        return
    data = path.read_bytes()
    yield pa.Codec("snappy").decompress(data, decompressed_size=_varint(data))


def _lz4_blocks(path: Path) -> Stream:
    with path.open("rb") as file:
        while len(head := file.read(LZ4_HEAD.size)) == LZ4_HEAD.size:
            magic, token, compressed, size, _ = LZ4_HEAD.unpack(head)
            if magic != LZ4_BLOCK:
                return
            data = file.read(compressed)
            if size:
                packed = token & 0xF0 == 0x20
                yield pa.Codec("lz4_raw").decompress(data, decompressed_size=size) if packed else data


def _snappy_frames(path: Path) -> Stream:
    """Chunks of the framing format: u8 kind, u24 size, and for data a u32 checksum."""
    with path.open("rb") as file:
        while len(head := file.read(4)) == 4:
            data = file.read(int.from_bytes(head[1:], "little"))
            if head[0] == 0x00:
                yield pa.Codec("snappy").decompress(data[4:], decompressed_size=_varint(data[4:]))
            elif head[0] == 0x01:
                yield data[4:]


def _varint(data: bytes) -> int:
    """The uncompressed size in front of a snappy block."""
    value = 0
    for place, byte in enumerate(data[:5]):
        value |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            break
    return value
