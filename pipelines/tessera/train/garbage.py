"""Checkpoints that no record names, and runs that nobody went on with."""

import json
import time
from collections.abc import Iterator
from contextlib import suppress

from tessera import locks
from tessera.errors import FormatError, TrainingFailed
from tessera.garbage import Garbage, newest_change, size_of
from tessera.home import Home
from tessera.tables import Ledger
from tessera.train.run import Origin, RunFolder

BEAT_SECONDS = 30.0
"""A heartbeat this young is of a launcher that lives; clocks of machines may differ by seconds."""
ABANDONED_SECONDS = 30 * 86_400
"""An unfinished run that was left alone for so long is not expected to be resumed."""


def garbage(home: Home, *, before: float) -> Iterator[Garbage]:
    """What `tessera gc` may take from the run folders; `before` is in Unix seconds. Runs in progress are left alone."""
    origins = list(_origins(home))
    recorded = _recorded(home) | {origin.folder for origin in origins}
    branched = {point.run for origin in origins for point in (origin.point, origin.before) if point}
    for root in sorted(home.runs.glob("*")):
        folder = RunFolder(root)
        if is_running(folder):
            continue
        result = folder.read_result()
        if result is None:
            if root.name not in branched and newest_change(root) < before - ABANDONED_SECONDS:
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


def _origins(home: Home) -> Iterator[Origin]:
    """What the runs of the home started from: checkpoints and orders that are needed to start and to tell of them."""
    for root in home.runs.glob("*"):
        with suppress(TrainingFailed, FormatError):
            if (origin := RunFolder(root).read_spec().origin) is not None:
                yield origin


def _recorded(home: Home) -> set[str]:
    """Checkpoints that the ledger names as a stage's result, relative to the home."""
    rows = [row for row in Ledger(home.ledger).rows() if row["stage"] == "train"]
    return {str(json.loads(row["record"]).get("checkpoint", "")) for row in rows}
