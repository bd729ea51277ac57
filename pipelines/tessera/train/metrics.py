"""metrics.jsonl: one JSON line a step, written by rank 0, read by the launcher while it grows.

A line is complete when it ends in a newline; a torn last line is passed over. Needs nothing but Python.
"""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

Line = dict[str, float]


class Writer:
    """Appends lines, each flushed to the operating system at once: a killed rank loses no finished step."""

    def __init__(self, path: Path) -> None:
        self._file: TextIO = path.open("a", encoding="utf-8")

    def write(self, line: Line) -> None:
        """Adds one line; numbers that JSON does not know are left out."""
        finite = {key: value for key, value in line.items() if math.isfinite(value)}
        self._file.write(json.dumps(finite) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class Tail:
    """Gives lines as they come, also after the file was cut back and grew again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self._inode = -1

    def read(self) -> Iterator[dict[str, Any]]:
        """The complete lines that were not given yet."""
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return
        with file:
            status = os.fstat(file.fileno())
            if status.st_ino != self._inode or status.st_size < self._offset:
                self._inode, self._offset = status.st_ino, 0
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                yield json.loads(line)


def last_step(path: Path) -> int:
    """The newest step that was written down; 0 before the first."""
    return max((int(line["step"]) for line in Tail(path).read() if "step" in line), default=0)


def cut_back(path: Path, *, step: int) -> None:
    """Removes what was written after step `step`, so that training on from there writes every step once."""
    kept = [line for line in Tail(path).read() if line["step"] <= step]
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in kept)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
