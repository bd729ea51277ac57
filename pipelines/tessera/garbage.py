"""What lies in a home and is needed by nothing: found by the rooms, listed with its size, and removed when asked for.

Finding costs a walk over the folders and a read of the manifests; nothing else is opened. What is young is left alone,
by default for a day, since a writer may still be about to name it; and what was changed after it was found stays too: a
writer then took a file that lay there for its own.
"""

import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tessera import delta_log, publish
from tessera.home import Home
from tessera.locks import is_shared_or_held

SPARK_SCRATCH = ("spark-*", "blockmgr-*", "artifacts*", "jvm.log")
"""What a session leaves in the spill folder when it is killed."""

OURS = "prepare-*"
"""What a prepare that was killed leaves in the cache: frames of hashes and of text, see `prepare.scratch`."""

TICK_SECONDS = 0.01
"""By so much the kernel's clock, which dates changes of files, may lag behind ours."""

OWN_TABLES = (
    "python_docs",
    "documents",
    "decisions",
    "prepare_counts",
    "audit",
    "erasures",
    "evaluations",
    "rows_seen",
    "answers",
    "ledger",
)
"""Other tables that lie in `tables/` are their owners'."""


@dataclass(frozen=True)
class Garbage:
    """One file or folder that nothing needs."""

    kind: str
    path: Path
    why: str
    num_bytes: int
    found_at: float = field(default_factory=time.time, compare=False)
    """Unix seconds."""


def spill(home: Home, *, before: float) -> Iterator[Garbage]:
    """Scratch of Spark sessions that ended without cleaning up; `before` is in Unix seconds.

    Nothing while a session of this home runs: its block manager may rest for days.
    """
    if is_shared_or_held(home.spill_lock):
        return
    places = [(home.spill, pattern) for pattern in SPARK_SCRATCH] + [(home.cache, OURS)]
    for folder, pattern in places:
        for path in folder.glob(pattern):
            if newest_change(path) < before:
                yield Garbage("spill", path, "of a Spark session that is gone", size_of(path))


def of_tables(home: Home, *, before: float) -> Iterator[Garbage]:
    """Data files of our own tables that no version names: of Spark jobs that were killed. They may hold text."""
    for name in OWN_TABLES:
        path = home.tables / name
        for file in publish.orphans(path, versions=delta_log.versions(path), before=before):
            yield Garbage("tables", file, "no version of its table names it", file.stat().st_size)


def fetched_models(home: Home, *, before: float) -> Iterator[Garbage]:
    """Copies of models that lie on an MLflow server; they are fetched again when they are wanted."""
    for path in sorted(home.models.glob("*")):
        if newest_change(path) < before:
            yield Garbage("cache", path, "a copy of a model on the MLflow server", size_of(path))


def remove(found: Iterable[Garbage]) -> int:
    """Removes what was found and has not changed since; bytes freed: of what is gone afterwards, since some of it may
    not be ours to remove."""
    freed = 0
    for one in found:
        if newest_change(one.path) >= one.found_at - TICK_SECONDS:
            continue
        if one.path.is_dir():
            with suppress(OSError):
                (one.path / "record.json").unlink(missing_ok=True)  # a folder without its record does not exist
            shutil.rmtree(one.path, ignore_errors=True)
        else:
            with suppress(OSError):
                one.path.unlink(missing_ok=True)
        freed += 0 if one.path.exists() else one.num_bytes
    return freed


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; links are not followed."""
    return sum(file.lstat().st_size for file in _files(path))


def newest_change(path: Path) -> float:
    """When the path, or anything below it, was last changed, in Unix seconds."""
    return max((entry.lstat().st_mtime for entry in (path, *_files(path))), default=0.0)


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from (file for file in path.rglob("*") if not file.is_dir())
    elif path.exists():
        yield path
