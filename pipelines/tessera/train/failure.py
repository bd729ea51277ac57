"""Why ranks ended without finishing: from the words they left, and from what torchrun saw of those that left none.

The first cause counts, not the ranks that merely lost a peer to it. An error of our own is a verdict: the same start
would end the same, so it is not tried again. Everything else (a killed rank, a lost connection, no memory) is.
"""

import contextlib
import json
import re
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tessera.errors import TesseraError, TrainingFailed, UserError
from tessera.train.pulse import Stalled
from tessera.train.run import RunFolder, to_json, write_durable

SECONDARY = ("connection", "gloo", "nccl", "peer", "timed out", "sockets", "store")
"""Words in the error of a rank that only lost another."""
SUMMARY = re.compile(r"rank\s*: (\d+) \(local_rank: \d+\)\s*exitcode\s*: (-?\d+)")
"""Torchrun's last words, of each machine: the last entry is the failure it saw first."""
SEEN = re.compile(r"failed \(exitcode: (-?\d+)\) local_rank: \d+")
"""What torchrun says at once when a rank ends, before it starts the ranks again."""
FAULTS = (
    (r"No module named '?tessera", "the workers have no Tessera: install it there, with the extra `train`"),
    (r"No such file or directory: '\S*run\.json'", "the workers do not see the home: mount it there at the same path"),
    (r"TLS encryption enabled", "spark.ssl.enabled is true, and torch would speak between ranks without encryption; "
     "accept it with pytorch.spark.distributor.ignoreSsl=true in spark.conf"),
)  # fmt: skip
"""What ranks that never began leave in the log, and what the user can mend."""
FRAMES = 5
"""Of a rank's traceback, the innermost."""
OWN_WORD = ("1", "-15")
"""Exit statuses that explain nothing: a rank that left an error of its own, or that torchrun ended."""


@dataclass(frozen=True)
class Failure:
    """Why the ranks ended."""

    said: str
    verdict: bool = False
    """One of our own errors: starting again would end the same."""
    exit_status: int = TrainingFailed.exit_status

    def error(self, folder: RunFolder) -> TesseraError:
        """The exception that tells the user, with what to do next."""
        if self.exit_status == UserError.exit_status:
            return UserError(self.said)
        again = f"run the command again to go on from the last checkpoint; {folder.log.name} in the run folder has more"
        return TrainingFailed(f"run {folder.root.name}: {self.said}; {again}")


def find(folder: RunFolder, *, start: tuple[int, int] | None = None) -> Failure:
    """Why a start of the ranks failed.

    Args:
        start: (attempt, restart); None takes the newest.
    """
    starts = folder.read_starts()
    start = start or (starts[-1] if starts else None)
    said = _said(folder, start=start)
    causes = [entry for entry in said if not _is_secondary(entry)]
    if causes:
        return _of_rank(causes[0])
    log = _read(folder.log)
    for pattern, advice in FAULTS:
        if re.search(pattern, log):
            return Failure(advice, verdict=True, exit_status=UserError.exit_status)
    if dead := _first_dead(log):
        return Failure(f"{dead}, perhaps for want of memory, and left no word")
    if said:
        lost = f"rank {said[0]['rank']}: {said[0]['message']}"
        silent = sorted(set(range(_num_ranks(folder))) - {entry["rank"] for entry in said})
        who = f"rank {silent[0]} ended and left no word, perhaps killed for want of memory" if silent else ""
        return Failure(f"{who or 'the ranks lost each other'}; {lost}")
    return Failure("no rank left a record or an error, they never started or all were killed")


def end_stalled(folder: RunFolder, stalled: Stalled, *, seconds: float) -> None:
    """Ends the rank that holds the others up, and leaves word of it; torchrun or a new attempt then starts all again.

    Where it runs on another machine, all ranks are ended by a new attempt's number.
    """
    attempt, restart = (folder.read_starts() or [(folder.read_attempt(), 0)])[-1]
    entry = {
        "rank": stalled.rank, "attempt": attempt, "restart": restart, "time": time.time(), "type": "Stalled",
        "message": f"{stalled} for {seconds:g} s", "exit_status": TrainingFailed.exit_status, "verdict": False,
        "trace": [],
    }  # fmt: skip
    folder.errors.mkdir(exist_ok=True)
    write_durable(folder.errors / f"rank-{stalled.rank}.json", to_json(entry))
    if stalled.host != socket.gethostname():
        write_durable(folder.attempt, f"{attempt + 1}\n")
        return
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(stalled.pid)
        if str(folder.root) in process.cmdline():
            process.kill()


def _of_rank(entry: Mapping[str, Any]) -> Failure:
    if entry["exit_status"] == UserError.exit_status:
        return Failure(entry["message"], verdict=True, exit_status=UserError.exit_status)
    said = f"rank {entry['rank']} failed: {entry['type']}" + (f": {entry['message']}" if entry["message"] else "")
    if entry["trace"] and not entry["verdict"]:
        said += f", in {' > '.join(entry['trace'][-FRAMES:])}"
    return Failure(said, verdict=entry["verdict"])


def _num_ranks(folder: RunFolder) -> int:
    try:
        return folder.read_spec().settings.ranks
    except TrainingFailed:
        return 0


def _said(folder: RunFolder, *, start: tuple[int, int] | None) -> Sequence[Mapping[str, Any]]:
    """What ranks left in errors/ in that start, oldest first."""
    said = []
    for path in folder.errors.glob("rank-*.json"):
        with contextlib.suppress(ValueError, OSError):
            entry = json.loads(path.read_text(encoding="utf-8"))
            if start is None or (entry["attempt"], entry.get("restart", 0)) == start:
                said.append(entry)
    return sorted(said, key=lambda entry: entry["time"])


def _read(log: Path) -> str:
    try:
        return log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _first_dead(log: str) -> str | None:
    """Which rank ended without a word of its own, as torchrun reports it last."""
    reported = [found for found in SUMMARY.findall(log) if found[1] not in OWN_WORD]
    if reported:
        return f"rank {reported[-1][0]} was {_ended(int(reported[-1][1]))}"
    seen = [status for status in SEEN.findall(log) if status not in OWN_WORD]
    return f"a rank was {_ended(int(seen[-1]))}" if seen else None


def _ended(status: int) -> str:
    return f"killed by signal {-status}" if status < 0 else f"ended with status {status}"


def _is_secondary(entry: Mapping[str, Any]) -> bool:
    """Whether this rank failed because another did."""
    own = entry["type"] in ("RuntimeError", "DistBackendError", "DistNetworkError", "DistStoreError")
    return own and any(word in entry["message"].lower() for word in SECONDARY)
