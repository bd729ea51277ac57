"""Folders of the converter's cache: each is held by a lock beside it, and is garbage once nobody holds that.

The lock comes before the folder and its name is never used again, so a folder whose lock is absent or free is abandoned
for good, whoever looks and whenever. The system releases the lock however the process ends.
"""

import fcntl
import shutil
import uuid
from collections.abc import Iterator
from math import inf
from pathlib import Path
from typing import IO, Any

from tessera.garbage import Garbage, newest_change, remove, size_of
from tessera.home import Home
from tessera.locks import is_held


def cache_folder(home: Home) -> Path:
    return home.cache / "petastorm"


def claim_folder(home: Home) -> tuple[Path, IO[Any]]:
    """A new folder of the cache and its lock, to be given to `give_back` together."""
    cache_folder(home).mkdir(parents=True, exist_ok=True)
    while True:
        folder = cache_folder(home) / uuid.uuid4().hex
        lock = _lock_path(folder).open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # somebody looks whether it is held, at this very moment
            lock.close()
            _lock_path(folder).unlink()
            continue
        folder.mkdir()
        return folder, lock


def give_back(folder: Path, *, lock: IO[Any]) -> None:
    """Removes a claimed folder."""
    _lock_path(folder).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    lock.close()


def garbage(home: Home, *, before: float) -> Iterator[Garbage]:
    """Caches that no process on this machine holds, untouched since `before` (Unix seconds): what a kill left."""
    for folder in sorted(path for path in cache_folder(home).glob("*") if path.is_dir()):
        lock = _lock_path(folder)
        if not is_held(lock) and newest_change(folder) < before:
            why = "its process is gone"
            if lock.exists():
                yield Garbage("caches", lock, why, 0)
            yield Garbage("caches", folder, why, size_of(folder))


def sweep(home: Home) -> int:
    """Removes every abandoned cache, also one of a moment ago; bytes freed."""
    return remove(garbage(home, before=inf))


def _lock_path(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")
