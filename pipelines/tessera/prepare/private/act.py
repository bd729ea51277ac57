"""Private data in the rows of a DataFrame: counted, replaced, or the row dropped.

Arrow's RE2 is asked first (`prefilter`), so that Python reads only texts that may hold something, and reads them where
they lie: a text of 200 MB is not decoded, and copied only to
become another. Measured on docstrings, all types on: see benchmarks/prepare/private.py.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame
from pyspark.sql.types import IntegerType, StructField, StructType

from tessera.prepare.private import detect, prefilter
from tessera.prepare.private.replace import Treatment
from tessera.prepare.private.settings import TYPES, PrivateSettings
from tessera.prepare.private.spans import Detector

CONTENTS = ("text", "prompt", "chosen", "rejected")
"""Columns of strings; `messages` holds its strings in `content`."""
COUNTS = pa.struct([(name, pa.int32()) for name in TYPES])
COUNTS_TYPE = StructType([StructField(name, IntegerType()) for name in TYPES])


def applied(rows: DataFrame, *, settings: PrivateSettings, key: bytes | None) -> DataFrame:
    """Acts on private data in the contents of the rows whose `unfit` is null.

    Args:
        rows: with text, messages (array of role and content), prompt, chosen, rejected and unfit; other columns are
            left alone.
        settings: with at least one type that is looked for.
        key: of the pseudonyms, see `PrivateSettings.read_key`.

    Returns:
        The same rows and columns, in no certain order, and `private`: a struct of the number of values found by type.
        A type that is off is null in it, and all of it is null for rows that were unfit. A row with a type whose action
        is drop gets `unfit` `private:TYPE`, of the first such type in TYPES.
    """
    pass_over = Pass(
        treatment=Treatment(actions=settings.actions, key=key if settings.needs_key else None),
        countries=settings.countries,
    )
    schema = StructType([*rows.schema.fields, StructField("private", COUNTS_TYPE)])
    return rows.mapInArrow(pass_over, schema)


@dataclass(frozen=True)
class Pass:
    """One pass over Arrow batches of rows; what Spark sends to its workers."""

    treatment: Treatment
    countries: tuple[str, ...]

    def __call__(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Each batch as a batch of the same rows in the same order, with `private` as its last column."""
        detectors = detect.detectors(types=self.treatment.actions.keys(), countries=self.countries)
        for batch in batches:
            yield act_on(batch, treatment=self.treatment, detectors=detectors)


def act_on(batch: Any, *, treatment: Treatment, detectors: tuple[Detector, ...]) -> Any:
    """See `applied`, for one Arrow record batch."""
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    fit = np.asarray(columns["unfit"].is_null().to_numpy(zero_copy_only=False), dtype=bool)
    counts = np.zeros((batch.num_rows, len(TYPES)), dtype=np.int32)
    for name in CONTENTS:
        columns[name], found = _treat(columns[name], wanted=fit, treatment=treatment, detectors=detectors)
        for row, by_type in found.items():
            _add(counts, row=row, by_type=by_type)
    columns["messages"] = _treat_messages(
        columns["messages"], fit=fit, counts=counts, treatment=treatment, detectors=detectors
    )
    columns["unfit"] = _dropped(columns["unfit"], counts=counts, actions=treatment.actions)
    columns["private"] = _as_struct(counts, fit=fit, actions=treatment.actions)
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


def candidates(values: Any, *, wanted: np.ndarray, detectors: tuple[Detector, ...]) -> dict[int, list[Detector]]:
    """Place of a value -> the detectors that may find something in it, of the values that are wanted.

    A long text gets all of them: `detect.find` asks for its stretches itself.

    Args:
        values: a binary Arrow array.
        wanted: a boolean for each value.
    """
    sizes = pc.fill_null(pc.binary_length(values), 0).to_numpy(zero_copy_only=False)
    hopeful = {place: list(detectors) for place in np.flatnonzero(wanted & (sizes > detect.LONG_BYTES)).tolist()}
    short = np.flatnonzero(wanted & (sizes <= detect.LONG_BYTES))
    some = values if len(short) == len(values) else values.take(pa.array(short))
    for detector, passed in prefilter.passing(some, by=detectors):
        for place in short[passed].tolist():
            hopeful.setdefault(place, []).append(detector)
    return hopeful


def _treat(
    array: Any, *, wanted: np.ndarray, treatment: Treatment, detectors: tuple[Detector, ...]
) -> tuple[Any, dict[int, Mapping[str, int]]]:
    """The array of strings with its private data replaced, and what was found by place."""
    if array.null_count == len(array):
        return array, {}
    values = array.cast(pa.large_binary() if pa.types.is_large_string(array.type) else pa.binary())
    changed: dict[int, bytes] = {}
    counts: dict[int, Mapping[str, int]] = {}
    for place, by in candidates(values, wanted=wanted, detectors=detectors).items():
        treated = treatment.apply(memoryview(values[place].as_buffer()), by=by)
        if treated.counts:
            counts[place] = treated.counts
        if treated.data is not None:
            changed[place] = treated.data
    if not changed:
        return array, counts
    places = sorted(changed)
    mask = np.zeros(len(array), dtype=bool)
    mask[places] = True
    replacements = pa.array([changed[place] for place in places], type=values.type)
    return pc.replace_with_mask(values, pa.array(mask), replacements).view(array.type), counts


def _treat_messages(
    array: Any, *, fit: np.ndarray, counts: np.ndarray, treatment: Treatment, detectors: tuple[Detector, ...]
) -> Any:
    """Conversations with the private data in their contents replaced; adds to `counts` what was found."""
    messages = array.flatten()
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
    owners = np.repeat(np.arange(len(array)), lengths)
    fields = {field.name: pc.struct_field(messages, field.name) for field in messages.type}
    content, found = _treat(fields["content"], wanted=fit[owners], treatment=treatment, detectors=detectors)
    for place, by_type in found.items():
        _add(counts, row=int(owners[place]), by_type=by_type)
    if content is fields["content"]:
        return array
    structs = pa.StructArray.from_arrays(
        list({**fields, "content": content}.values()), fields=list(messages.type), mask=messages.is_null()
    )
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), type=pa.int32())
    return pa.ListArray.from_arrays(offsets, structs, type=array.type, mask=array.is_null())


def _add(counts: np.ndarray, *, row: int, by_type: Mapping[str, int]) -> None:
    for place, name in enumerate(TYPES):
        counts[row, place] += by_type.get(name, 0)


def _dropped(unfit: Any, *, counts: np.ndarray, actions: Mapping[str, str]) -> Any:
    """`unfit` with `private:TYPE` of the first type that drops a row; unfit rows have no counts."""
    for place, name in enumerate(TYPES):
        if actions.get(name) == "drop":
            hit = pa.array(counts[:, place] > 0)
            unfit = pc.if_else(pc.and_(hit, unfit.is_null()), f"private:{name}", unfit)
    return unfit


def _as_struct(counts: np.ndarray, *, fit: np.ndarray, actions: Mapping[str, str]) -> Any:
    columns = [
        pa.array(counts[:, place], mask=np.full(len(fit), name not in actions)) for place, name in enumerate(TYPES)
    ]
    return pa.StructArray.from_arrays(columns, fields=list(COUNTS), mask=pa.array(~fit))
