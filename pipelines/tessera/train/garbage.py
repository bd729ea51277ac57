"""Checkpoints that no record names, and runs that nobody went on with."""

import json
import time
from collections.abc import Iterator

from tessera import locks
from tessera.garbage import Garbage, newest_change, size_of
from tessera.home import Home
from tessera.tables import Ledger
from tessera.train.run import RunFolder

BEAT_SECONDS = 30.0
"""A heartbeat this young is of a launcher that lives; clocks of machines may differ by seconds."""
ABANDONED_SECONDS = 30 * 86_400
"""An unfinished run that was left alone for so long is not expected to be resumed."""


def garbage(home: Home, *, before: float) -> Iterator[Garbage]:
    """What `tessera gc` may take from the run folders; `before` is in Unix seconds. Runs in progress are left alone."""
    recorded = _recorded(home) | _started_from(home)
    for root in sorted(home.runs.glob("*")):
        folder = RunFolder(root)
        if is_running(folder):
            continue
        result = folder.read_result()
        if result is None:
            if newest_change(root) < before - ABANDONED_SECONDS:
                yield Garbage("runs", root, "unfinished, and left alone for a month", size_of(root))
            continue
        needed = recorded | {home.relative(root / result.checkpoint)}
        for checkpoint in sorted(folder.checkpoints.glob("step-*")):
            if home.relative(checkpoint) not in needed and newest_change(checkpoint) < before:
                yield Garbage("checkpoints", checkpoint, "its run is finished and has a later one", size_of(checkpoint))


def is_running(folder: RunFolder) -> bool:
    """Whether a launcher on this machine holds the run, or one elsewhere has just shown a sign of life."""
    beats = folder.beat.exists() and folder.beat.stat().st_mtime > time.time() - BEAT_SECONDS
    return beats or locks.is_held(folder.lock)


def _started_from(home: Home) -> set[str]:
    """Checkpoints that runs which are not finished go on from: until one of their own is there, they need them."""
    folders = [RunFolder(root) for root in home.runs.glob("*")]
    specs = [one.read_spec() for one in folders if one.spec.is_file() and one.read_result() is None]
    return {spec.origin.folder for spec in specs if spec.origin is not None}


def _recorded(home: Home) -> set[str]:
    """Checkpoints that the ledger names as a stage's result, relative to the home."""
    rows = [row for row in Ledger(home.ledger).rows() if row["stage"] == "train"]
    return {str(json.loads(row["record"]).get("checkpoint", "")) for row in rows}
