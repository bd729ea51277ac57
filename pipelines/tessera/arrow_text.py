"""The bytes of all texts within Arrow data, however nested, without a Python object a value."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa


def buffers(array: Any) -> Iterator[Any]:
    """The bytes of all texts and binary values of an Arrow array, nested ones too, as buffers."""
    kind = array.type
    if isinstance(array, pa.ChunkedArray):
        for chunk in array.chunks:
            yield from buffers(chunk)
    elif pa.types.is_dictionary(kind):
        yield from buffers(array.dictionary)
    elif pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):
        yield from buffers(array.cast(pa.large_binary()))
    elif pa.types.is_struct(kind):
        for inner in array.flatten():
            yield from buffers(inner)
    elif pa.types.is_map(kind):
        yield from buffers(array.keys)
        yield from buffers(array.items)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        yield from buffers(array.flatten())
    elif isinstance(array, pa.ExtensionArray):
        yield from buffers(array.storage)
    elif pa.types.is_fixed_size_binary(kind):
        yield array.buffers()[1]
    elif pa.types.is_string(kind) or pa.types.is_binary(kind):
        yield from _values(array, offset_bytes=4)
    elif pa.types.is_large_string(kind) or pa.types.is_large_binary(kind):
        yield from _values(array, offset_bytes=8)


def _values(array: Any, *, offset_bytes: int) -> Iterator[Any]:
    _, offsets, data = array.buffers()
    if data is not None and len(array):
        ends = memoryview(offsets).cast("i" if offset_bytes == 4 else "q")
        yield memoryview(data)[ends[array.offset] : ends[array.offset + len(array)]]
