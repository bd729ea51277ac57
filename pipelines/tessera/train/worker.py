"""What a rank runs: `python -m tessera.train.worker RUN_FOLDER [ATTEMPT]`, under torchrun.

It dies with its launcher. Beside the driver, the launcher holds an exclusive lock on `launcher.lock`, which the system
takes from it however it ends; a rank that gets a shared lock on that file has lost its launcher and ends at once. On a
cluster, where locks do not reach, the launcher writes `launcher.beat`; a rank that has not seen it change for
`train.beat_seconds` ends. In both, a newer attempt's number ends it too. Unlike parent ids and process ids this
survives torchrun's own sessions, zombies and reuse of ids. It is watched from the first line on, while torch is still
being imported, so nothing heavy is imported at the top.

Nothing is printed. What went wrong is left in errors/rank-N.json: type, message, file and line; never a value.
"""

import fcntl
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

POLL_SECONDS = 0.5
LOST = 3
"""Exit status of a rank whose launcher is gone."""
FAILED = 1
SAME_STEP = 3
"""Starts after which ranks that came no further are given up."""


def main() -> None:
    """Runs one rank; leaves with 0 when its part is done, with FAILED or LOST else."""
    folder = Path(sys.argv[1]).absolute()
    attempt = int(sys.argv[2] if len(sys.argv) > 2 else (folder / "attempt").read_text())
    watch_launcher(folder, attempt=attempt)
    if decided(folder, attempt=attempt):
        os._exit(FAILED)
    try:
        note_start(folder, attempt=attempt)
        run(folder, attempt=attempt)
    except BaseException as error:
        report(error, folder=folder, attempt=attempt)
        os._exit(FAILED)
    os._exit(0)  # at once: an interpreter that holds torch takes half a second to take itself apart


def run(folder: Path, *, attempt: int) -> None:
    """Trains this rank's part of the run."""
    from tessera.train.loop import train
    from tessera.train.opening import open_job
    from tessera.train.ranks import join, leave
    from tessera.train.run import RunFolder

    run_folder = RunFolder(folder)
    ranks = join(run_folder.read_spec().settings)
    ranks.pulse.start(folder, rank=ranks.rank)
    train(open_job(run_folder, attempt=attempt, ranks=ranks))
    leave(ranks)


def watch_launcher(folder: Path, *, attempt: int) -> None:
    """Ends this process within moments of its launcher's end; checks once before it returns."""
    alive = _launcher_sign(folder)

    def check() -> None:
        if not alive() or (folder / "attempt").read_text().strip() != str(attempt):
            os._exit(LOST)

    def watch() -> None:
        while True:
            time.sleep(POLL_SECONDS)
            try:
                check()
            except BaseException:
                os._exit(LOST)

    check()
    threading.Thread(target=watch, name="launcher-watch", daemon=True).start()


def _launcher_sign(folder: Path) -> Callable[[], bool]:
    """What tells whether the launcher lives: its lock, or on a cluster its heartbeat."""
    settings = json.loads((folder / "run.json").read_text(encoding="utf-8"))["settings"]
    if settings.get("placement") == "cluster":
        return _beats(folder / "launcher.beat", seconds=settings["beat_seconds"])
    return _is_locked(folder / "launcher.lock")


def _is_locked(path: Path) -> Callable[[], bool]:
    lock = path.open("rb")

    def locked() -> bool:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False

    return locked


def _beats(path: Path, *, seconds: float) -> Callable[[], bool]:
    """Whether the file has changed within `seconds` of this machine's own clock."""
    last, seen = path.read_bytes(), time.monotonic()

    def beating() -> bool:
        nonlocal last, seen
        now = path.read_bytes()
        if now != last:
            last, seen = now, time.monotonic()
        return time.monotonic() - seen < seconds

    return beating


def decided(folder: Path, *, attempt: int) -> bool:
    """Whether a rank of this attempt ended in an error of our own, which starting again would only repeat."""
    for path in (folder / "errors").glob("rank-*.json"):
        entry = json.loads(path.read_text(encoding="utf-8"))
        if entry["attempt"] == attempt and entry["verdict"]:
            return True
    return False


def note_start(folder: Path, *, attempt: int) -> None:
    """Rank 0 notes that the ranks were started, and how far they had come, for the launcher, who counts restarts.

    Raises:
        TrainingFailed: they were started SAME_STEP times by this command, and came no further.
    """
    if os.environ.get("RANK", "0") != "0":
        return
    from tessera.train.metrics import last_step

    path, step = folder / "starts.jsonl", last_step(folder / "metrics.jsonl")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    earlier = [json.loads(line).get("step") for line in lines]
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"attempt": attempt, "restart": _restart(), "step": step, "time": time.time()}) + "\n")
    if earlier[-SAME_STEP:] == [step] * SAME_STEP:
        from tessera.errors import TrainingFailed

        raise TrainingFailed(
            f"the ranks were started {SAME_STEP} times and came no further than step {step}{_last_words(folder)}; "
            "starting them again would end the same way"
        )


def _last_words(folder: Path) -> str:
    """What a rank said last, if any did."""
    said = [json.loads(path.read_text(encoding="utf-8")) for path in (folder / "errors").glob("rank-*.json")]
    if not said:
        return ""
    newest = max(said, key=lambda entry: float(entry["time"]))
    return f" (rank {newest['rank']}: {newest['type']} {newest['message']})".replace(" )", ")")


def report(error: BaseException, *, folder: Path, attempt: int) -> None:
    """Writes errors/rank-N.json: what the launcher tells the user."""
    from tessera.errors import TesseraError

    rank = int(os.environ.get("RANK", "0"))
    frames = traceback.extract_tb(error.__traceback__)
    entry = {
        "rank": rank,
        "attempt": attempt,
        "restart": _restart(),
        "time": time.time(),
        "type": type(error).__name__,
        "message": safe_message(error),
        "exit_status": getattr(error, "exit_status", FAILED),
        "verdict": isinstance(error, TesseraError),
        "trace": [f"{_short(frame.filename)}:{frame.lineno}" for frame in frames],
    }
    path = folder / "errors" / f"rank-{rank}.json"
    path.parent.mkdir(exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(entry), encoding="utf-8")
    partial.replace(path)


def safe_message(error: BaseException) -> str:
    """The message of an error whose messages hold no data: ours, the system's, and torch's; of others nothing."""
    from tessera.errors import TesseraError

    if isinstance(error, TesseraError):
        return str(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "out of memory; give a smaller train.micro_batch"
    if isinstance(error, OSError):
        return f"{error.strerror or 'system error'} {error.filename or ''}".strip()
    if isinstance(error, RuntimeError):  # torch's own: shapes, indices, addresses of peers
        return next(iter(str(error).splitlines()), "")[:200]
    return ""


def _restart() -> int:
    """How often torchrun has started the ranks of this attempt again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def _short(filename: str) -> str:
    """The file below its package folder: no user's home in a record."""
    parts = Path(filename).parts
    return "/".join(parts[-3:])


if __name__ == "__main__":
    main()
