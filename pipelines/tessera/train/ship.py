"""Takes what rank 0 writes to MLflow, in a thread of the launcher: whole steps, in batches, never a step twice.

The cursor (the last step sent) is kept in the run folder. MLflow may be slow, hung, down or full: training goes on, and
sending is tried again. Whenever an answer did not come, MLflow is asked for its newest complete step before anything is
sent again, and what is sent again is the same to the last bit, so that a store that took it already knows it.

What MLflow lacks when a run ends is said, stays in metrics.jsonl, and is sent by the next launch of the run or by a
later command (see `replay`): mlflow.json says beside it what else MLflow is to know, and how and when the run ended.
"""

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from tessera import away, tracking
from tessera.home import Home
from tessera.lineage import TableVersion
from tessera.tracking import TrackedRun, TrackingSettings
from tessera.train import pulse
from tessera.train.metrics import Tail
from tessera.train.run import RunFolder, read_json, to_json, write_durable

CURSOR, ABOUT = "shipped.json", "mlflow.json"
SHIP_SECONDS = 2.0
RETRY_SECONDS = 5.0
"""The longest pause before a store that is away is tried again; the first is a tenth of it."""
QUIT_SECONDS = 3.0
"""How long the end of a run that was stopped or failed waits for MLflow: its next launch goes on."""
FINISHED = "FINISHED"
LATER = "the next tessera train, evaluate, serve, run or explore sends what is missing"


@dataclass(frozen=True)
class Ending:
    """How a run ended, which MLflow is to show."""

    status: str
    """FINISHED, FAILED or KILLED."""
    time: float
    """When, in Unix seconds."""
    tags: Mapping[str, str]
    """What the end adds to the run's lineage."""


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
        self._trouble: Exception | None = None
        self._ending: Ending | None = None
        self._ended = False
        self._deadline = float("inf")
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="metrics-shipper", daemon=True)

    def start(self) -> None:
        """Writes down what MLflow is to know and that the run goes on, and begins to send."""
        inputs = [table.model_dump(mode="json") for table in self._inputs]
        began = read_about(self._folder).get("began", time.time())
        about = {"params": self._params, "tags": dict(self._tags), "inputs": inputs, "began": began}
        if cursor := read_cursor(self._folder):
            write_durable(self._folder.root / CURSOR, to_json({**cursor, "status": "RUNNING"}))
        write_durable(self._folder.root / ABOUT, to_json(about))
        self._thread.start()

    def close(self, *, status: str, tags: Mapping[str, str] | None = None) -> str:
        """Sends what is left and ends the run with `status`; the run's id, or '' when MLflow never gave one.

        Waits `flush_seconds` at most, QUIT_SECONDS for a run that did not finish; a call that hangs is left behind
        with its thread.
        """
        ending = Ending(status, time=time.time(), tags=dict(tags or {}))
        with suppress(OSError):  # a full disk must not hide how the run ended; replay knows finished runs without it
            about = {**read_about(self._folder), "end": asdict(ending)}
            write_durable(self._folder.root / ABOUT, to_json(about))
        seconds = self._settings.flush_seconds
        seconds = seconds if status == FINISHED else min(seconds, QUIT_SECONDS)
        self._last_words(ending, retry_seconds=seconds)
        self._leave(seconds=seconds + 0.2)
        return self.run.run_id if self.run else known_run_id(self._folder)

    def settle(self, ending: Ending, *, retry_seconds: float, wait_seconds: float) -> bool:
        """Instead of `start` and `close`, for a run that has ended: whether MLflow has all of it now.

        Args:
            retry_seconds: how long to try again; 0 tries once.
            wait_seconds: how long to wait at most, for a call that hangs.
        """
        self._last_words(ending, retry_seconds=retry_seconds)
        self._thread.start()
        self._leave(seconds=wait_seconds)
        return self._ended

    @property
    def refused(self) -> bool:
        """Whether MLflow said no to this run, and may take others."""
        return self._trouble is not None and away.is_answer(self._trouble)

    def _last_words(self, ending: Ending, *, retry_seconds: float) -> None:
        self._ending = ending
        self._deadline = time.monotonic() + retry_seconds
        self._closing.set()

    def _leave(self, *, seconds: float) -> None:
        self._thread.join(timeout=seconds)
        if not self._ended:
            self._notice(f"MLflow did not take the end of this run{self._because()}; {self._missing()}")

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
            if time.monotonic() + pause > self._deadline or (self._trouble and away.is_denied(self._trouble)):
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
            self._trouble = error
            return False
        if self._trouble:
            self._notice(f"MLflow answers again; it has every metric up to step {self._shipped}")
        self._trouble = None
        return True

    def _pause_after(self, pause: float) -> float:
        return min(RETRY_SECONDS, 2 * pause) if pause else RETRY_SECONDS / 10

    def _end(self) -> None:
        assert self.run is not None
        assert self._ending is not None
        self.ship()
        if self._ending.tags:
            self.run.describe(params={}, tags=self._ending.tags)
        self.run.end(self._ending.status, time=self._ending.time)
        self._write_cursor(status=self._ending.status)
        self._ended = True

    def _open(self) -> None:
        """Makes the run or finds it again, and where its metrics stop."""
        name, noted = self._folder.root.name, known_run_id(self._folder)
        began = read_about(self._folder).get("began")
        run = tracking.open_run(self._settings, home=self._home, name=name, run_id=noted or None, began=began)
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
            lines[-1] = {**tracking.system_use(), **self._rank_use(), **lines[-1]}
        return lines

    def _rank_use(self) -> dict[str, float]:
        """Of each rank, as its pulse says."""
        return {
            f"system/rank_{rank}/{name}": said[name]
            for rank, said in pulse.read(self._folder.root).items()
            for name in ("memory_bytes", "cpu_seconds", "waited_seconds")
        }

    def _because(self) -> str:
        return f": {away.why(self._trouble)}" if self._trouble else ""

    def _missing(self) -> str:
        """What MLflow lacks, as far as is known here."""
        steps = [int(line["step"]) for line in Tail(self._folder.metrics).read() if line["step"] > self._shipped]
        what = f"it lacks the metrics of steps {steps[0]} to {steps[-1]}" if steps else "it has all metrics"
        return f"{what}, which are kept in {self._folder.metrics.name}; {LATER}" if steps else f"{what}; {LATER}"


def known_run_id(folder: RunFolder) -> str:
    """The MLflow run of a run folder, as far as MLflow was reached; else ''."""
    return str(read_cursor(folder).get("run_id", ""))


def read_cursor(folder: RunFolder) -> dict[str, Any]:
    """The MLflow run, the newest step it was sent, and the status it was given; {} before the first answer."""
    return read_json(folder.root / CURSOR)


def read_about(folder: RunFolder) -> dict[str, Any]:
    """What MLflow is to know of a run besides its metrics; {} before its first launch."""
    return read_json(folder.root / ABOUT)
