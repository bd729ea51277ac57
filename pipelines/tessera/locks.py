"""Locks on files: held by a process, and released by the system however that process ends. On one machine only."""

import fcntl
from pathlib import Path


def is_held(path: Path) -> bool:
    """Whether some process on this machine holds the lock of `path` for itself; False where there is no such file."""
    return not _can(path, fcntl.LOCK_SH)


def is_shared_or_held(path: Path) -> bool:
    """Whether some process on this machine holds the lock of `path`, for itself or with others."""
    return not _can(path, fcntl.LOCK_EX)


def _can(path: Path, kind: int) -> bool:
    try:
        with path.open("rb") as file:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
    except FileNotFoundError:
        return True
    except BlockingIOError:
        return False
    return True
