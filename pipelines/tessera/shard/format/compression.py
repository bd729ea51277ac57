"""Whole-file compression of MDS shards: `zstd`, `gz`, `bz2`, `br`, `snappy`, each but the last with `:level`.

Codecs are pyarrow's and the standard library's, imported when they are used. Source: mosaicml-streaming 0.13, whose
levels and defaults these are; `zstd`, `br` and `bz2` give its bytes, `gz` and `snappy` the same contents.
"""

import bz2
import gzip
import zlib
from typing import Any

from tessera.errors import CorruptShard, ShardSetError

LEVELS: dict[str, tuple[int, int, int] | None] = {
    "br": (0, 11, 11),
    "bz2": (1, 9, 9),
    "gz": (0, 9, 9),
    "snappy": None,
    "zstd": (1, 22, 3),
}
"""Extension -> lowest, highest and default level."""

ARROW_NAMES = {"br": "brotli", "snappy": "snappy", "zstd": "zstd"}


def parse(compression: str) -> tuple[str, int | None]:
    """`extension[:level]` as extension and level.

    Raises:
        ShardSetError: it is not known.
    """
    extension, colon, level = compression.partition(":")
    levels = LEVELS.get(extension)
    if extension in LEVELS and not colon:
        return extension, levels[2] if levels else None
    if levels and level.isdecimal() and levels[0] <= int(level) <= levels[1]:
        return extension, int(level)
    known = ", ".join(f"{name}:{span[0]}-{span[1]}" if span else name for name, span in LEVELS.items())
    raise ShardSetError(f"MDS compression {compression!r} is not one of {known}; write the folder with one of them")


def compress(data: bytes, *, compression: str) -> bytes:
    """A shard file's bytes as they are stored; the same for the same input, whatever the time."""
    extension, level = parse(compression)
    if extension == "bz2":
        assert level is not None
        return bz2.compress(data, level)
    if extension == "gz":
        assert level is not None
        made = gzip.compress(
            data, level, mtime=1
        )  # 0 would name an operating system in the header, as upstream does not
        return made[:4] + bytes(4) + made[8:]
    return bytes(_codec(extension, level).compress(data, asbytes=True))


def decompress(data: bytes, *, compression: str, num_bytes: int) -> bytes:
    """The inverse of `compress`.

    Args:
        num_bytes: of the result, as the index has it.

    Raises:
        CorruptShard: `data` is not compressed so, or gives another number of bytes.
    """
    extension, _ = parse(compression)
    try:
        if extension == "bz2":
            raw = bz2.decompress(data)
        elif extension == "gz":
            raw = gzip.decompress(data)
        else:
            raw = bytes(_codec(extension, None).decompress(data, decompressed_size=num_bytes, asbytes=True))
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise CorruptShard(f"not {extension} data of {num_bytes} bytes ({type(error).__name__})") from None
    if len(raw) != num_bytes:
        raise CorruptShard(f"decompresses to {len(raw)} bytes, expected {num_bytes}")
    return raw


def _codec(extension: str, level: int | None) -> Any:
    import pyarrow as pa

    return pa.Codec(ARROW_NAMES[extension], compression_level=level)
