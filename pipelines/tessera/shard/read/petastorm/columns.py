"""Arrow columns as numpy arrays and torch tensors: which types are taken, and what a null becomes.

    Delta                       numpy                          null
    byte, short, int, long      int8, int16, int32, int64      refused, or what `fill` gives
    boolean                     bool                           refused, or what `fill` gives
    float, double               float32, float64               NaN
    timestamp, timestamp_ntz    datetime64[us], UTC            NaT
    date                        datetime64[D]                  NaT
    string, binary              object: str, bytes             None
    array of numbers            [B, n]: every row of length n  refused

Decimals, maps, structs and arrays of anything else are refused by name.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tessera.errors import SourceError

if TYPE_CHECKING:
    from torch import Tensor

Batch = dict[str, NDArray[Any]]
"""Column name -> array, all of the same length."""


def check_types(schema: pa.Schema, *, table: str) -> None:
    """Raises SourceError naming the columns whose types are not taken."""
    refused = [f"{field.name} ({field.type})" for field in schema if not _is_taken(field.type)]
    if refused:
        raise SourceError(
            f"{table}: a batch cannot hold {', '.join(refused)}; name the other columns, or cast these in Spark "
            "and use make_spark_converter"
        )


def to_batch(table: pa.Table, *, columns: Sequence[str], fill: Mapping[str, Any], name: str) -> Batch:
    """The columns of an Arrow table, in the order of `columns`.

    Args:
        fill: column -> what stands for null.
        name: of the table, for messages.

    Raises:
        SourceError: a null where the array cannot hold one, or lists of several lengths.
    """
    filled = {column: _filled(table[column], fill.get(column)) for column in columns}
    return {column: _to_numpy(values, name=f"{name}: column {column}") for column, values in filled.items()}


def concatenate(batches: Sequence[Batch], *, name: str) -> Batch:
    """Batches one after another, as arrays of their own: writable, whatever they were.

    Raises:
        SourceError: lists of several lengths.
    """
    joined = {}
    for column in batches[0]:
        arrays = [batch[column] for batch in batches]
        lengths = {array.shape[1:] for array in arrays}
        if len(lengths) > 1:
            raise _ragged(f"{name}: column {column}", sorted(length[0] for length in lengths))
        joined[column] = np.concatenate(arrays)
    return joined


def to_tensors(batch: Batch, *, name: str) -> "dict[str, Tensor | list[Any]]":
    """Numbers as tensors that share the arrays' memory; text and bytes, which torch has not, as lists.

    Timestamps become int64 microseconds since 1970 in UTC, dates int64 days.

    Raises:
        SourceError: a timestamp or date is null.
    """
    import torch

    tensors: dict[str, Tensor | list[Any]] = {}
    for column, array in batch.items():
        if array.dtype.kind == "M":
            if nulls := int(np.isnat(array).sum()):
                raise _null(f"{name}: column {column}", nulls)
            array = array.view(np.int64) if array.dtype == np.dtype("M8[us]") else array.astype(np.int64)
        tensors[column] = array.tolist() if array.dtype == object else torch.from_numpy(array)
    return tensors


def _is_taken(kind: pa.DataType) -> bool:
    types = pa.types
    if types.is_list(kind):
        return _is_number(kind.value_type)
    return (
        _is_number(kind)
        or types.is_boolean(kind)
        or types.is_string(kind)
        or types.is_binary(kind)
        or types.is_timestamp(kind)
        or types.is_date32(kind)
    )


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_signed_integer(kind) or kind in (pa.float32(), pa.float64())


def _filled(column: pa.ChunkedArray, value: Any) -> pa.ChunkedArray:
    return column if value is None else column.fill_null(pa.scalar(value, type=column.type))


def _to_numpy(column: pa.ChunkedArray, *, name: str) -> NDArray[Any]:
    kind = column.type
    if pa.types.is_list(kind):
        return _matrix(column.combine_chunks(), name=name)
    if column.null_count and (pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
        raise _null(name, column.null_count)
    if pa.types.is_timestamp(kind):
        column = column.cast(pa.timestamp("us"))
    array: NDArray[Any] = column.to_numpy(zero_copy_only=False)
    return array


def _matrix(column: pa.ListArray, *, name: str) -> NDArray[Any]:
    """Lists of one length as [B, n]; of no rows as [0, 0]."""
    values = column.flatten()
    if nulls := column.null_count + values.null_count:
        raise _null(name, nulls)
    lengths = sorted(pc.unique(pc.list_value_length(column)).to_pylist())
    if len(lengths) > 1:
        raise _ragged(name, lengths)
    array: NDArray[Any] = values.to_numpy(zero_copy_only=False)
    return array.reshape(len(column), lengths[0] if lengths else 0)


def _null(name: str, number: int) -> SourceError:
    return SourceError(f"{name} has nulls, {number} of them met so far; give fill=, or leave the column out")


def _ragged(name: str, lengths: Sequence[int]) -> SourceError:
    return SourceError(
        f"{name} has lists of {lengths[0]} to {lengths[-1]} values, wanted one length; pad them or leave the column out"
    )
