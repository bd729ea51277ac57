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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BEAT_SECONDS = 0.5
SILENT_SECONDS = 4.0
"""A process that has written nothing for so long stands still itself."""
PACE_SECONDS = 30.0
"""How long ranks are compared before one is called slow."""
SLOW_SHARE = 0.25
"""A slow rank makes each of the others wait so much more of its time than it waits itself."""


@dataclass
class Pulse:
    """How far a rank is."""

    step: int = 0
    """From 1; 0 while it starts."""
    changes: int = 0
    """Counts all that the rank does."""
    waits: bool = False
    """For other ranks."""
    waited_seconds: float = 0.0
    """In all."""

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """While the block runs, the rank depends on others."""
        began = time.perf_counter()
        self.waits, self.changes = True, self.changes + 1
        try:
            yield
        finally:
            self.waits, self.changes = False, self.changes + 1
            self.waited_seconds += time.perf_counter() - began

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
            said = {**vars(self), **known, **use(), "time": time.monotonic(), "beat": beat}
            partial.write_text(json.dumps(said), encoding="utf-8")
            partial.replace(path)

        def beat() -> None:
            count = 0
            while True:
                count += 1
                with contextlib.suppress(OSError):  # a full or slow disk: the launcher may take the rank for dead
                    write(count)
                time.sleep(BEAT_SECONDS)

        threading.Thread(target=beat, name="pulse", daemon=True).start()


def use() -> dict[str, float]:
    """What this process takes of its machine."""
    resident = int(Path("/proc/self/statm").read_text().split()[1]) if Path("/proc/self/statm").exists() else 0
    return {"memory_bytes": resident * os.sysconf("SC_PAGE_SIZE"), "cpu_seconds": round(time.process_time(), 2)}


def read(folder: Path) -> dict[int, dict[str, Any]]:
    """What each rank wrote last."""
    said = {}
    for path in sorted((folder / "pulse").glob("rank-*[0-9]")):
        with contextlib.suppress(OSError, ValueError):
            said[int(path.name.removeprefix("rank-"))] = json.loads(path.read_text(encoding="utf-8"))
    return said


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
        self._folder = folder
        self._seconds = seconds
        self._seen: dict[int, _Seen] = {}
        self._paced: dict[int, dict[str, Any]] = {}
        self._slow: set[int] = set()

    def clear(self) -> None:
        """Forgets ranks of earlier starts."""
        self._seen.clear()
        self._paced.clear()
        for path in (self._folder / "pulse").glob("rank-*"):
            path.unlink(missing_ok=True)

    def look(self, now: float) -> Stalled | None:
        """The rank that has held the others up for too long; `now` in seconds of any steady clock.

        One whose process is silent comes first, then one that computes; where all wait for each other, the last to
        have moved.
        """
        for rank, said in read(self._folder).items():
            self._hear(rank, said, now=now)
        late = {rank: one for rank, one in self._seen.items() if now - one.changes_at > self._seconds}
        if not late or len(late) < len(self._seen):
            return None
        silent = {rank for rank, one in late.items() if now - one.beat_at > min(self._seconds, SILENT_SECONDS)}
        worst = min(late, key=lambda rank: (rank not in silent, late[rank].said["waits"], -late[rank].changes_at, rank))
        said = late[worst].said
        return Stalled(worst, step=said["step"], host=said["host"], pid=said["pid"], silent=worst in silent)

    def straggler(self) -> tuple[int, float] | None:
        """A rank that the others spend much of their time waiting for, once, and which part of it they wait.

        Over PACE_SECONDS each; the slowest waits least.
        """
        said, before = {rank: one.said for rank, one in self._seen.items()}, self._paced
        if _processes(before) != _processes(said):
            self._paced = said
            return None
        spans = {rank: said[rank]["time"] - before[rank]["time"] for rank in said}
        if len(said) < 2 or min(spans.values()) < PACE_SECONDS:
            return None
        self._paced = said
        shares = {r: (said[r]["waited_seconds"] - before[r]["waited_seconds"]) / spans[r] for r in said}
        slowest = min(shares, key=lambda rank: shares[rank])
        others = min(share for rank, share in shares.items() if rank != slowest)
        if others - shares[slowest] < SLOW_SHARE or slowest in self._slow:
            return None
        self._slow.add(slowest)
        return slowest, others

    def _hear(self, rank: int, said: dict[str, Any], *, now: float) -> None:
        one = self._seen.setdefault(rank, _Seen())
        if one.beat != (said["pid"], said["beat"]):
            one.beat, one.beat_at = (said["pid"], said["beat"]), now
        if one.changes != said["changes"] or one.said.get("pid") != said["pid"]:
            one.changes, one.changes_at = said["changes"], now
        one.said = said


def _processes(said: Mapping[int, Mapping[str, Any]]) -> dict[int, int]:
    return {rank: one["pid"] for rank, one in said.items()}
