"""Takes what rank 0 writes to MLflow, in a thread of the launcher: whole steps, in batches, never a step twice.

The cursor (the last step sent) is kept in the run folder. MLflow may be slow, hung, down or full: training goes on, and
sending is tried again. Whenever an answer did not come, MLflow is asked for its newest complete step before anything is
sent again, and what is sent again is the same to the last bit, so that a store that took it already knows it.

What MLflow lacks when a run ends is said, stays in metrics.jsonl, and is sent by the next launch of the run or, when
the run is finished, by the next command (`replay`): mlflow.json says beside it what else MLflow is to know.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from tessera import away, tracking
from tessera.errors import Conflict
from tessera.home import Home
from tessera.lineage import TableVersion
from tessera.tracking import TrackedRun, TrackingSettings
from tessera.train.metrics import Tail
from tessera.train.run import RunFolder, launcher_lock, to_json, write_durable

CURSOR, ABOUT = "shipped.json", "mlflow.json"
SHIP_SECONDS = 2.0
RETRY_SECONDS = 5.0
"""The longest pause before a store that is away is tried again; the first is a tenth of it."""
QUIT_SECONDS = 3.0
"""How long the end of a run that was stopped or failed waits for MLflow: its next launch goes on."""
REPLAY_SECONDS = 12.0
"""How long a later command waits for a server that is silent."""
FINISHED = "FINISHED"


class Shipper:
    """Sends a run's metrics until it is closed.

    Args:
        params, tags, inputs: told to MLflow once the run exists.
        notice: hears, once each, that MLflow gives trouble, that it is back, and what remained unsent.
    """

    def __init__(
        self, folder: RunFolder, *, settings: TrackingSettings, home: Home, params: Mapping[str, Any],
        tags: Mapping[str, str], inputs: tuple[TableVersion, ...], notice: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.run: TrackedRun | None = None
        self._folder = folder
        self._settings = settings
        self._home = home
        self._params = params
        self._tags = tags
        self._inputs = inputs
        self._notice = notice
        self._tail = Tail(folder.metrics)
        self._unsent: list[dict[str, float]] = []
        self._shipped = -1
        self._certain = True
        self._sampled = 0.0
        self._trouble = ""
        self._status = ""
        self._last_tags: Mapping[str, str] = {}
        self._ended = False
        self._deadline = float("inf")
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="metrics-shipper", daemon=True)

    def start(self) -> None:
        """Writes down what MLflow is to know, and begins to send."""
        inputs = [table.model_dump(mode="json") for table in self._inputs]
        about = {"params": self._params, "tags": dict(self._tags), "inputs": inputs}
        write_durable(self._folder.root / ABOUT, to_json(about))
        self._thread.start()

    def close(self, *, status: str, tags: Mapping[str, str] | None = None) -> str:
        """Sends what is left and ends the run with `status`; the run's id, or '' when MLflow never gave one.

        Waits `flush_seconds` at most, QUIT_SECONDS for a run that did not finish; a call that hangs is left behind
        with its thread.
        """
        seconds = self._settings.flush_seconds
        seconds = seconds if status == FINISHED else min(seconds, QUIT_SECONDS)
        self._last_words(status, tags=tags or {}, retry_seconds=seconds)
        return self._leave(seconds=seconds + 0.2)

    def settle(self, *, tags: Mapping[str, str]) -> str:
        """Instead of `start` and `close`, for a run that is finished: tries once, for REPLAY_SECONDS at most."""
        self._last_words(FINISHED, tags=tags, retry_seconds=0)
        self._thread.start()
        return self._leave(seconds=REPLAY_SECONDS)

    def _last_words(self, status: str, *, tags: Mapping[str, str], retry_seconds: float) -> None:
        self._status, self._last_tags = status, tags
        self._deadline = time.monotonic() + retry_seconds
        self._closing.set()

    def _leave(self, *, seconds: float) -> str:
        self._thread.join(timeout=seconds)
        if not self._ended:
            self._notice(f"MLflow did not take the end of this run{self._because()}; {self._missing()}")
        return self.run.run_id if self.run else known_run_id(self._folder)

    def ship(self) -> None:
        """Sends every whole step that was not sent; raises what MLflow raises."""
        assert self.run is not None
        if not self._certain:
            self._shipped = max(self._shipped, self.run.newest_step())
            self._certain = True
        self._unsent = [line for line in self._unsent if line["step"] > self._shipped]
        kept = {line["step"] for line in self._unsent}  # of ranks that were restarted, which did these steps again
        lines = (line for line in self._tail.read() if line["step"] > self._shipped)
        self._unsent += self._sampled_once([line for line in lines if line["step"] not in kept])
        if not self._unsent:
            return
        self._certain = False
        self.run.log_steps(self._unsent)
        self._certain = True
        self._shipped = int(self._unsent[-1]["step"])
        self._unsent = []
        self._write_cursor()

    def _work(self) -> None:
        pause = 0.0
        while not self._closing.wait(pause):
            pause = SHIP_SECONDS if self._tries(self.ship) else self._pause_after(pause)
        pause = 0.0
        while not self._tries(self._end):
            pause = self._pause_after(pause)
            if time.monotonic() + pause > self._deadline:
                return
            time.sleep(pause)

    def _tries(self, work: Callable[[], None]) -> bool:
        """Whether MLflow took it; trouble, and its end, is told once."""
        try:
            if self.run is None:
                self._open()
            work()
        except Exception as error:
            if not self._trouble:
                self._notice(f"MLflow gives trouble: {away.why(error)}; training goes on, metrics are kept")
            self._trouble = away.why(error)
            return False
        if self._trouble:
            self._notice(f"MLflow answers again; it has every metric up to step {self._shipped}")
        self._trouble = ""
        return True

    def _pause_after(self, pause: float) -> float:
        return min(RETRY_SECONDS, 2 * pause) if pause else RETRY_SECONDS / 10

    def _end(self) -> None:
        assert self.run is not None
        self.ship()
        if self._last_tags:
            self.run.describe(params={}, tags=self._last_tags)
        self.run.end(self._status)
        self._write_cursor(status=self._status)
        self._ended = True

    def _open(self) -> None:
        """Makes the run or finds it again, and where its metrics stop."""
        name, noted = self._folder.root.name, known_run_id(self._folder)
        run = tracking.open_run(self._settings, home=self._home, name=name, run_id=noted or None)
        if noted and run.run_id != noted:
            self._notice(f"MLflow has no run {noted} any more; its metrics go into a new one")
        self._shipped = run.newest_step()
        run.describe(params=self._params, tags=self._tags)
        run.add_inputs(self._inputs, context="train")
        self.run = run
        self._write_cursor()

    def _write_cursor(self, *, status: str = "RUNNING") -> None:
        assert self.run is not None
        cursor = {"run_id": self.run.run_id, "step": self._shipped, "status": status}
        write_durable(self._folder.root / CURSOR, to_json(cursor))

    def _sampled_once(self, lines: list[dict[str, float]]) -> list[dict[str, float]]:
        """`lines`, with the use of the machine added to the last: once, so that a line sent again is the same."""
        if lines and time.monotonic() - self._sampled >= self._settings.system_seconds:
            self._sampled = time.monotonic()
            lines[-1] = {**tracking.system_use(), **lines[-1]}
        return lines

    def _because(self) -> str:
        return f": {self._trouble}" if self._trouble else ""

    def _missing(self) -> str:
        """What MLflow lacks, as far as is known here."""
        steps = [int(line["step"]) for line in Tail(self._folder.metrics).read() if line["step"] > self._shipped]
        what = f"it lacks the metrics of steps {steps[0]} to {steps[-1]}" if steps else "it has all metrics"
        again = "the next tessera command sends what is missing"
        return f"{what}, which are kept in {self._folder.metrics.name}; {again}" if steps else f"{what}; {again}"


def known_run_id(folder: RunFolder) -> str:
    """The MLflow run of a run folder, as far as MLflow was reached; else ''."""
    return str(_cursor(folder).get("run_id", ""))


def replay(home: Home, *, settings: TrackingSettings, notice: Callable[[str], None]) -> None:
    """Sends what MLflow lacks of finished runs. Reads one small file a run when it lacks nothing.

    Each is tried once: what a store that is away did not take stays kept, and `notice` hears of it.
    """
    unsampled = settings.model_copy(update={"system_seconds": float("inf")})  # the machine of then is not that of now
    for folder in unsent(home):
        about = _read_json(folder, ABOUT)
        shipper = Shipper(
            folder, settings=unsampled, home=home, params=about["params"], tags=about["tags"],
            inputs=tuple(TableVersion.model_validate(table) for table in about["inputs"]),
            notice=partial(_named, notice, folder.root.name),
        )  # fmt: skip
        with suppress(Conflict), launcher_lock(folder):  # what is locked is being sent now
            result = folder.read_result()
            shipper.settle(tags={"tessera.weights_sha256": result.weights_sha256} if result else {})


def unsent(home: Home) -> Iterator[RunFolder]:
    """The finished runs whose end MLflow has not taken."""
    for about in sorted(home.runs.glob(f"*/{ABOUT}")):
        folder = RunFolder(about.parent)
        if _cursor(folder).get("status") != FINISHED and folder.read_result() is not None:
            yield folder


def _named(notice: Callable[[str], None], name: str, text: str) -> None:
    notice(f"run {name}: {text}")


def _cursor(folder: RunFolder) -> dict[str, Any]:
    return _read_json(folder, CURSOR)


def _read_json(folder: RunFolder, name: str) -> dict[str, Any]:
    try:
        return dict(json.loads((folder.root / name).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}
