"""Runs a command and measures its tree of processes: CPU seconds, wall seconds, peak memory, and what else ran.

CPU seconds are the system's own sum over all descendants that were waited for (getrusage); memory is sampled, the sum
of the resident sizes of the tree, so that pages which processes share count in each. "Others" is the mean number of
cores that the rest of the machine, stolen time included, took meanwhile: near 0 means that wall time can be believed.
"""

import contextlib
import importlib.metadata
import json
import os
import platform
import resource
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

SAMPLE_SECONDS = 0.25
GRACE_SECONDS = 60.0
"""How long a command that was told to end may take to write its checkpoint."""


@dataclass
class Usage:
    """What a command took."""

    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0
    peak_bytes: int = 0
    others: float = 0.0
    """Cores that others used, on average."""
    status: int = 0
    told_to_end: bool = False
    interrupted: bool = False
    """This process was told to end meanwhile."""


def add(before: Mapping[str, float], usage: Usage) -> dict[str, float]:
    """The sum over slices of a cell; `before` may be empty."""
    wall = before.get("wall_seconds", 0.0) + usage.wall_seconds
    others = before.get("others", 0.0) * before.get("wall_seconds", 0.0) + usage.others * usage.wall_seconds
    return {
        "slices": before.get("slices", 0) + 1,
        "cpu_seconds": before.get("cpu_seconds", 0.0) + usage.cpu_seconds,
        "wall_seconds": wall,
        "peak_bytes": max(before.get("peak_bytes", 0), usage.peak_bytes),
        "others": others / wall,
    }


def run(
    command: Sequence[str],
    *,
    log: Path,
    limit_seconds: float,
    note: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Usage:
    """Runs a command to its end; SIGTERM after `limit_seconds`, SIGKILL to its whole group GRACE_SECONDS later.

    A KeyboardInterrupt meanwhile is not raised but passed on to the command as SIGTERM, and noted. The file `note` says
    which process it is while it runs, for `end_left_over` after this process was killed.
    """
    usage = Usage()
    cpu, busy, began = _children_seconds(), _machine_seconds(), time.monotonic()
    deadline = began + limit_seconds
    with log.open("a", encoding="utf-8") as file:
        child = subprocess.Popen(
            command, stdout=file, stderr=file, env={**os.environ, **(environment or {})}, start_new_session=True
        )
        if note:
            note.write_text(json.dumps([child.pid, psutil.Process(child.pid).create_time()]), encoding="utf-8")
        try:
            while child.poll() is None:
                try:
                    usage.peak_bytes = max(usage.peak_bytes, tree_bytes(child.pid))
                    time.sleep(SAMPLE_SECONDS)
                except KeyboardInterrupt:
                    usage.interrupted = True
                late = time.monotonic() > deadline
                if usage.told_to_end and late:
                    os.killpg(child.pid, signal.SIGKILL)
                elif not usage.told_to_end and (late or usage.interrupted):
                    child.send_signal(signal.SIGTERM)
                    usage.told_to_end, deadline = True, time.monotonic() + GRACE_SECONDS
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)  # the group is this command's own; usually nobody is left in it
            child.wait()
            if note:
                note.unlink()
    usage.wall_seconds = time.monotonic() - began
    usage.cpu_seconds = _children_seconds() - cpu
    usage.others = max(0.0, (_machine_seconds() - busy - usage.cpu_seconds) / usage.wall_seconds)
    usage.status = child.returncode
    return usage


def end_left_over(note: Path) -> bool:
    """Whether a command was running when its `run` was killed; ends it and its group, should it still be there."""
    if not note.exists():
        return False
    pid, created = json.loads(note.read_text(encoding="utf-8") or "[0, 0]")
    with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
        if pid and psutil.Process(pid).create_time() == created:
            os.killpg(pid, signal.SIGKILL)
    note.unlink()
    return True


def tree_bytes(pid: int) -> int:
    """Resident bytes of a process and all below it, now."""
    total = 0
    with contextlib.suppress(psutil.Error):
        for process in (root := psutil.Process(pid), *root.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
    return total


def others_now(seconds: float = 3.0) -> float:
    """Cores in use, while nothing of ours runs."""
    busy = _machine_seconds()
    time.sleep(seconds)
    return (_machine_seconds() - busy) / seconds


def wait_until_quiet(*, max_others: float, limit_seconds: float) -> float:
    """Waits until others use at most so many cores, and not for ever; the last measurement."""
    deadline = time.monotonic() + limit_seconds
    while (found := others_now()) > max_others and time.monotonic() < deadline:
        time.sleep(10)
    return found


def machine() -> dict[str, object]:
    """The hardware, for a results file."""
    name = next(
        (line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.machine()
    )
    cores = len(os.sched_getaffinity(0))
    return {"processor": name, "cores": cores, "memory_gib": round(psutil.virtual_memory().total / 2**30, 1)}


def versions(*packages: str) -> dict[str, str]:
    """Of this environment; what is not installed is left out."""
    found = {"python": platform.python_version()}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _machine_seconds() -> float:
    """CPU seconds that the whole machine has spent on anything but idling."""
    times = psutil.cpu_times()
    return sum(times) - times.idle - getattr(times, "iowait", 0.0) - times.guest - times.guest_nice
