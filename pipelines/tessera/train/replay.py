"""Sends later what MLflow lacks of runs that ended while it was away: steps, how and when they ended, then scores.

A run is unsent when shipped.json does not say what mlflow.json says of its end; an evaluation, when its own file does
not say `sent`. Both lie in the run folder, so whichever command comes next can send them. A run that is being trained
is left to its launcher; one that was killed outright has no end, and stays RUNNING in MLflow until it is trained again.

Costs two small files a run when nothing is missing. A call done twice changes nothing: times are those of then.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from tessera import away
from tessera.errors import Conflict
from tessera.home import Home
from tessera.lineage import TableVersion
from tessera.tracking import TrackedRun, TrackingSettings, tracking_uri
from tessera.train.run import RunFolder, launcher_lock, read_json, to_json, write_durable
from tessera.train.ship import ABOUT, FINISHED, LATER, Ending, Shipper, known_run_id, read_about, read_cursor

EVALUATIONS = "evaluation-*.json"
REPLAY_SECONDS = 12.0
"""How long a later command waits for a server that is silent."""


def replay(home: Home, *, settings: TrackingSettings, notice: Callable[[str], None]) -> None:
    """Sends what MLflow lacks of all runs that ended, each tried once; stops when MLflow is away.

    What is not sent stays kept, and `notice` hears of it.
    """
    for folder in unsent(home):
        with suppress(Conflict):  # what is locked is being trained, or sent, now
            if not send(folder, settings=settings, notice=partial(_named, notice, folder.root.name)):
                return


def unsent(home: Home) -> Iterator[RunFolder]:
    """The runs of which MLflow lacks the end or an evaluation."""
    for root in sorted({path.parent for name in (ABOUT, EVALUATIONS) for path in home.runs.glob(f"*/{name}")}):
        folder = RunFolder(root)
        if _end_to_send(folder) is not None or unsent_evaluations(folder):
            yield folder


def send(folder: RunFolder, *, settings: TrackingSettings, notice: Callable[[str], None], seconds: float = 0) -> bool:
    """Sends what MLflow lacks of one run, its steps first: whether MLflow answered.

    Args:
        seconds: how long each is tried again; 0 tries once.

    Raises:
        Conflict: another process trains or sends it.
    """
    with launcher_lock(folder):
        ending = _end_to_send(folder)
        if ending is not None:
            shipper = _shipper(folder, settings=settings, notice=notice)
            if not shipper.settle(ending, retry_seconds=seconds, wait_seconds=max(seconds, REPLAY_SECONDS)):
                return shipper.refused
        return all(
            _send_evaluation(path, folder=folder, settings=settings, notice=notice, seconds=seconds)
            for path in unsent_evaluations(folder)
        )


def keep_evaluation(
    folder: RunFolder, *, fingerprint: str, run_id: str, step: int, time: float, metrics: Mapping[str, float],
    tags: Mapping[str, str],
) -> None:  # fmt: skip
    """Writes down what an evaluation tells MLflow, for `send`.

    Args:
        fingerprint: of the evaluation; one done again takes the place of the other.
        run_id: for a run that was trained without a cursor.
        time: when it was measured, in Unix seconds; sent again, the metrics are the same.
    """
    kept = {"run_id": run_id, "step": step, "time": time, "metrics": dict(metrics), "tags": dict(tags), "sent": False}
    write_durable(folder.root / EVALUATIONS.replace("*", fingerprint[:12]), to_json(kept))


def unsent_evaluations(folder: RunFolder) -> list[Path]:
    """Files of evaluations that MLflow has not taken, oldest first."""
    kept = {path: read_json(path) for path in folder.root.glob(EVALUATIONS)}
    return sorted((path for path, one in kept.items() if one.get("sent") is False), key=lambda path: kept[path]["time"])


def _end_to_send(folder: RunFolder) -> Ending | None:
    """How the run ended, unless MLflow knows or it has not ended: then a launch is alive, or was killed outright."""
    result, noted = folder.read_result(), read_about(folder).get("end")
    if (result is None and noted is None) or not (folder.root / ABOUT).exists():
        return None
    ending = Ending(**noted) if noted else Ending("", time=folder.record.stat().st_mtime, tags={})
    if result is not None:
        ending = Ending(FINISHED, time=ending.time, tags={**result.tags, **ending.tags})
    return ending if read_cursor(folder).get("status") != ending.status else None


def _shipper(folder: RunFolder, *, settings: TrackingSettings, notice: Callable[[str], None]) -> Shipper:
    about = read_about(folder)
    unsampled = settings.model_copy(update={"system_seconds": float("inf")})  # the machine of then is not that of now
    return Shipper(
        folder, settings=unsampled, home=folder.home, params=about.get("params", {}), tags=about.get("tags", {}),
        inputs=tuple(TableVersion.model_validate(table) for table in about.get("inputs", [])), notice=notice,
    )  # fmt: skip


def _send_evaluation(
    path: Path, *, folder: RunFolder, settings: TrackingSettings, notice: Callable[[str], None], seconds: float
) -> bool:
    """Whether MLflow answered; what it says no to stays kept too: it may be another store than usual."""
    kept: dict[str, Any] = read_json(path)
    try:
        run = TrackedRun(tracking_uri(settings, home=folder.home), known_run_id(folder) or kept["run_id"])
        away.insist(
            lambda: run.log_at(kept["step"], time=kept["time"], metrics=kept["metrics"], tags=kept["tags"]),
            seconds=seconds,
        )
    except Exception as error:
        notice(f"MLflow did not take the evaluation: {away.why(error)}; it is kept in {path.name}; {LATER}")
        return away.is_answer(error)
    write_durable(path, to_json({**kept, "sent": True}))
    return True


def _named(notice: Callable[[str], None], name: str, text: str) -> None:
    notice(f"run {name}: {text}")
