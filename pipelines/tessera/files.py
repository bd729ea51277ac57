"""Files that appear whole or not at all, also after a power cut; and files whose names say what they hold.

Costs two calls of fsync a file: some milliseconds on a disk, nothing in memory.
"""

import errno
import os
import time
import uuid
from pathlib import Path

from tessera import failpoints
from tessera.errors import StorageFull

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_whole(path: Path, data: bytes | memoryview) -> None:
    """Writes a file so that its name never holds anything but all of `data`: other name, fsync, rename, fsync.

    Raises:
        StorageFull: there is no room for it; the name is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        failpoints.hit("files.before_rename")
        partial.replace(path)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise StorageFull(
            f"{path.parent} has no room for {path.name} ({len(data)} bytes: {error.strerror}); free some space, see "
            "tessera gc, and run the command again"
        ) from None
    finally:
        partial.unlink(missing_ok=True)
    sync(path.parent)


def write_once(path: Path, data: bytes) -> bool:
    """Writes a file that is named by its content, unless it lies there with these very bytes; says whether it wrote.

    So retries and twins leave one file, and one that was damaged is mended. A file that is kept becomes young: it may
    be an orphan of a writer that was killed, which a sweep is about to take.
    """
    try:
        if path.stat().st_size == len(data) and path.read_bytes() == data:
            os.utime(path, ns=(time.time_ns(),) * 2)  # the kernel's own clock is some milliseconds late
            sync(path.parent)  # a twin may have renamed it, and not yet made its name durable
            return False
    except FileNotFoundError:
        pass
    write_whole(path, data)
    return True


def sync(path: Path) -> None:
    """Makes a file's contents or a folder's entries durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
