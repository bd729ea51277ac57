"""Signs of life of the ranks, and what stands still for too long.

Each rank has a thread that writes pulse/rank-N twice a second: that the process lives, and how far its training is. A
process that was stopped falls silent; one that hangs goes on writing the same. Ranks that wait for others stand still
too, and say that they wait, so that the one that holds all up can be named. Costs the training nothing: it sets two
numbers.
"""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BEAT_SECONDS = 0.5


@dataclass
class Pulse:
    """How far a rank is."""

    step: int = 0
    """From 1; 0 while it starts."""
    changes: int = 0
    """Counts all that the rank does."""
    waits: bool = False
    """For other ranks."""

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """While the block runs, the rank depends on others."""
        self.waits, self.changes = True, self.changes + 1
        try:
            yield
        finally:
            self.waits, self.changes = False, self.changes + 1

    def at(self, step: int) -> None:
        """The rank computes this step."""
        self.step, self.changes = step, self.changes + 1

    def start(self, folder: Path, *, rank: int) -> None:
        """Writes it down from now on, in a thread, for as long as the process lives."""
        path = folder / "pulse" / f"rank-{rank}"
        path.parent.mkdir(exist_ok=True)
        known = {"host": socket.gethostname(), "pid": os.getpid()}

        def write(beat: int) -> None:
            partial = path.with_suffix(".partial")
            partial.write_text(json.dumps({**vars(self), **known, "beat": beat}), encoding="utf-8")
            partial.replace(path)

        def beat() -> None:
            count = 0
            while True:
                count += 1
                with contextlib.suppress(OSError):  # a full or slow disk: the launcher may take the rank for dead
                    write(count)
                time.sleep(BEAT_SECONDS)

        threading.Thread(target=beat, name="pulse", daemon=True).start()


@dataclass(frozen=True)
class Stalled:
    """A rank that holds the others up."""

    rank: int
    step: int
    host: str
    pid: int
    silent: bool
    """Whether the whole process stands still, not only its training."""

    def __str__(self) -> str:
        return f"in step {self.step}, {'its process' if self.silent else 'its training'} stood still"


@dataclass
class _Seen:
    beat: tuple[int, int] = (0, 0)
    """Process and its count."""
    changes: int = -1
    beat_at: float = 0.0
    changes_at: float = 0.0
    said: dict[str, Any] = field(default_factory=dict)


class Ward:
    """Watches the pulses of a run by the launcher's own clock."""

    def __init__(self, folder: Path, *, seconds: float) -> None:
        self._folder = folder / "pulse"
        self._seconds = seconds
        self._seen: dict[int, _Seen] = {}

    def clear(self) -> None:
        """Forgets ranks of earlier starts."""
        self._seen.clear()
        for path in self._folder.glob("rank-*"):
            path.unlink(missing_ok=True)

    def look(self, now: float) -> Stalled | None:
        """The rank that has held the others up for too long; `now` in seconds of any steady clock.

        One whose process is silent comes first, then one that computes; where all wait for each other, the last to
        have moved.
        """
        for path in sorted(self._folder.glob("rank-*[0-9]")):
            with contextlib.suppress(OSError, ValueError):
                self._hear(int(path.name.removeprefix("rank-")), json.loads(path.read_text(encoding="utf-8")), now=now)
        late = {rank: one for rank, one in self._seen.items() if now - one.changes_at > self._seconds}
        if not late or len(late) < len(self._seen):
            return None
        silent = {rank for rank, one in late.items() if now - one.beat_at > min(self._seconds, 8 * BEAT_SECONDS)}
        worst = min(late, key=lambda rank: (rank not in silent, late[rank].said["waits"], -late[rank].changes_at, rank))
        said = late[worst].said
        return Stalled(worst, step=said["step"], host=said["host"], pid=said["pid"], silent=worst in silent)

    def _hear(self, rank: int, said: dict[str, Any], *, now: float) -> None:
        one = self._seen.setdefault(rank, _Seen())
        if one.beat != (said["pid"], said["beat"]):
            one.beat, one.beat_at = (said["pid"], said["beat"]), now
        if one.changes != said["changes"] or one.said.get("pid") != said["pid"]:
            one.changes, one.changes_at = said["changes"], now
        one.said = said
