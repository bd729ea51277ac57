"""Values to bytes and back, in the encodings of MDS version 2; all little-endian. One Python call a value.

Scalars and text are trivial; an array says in front of its data what its encoding leaves open: type, shape or both.
`pkl` is refused: reading it would run foreign code. Source: mosaicml-streaming 0.13.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.errors import ShardSetError

SCALARS = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32", "float64")

ARRAY_CODES = {
    "uint8": 8, "int8": 9, "uint16": 16, "int16": 17, "float16": 18, "uint32": 32, "int32": 33, "float32": 34,
    "uint64": 64, "int64": 65, "float64": 66,
}  # fmt: skip
ARRAY_TYPES = {code: name for name, code in ARRAY_CODES.items()}

DIMENSION_TYPES = ("<u1", "<u2", "<u4", "<u8")
"""Of an array's dimensions: the smallest that holds the largest of them."""

TEXTS: dict[str, tuple[Callable[[Any], bytes], Callable[[bytes], Any]]] = {
    "bytes": (bytes, bytes),
    "str": (lambda value: value.encode(), lambda data: data.decode()),
    "json": (lambda value: json.dumps(value).encode(), lambda data: json.loads(data)),
    "str_int": (lambda value: str(int(value)).encode(), lambda data: int(data)),
    "str_float": (lambda value: str(float(value)).encode(), lambda data: float(data)),
    "str_decimal": (lambda value: str(value).encode(), lambda data: Decimal(data.decode())),
}
"""Encodings of variable size that hold text or raw bytes."""


@dataclass(frozen=True)
class ArrayEncoding:
    """`ndarray[:dtype[:d0,d1...]]`, taken apart; None is what each value says itself."""

    dtype: str | None
    shape: tuple[int, ...] | None


def size_of(encoding: str) -> int | None:
    """Bytes of every value of an encoding, or None where values differ.

    Raises:
        ShardSetError: an encoding that is not known, or is refused.
    """
    if encoding == "int":
        return 8
    if encoding in SCALARS:
        return np.dtype(encoding).itemsize
    if encoding in TEXTS:
        return None
    array = _array(encoding)
    if array.dtype is None or array.shape is None:
        return None
    return int(np.prod(array.shape, dtype=np.int64)) * np.dtype(array.dtype).itemsize


def encode(encoding: str, value: Any) -> bytes:
    """One value as bytes.

    Raises:
        ShardSetError: an encoding that is not known, or a value that does not fit it.
    """
    if encoding in TEXTS:
        return TEXTS[encoding][0](value)
    if encoding == "int" or encoding in SCALARS:
        return np.asarray(value, dtype=_little(encoding)).tobytes()
    return _encode_array(_array(encoding), np.asarray(value))


def decode(encoding: str, data: bytes) -> Any:
    """The inverse of `encode`; arrays are read-only views of `data`."""
    if encoding in TEXTS:
        return TEXTS[encoding][1](data)
    if encoding == "int":
        return int(np.frombuffer(data, "<i8")[0])
    if encoding in SCALARS:
        return np.frombuffer(data, _little(encoding))[0]
    return _decode_array(_array(encoding), data)


def _array(encoding: str) -> ArrayEncoding:
    name, *parts = encoding.split(":")
    if name != "ndarray" or len(parts) > 2 or (parts and parts[0] not in ARRAY_CODES):
        hint = "; pkl runs foreign code and is never read or written" if name == "pkl" else ""
        known = ", ".join(["int", *SCALARS, *TEXTS, "ndarray"])
        raise ShardSetError(f"MDS encoding {encoding!r} is not one of {known}{hint}; convert the column")
    shape = tuple(int(size) for size in parts[1].split(",")) if len(parts) == 2 else None
    return ArrayEncoding(dtype=parts[0] if parts else None, shape=shape)


def _encode_array(encoding: ArrayEncoding, value: NDArray[Any]) -> bytes:
    dtype = encoding.dtype or value.dtype.name
    fits = dtype in ARRAY_CODES and (encoding.dtype is None or value.dtype.name == dtype)
    if not fits or (encoding.shape is not None and value.shape != encoding.shape):
        raise ShardSetError(f"an array of {value.dtype} {value.shape} does not fit MDS encoding {encoding}")
    if value.ndim == 0 or value.size == 0:
        raise ShardSetError(f"MDS has no scalar and no empty arrays; found shape {value.shape}")
    head = b"" if encoding.dtype else bytes([ARRAY_CODES[dtype]])
    if encoding.shape is None:
        kind = dimension_kind(max(value.shape))
        head += bytes([value.ndim << 2 | kind]) + np.asarray(value.shape, DIMENSION_TYPES[kind]).tobytes()
    return head + np.ascontiguousarray(value, dtype=_little(dtype)).tobytes()


def _decode_array(encoding: ArrayEncoding, data: bytes) -> NDArray[Any]:
    at = 0
    dtype, shape = encoding.dtype, encoding.shape
    if dtype is None:
        dtype, at = ARRAY_TYPES[data[0]], 1
    if shape is None:
        ndim, kind = data[at] >> 2, data[at] & 3
        dimensions = np.frombuffer(data, DIMENSION_TYPES[kind], ndim, at + 1)
        shape, at = tuple(int(size) for size in dimensions), at + 1 + dimensions.nbytes
    return np.frombuffer(data, _little(dtype), offset=at).reshape(shape)


def dimension_kind(largest: int) -> int:
    """Which of DIMENSION_TYPES an array with this largest dimension uses."""
    return int(largest >= 2**8) + int(largest >= 2**16) + int(largest >= 2**32)


def _little(name: str) -> np.dtype[Any]:
    return np.dtype("int64" if name == "int" else name).newbyteorder("<")
