"""Named points at which a fault test may stop or fail the program; nothing unless `TESSERA_FAIL` is set.

`TESSERA_FAIL=point:action`, with action `kill` (SIGKILL to this process) or `raise`, and `point:action:N` for the
N-th time the point is passed in a process, and `point:action:N:FILE` for once in all processes: FILE is made then, and
while it is there the point does nothing. Every point is listed in POINTS, and a test asks that each is used.
"""

import os
import signal
from collections import Counter
from pathlib import Path

POINTS = {
    "prepare.before_commit": "documents are judged, nothing is written",
    "audit.after_append": "a stage's entry is in the audit table, its publishing commit is not made",
    "files.before_rename": "a file is written and durable under a passing name, and has not its own",
    "forget.after_erasures": "erasures are recorded, nothing is taken out yet",
    "forget.before_remove": "all rooms have new versions, the files of the old ones are still there",
    "shard.after_file": "a shard file has its final name, its task has not ended",
    "shard.before_manifest": "shard files and side table are written, the manifest is not",
    "publish.after_commit": "a publishing commit is made, its writer does not know yet",
    "ledger.before_append": "a stage is published, the ledger does not know yet",
    "train.after_step": "a step is done and its metrics are written",
    "checkpoint.before_record": "all files of a checkpoint are written, its record is not",
    "serve.before_alias": "a model version exists, no alias points to it",
    "score.after_row": "a worker has answered a row, its task has not ended",
    "score.before_commit": "a slice is answered, its commit is not made",
    "score.after_slice": "a slice is committed, the next is not begun",
}

_passed: Counter[str] = Counter()


class InjectedFault(Exception):
    """Raised at a failpoint by a fault test; never in production."""


def hit(point: str) -> None:
    """Passes `point`: does nothing unless `TESSERA_FAIL` names it.

    Raises:
        InjectedFault: when the action is `raise`.
    """
    assert point in POINTS, point
    wanted = os.environ.get("TESSERA_FAIL")
    if not wanted:
        return
    name, action, *rest = wanted.split(":", 3)
    if name != point:
        return
    _passed[point] += 1
    if _passed[point] != (int(rest[0]) if rest else 1):
        return
    if len(rest) == 2:
        try:
            Path(rest[1]).touch(exist_ok=False)
        except FileExistsError:
            return
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise InjectedFault(f"failpoint {point}")
