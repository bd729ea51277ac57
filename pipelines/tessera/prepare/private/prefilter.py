"""Which texts, and which stretches of a long one, may hold private data: asked of Arrow's RE2, at 500 MB/s a pattern.

Detectors of a family are asked for together first, and one by one only on what is left. A long text is cut into blocks
twice, the second time half a block further on: whatever is shorter than a quarter of a block lies in one of them whole
and 512 bytes from its ends.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tessera.prepare.private.spans import Detector, Text

BLOCK_BYTES = 2**12
"""Four times what any `Detector.may` needs to match."""


def passing(values: Any, *, by: Collection[Detector]) -> Iterator[tuple[Detector, np.ndarray]]:
    """Each detector with the places of the values that it may find something in, in order.

    Args:
        values: a binary Arrow array; null passes nothing.
    """
    for family in dict.fromkeys(detector.family for detector in by):
        members = [detector for detector in by if detector.family == family]
        passed = _matching(values, "|".join(detector.may for detector in members))
        some = values.take(pa.array(passed)) if len(members) > 1 else values
        for detector in members:
            yield detector, passed[_matching(some, detector.may)] if len(members) > 1 else passed


def regions(data: Text, *, by: Collection[Detector]) -> Iterator[tuple[Detector, int, int]]:
    """Each detector with the stretches, (start, end), of a text in which its spans may begin: apart, and in order."""
    buffer, num_bytes = pa.py_buffer(data), len(data)
    edges = [np.append(np.arange(0, num_bytes, BLOCK_BYTES), num_bytes)]
    edges.append(np.append(np.append(0, np.arange(BLOCK_BYTES // 2, num_bytes, BLOCK_BYTES)), num_bytes))
    hit: dict[Detector, list[np.ndarray]] = {}
    for cut in edges:
        offsets = pa.py_buffer(cut.astype(np.int64))
        blocks = pa.Array.from_buffers(pa.large_binary(), len(cut) - 1, [None, offsets, buffer])
        for detector, places in passing(blocks, by=by):
            hit.setdefault(detector, []).append(np.stack([cut[places], cut[places + 1]], axis=1))
    for detector, stretches in hit.items():
        for start, end in merged(np.concatenate(stretches).tolist()):
            yield detector, start, end


def _matching(values: Any, pattern: str) -> np.ndarray:
    """Places of the values in which RE2 finds the pattern."""
    matched = pc.fill_null(pc.match_substring_regex(values, pattern), False)
    return np.flatnonzero(matched.to_numpy(zero_copy_only=False))


def merged(stretches: Iterable[Sequence[int]]) -> Iterator[tuple[int, int]]:
    """Stretches, (start, end), in order, those that touch as one."""
    start = end = -1
    for first, last in sorted(map(tuple, stretches)):
        if start >= 0 and first <= end:
            end = max(end, last)
            continue
        if start >= 0:
            yield start, end
        start, end = first, last
    if start >= 0:
        yield start, end
