"""The exact Jaccard similarity of texts: members streamed past their centre, whose shingles alone stay in memory.

Costs the shingles of every text that comes, and sorting them: about 30 MB of text a second on one core. While the set
of a document is made it takes 3.5 times the document's bytes, 700 MB for one of 200 MB; no other set but the centre's
is held.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa

from tessera.prepare.duplicates.shingles import Uint64s, distinct, shingles


def alike(batches: Iterable[pa.RecordBatch], *, threshold: float, words: int) -> Iterator[pa.RecordBatch]:
    """Streams centres and their members past each other.

    Args:
        batches: centre, part, role, sha256, text; behind each centre (role 0) its members (role 1) of the same part.
        threshold: of the Jaccard similarity of member and centre, from which they are alike.
        words: of a shingle.

    Yields:
        sha256, centre: the pairs that are alike. A member that no centre came before is alike to none.
    """
    held, centre_set = None, np.empty(0, np.uint64)
    for batch in batches:
        pairs: list[tuple[str, str]] = []
        columns = [batch.column(name).to_pylist() for name in ("centre", "part", "role", "sha256")]
        sets = shingle_sets(batch.column("text"), words=words)
        for centre, part, role, sha256, own_set in zip(*columns, sets, strict=True):
            if role == 0:
                held, centre_set = (centre, part), own_set
            elif held == (centre, part) and jaccard(own_set, centre_set) >= threshold:
                pairs.append((sha256, centre))
        members, centres = zip(*pairs, strict=True) if pairs else ((), ())
        yield pa.RecordBatch.from_arrays(
            [pa.array(members, pa.string()), pa.array(centres, pa.string())], names=["sha256", "centre"]
        )


def jaccard(one: Uint64s, other: Uint64s) -> float:
    """Common members over all members of two sets, given sorted; 0 where both are empty."""
    both = np.concatenate([one, other])
    both.sort(kind="stable")  # merges two sorted runs
    common = int(np.count_nonzero(both[1:] == both[:-1]))
    return common / max(len(both) - common, 1)


def shingle_sets(texts: pa.Array, *, words: int) -> Iterator[Uint64s]:
    """The set of shingles of each text in turn, sorted."""
    row, parts = 0, [np.empty(0, np.uint64)]
    for found in shingles(texts, words=words):
        for place in range(len(found.offsets) - 1):
            hashes = distinct(found.hashes[found.offsets[place] : found.offsets[place + 1]])
            if found.first + place != row:
                yield parts[0] if len(parts) == 1 else distinct(np.concatenate(parts))
                row, parts = found.first + place, []
            parts.append(hashes)
    if len(texts):
        yield parts[0] if len(parts) == 1 else distinct(np.concatenate(parts))
