"""Takes what rank 0 writes to MLflow, in a thread of the launcher: whole steps, in batches, never a step twice.

The cursor (the last step sent) is kept in the run folder; after a kill between sending and noting, MLflow is asked for
its newest step. MLflow may be slow, down or full: training goes on, sending is tried again, and what could not be sent
in the end is said and stays in metrics.jsonl, to be sent by the next launch of the run.
"""

import json
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from tessera import tracking
from tessera.home import Home
from tessera.lineage import TableVersion
from tessera.tracking import TrackedRun, TrackingSettings
from tessera.train.metrics import Tail
from tessera.train.run import RunFolder, to_json, write_durable

CURSOR = "shipped.json"
SHIP_SECONDS = 2.0
RETRY_SECONDS = 5.0
FLUSH_SECONDS = 30.0
"""How long the end of a run waits for MLflow."""


class Shipper:
    """Sends a run's metrics until it is closed.

    Args:
        describe: called once the run exists, with it: parameters and tags.
        notice: hears, once, that MLflow gives trouble, and what remained unsent.
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
        self._sampled = 0.0
        self._troubled = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="metrics-shipper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self, *, status: str, tags: Mapping[str, str] | None = None) -> str:
        """Sends what is left, for at most FLUSH_SECONDS, and ends the run with `status`; the run's id, or ''."""
        self._closing.set()
        self._thread.join(timeout=FLUSH_SECONDS)
        if self._thread.is_alive() or self.run is None:
            self._notice("MLflow does not answer: this run's metrics stay in metrics.jsonl")
            return self._known_run_id() or ""
        try:
            self.ship()
            if tags:
                self.run.describe(params={}, tags=tags)
            self.run.end(status)
        except Exception as error:
            self._notice(f"MLflow did not take the end of the run ({type(error).__name__}); it is in metrics.jsonl")
        if self._unsent:
            first, last = int(self._unsent[0]["step"]), int(self._unsent[-1]["step"])
            self._notice(f"MLflow lacks the metrics of steps {first} to {last}; they are in metrics.jsonl")
        return self.run.run_id

    def ship(self) -> None:
        """Sends every whole step that was not sent; raises what MLflow raises."""
        assert self.run is not None
        self._unsent += self._tail.read()
        self._unsent = [line for line in self._unsent if line["step"] > self._shipped]
        if not self._unsent:
            return
        self.run.log_steps(self._unsent, extra=self._sample())
        self._shipped = int(self._unsent[-1]["step"])
        self._unsent = []
        self._write_cursor()

    def _work(self) -> None:
        while True:
            try:
                if self.run is None:
                    self._open()
                self.ship()
                pause = SHIP_SECONDS
            except Exception as error:
                if not self._troubled:
                    self._notice(f"MLflow gives trouble ({type(error).__name__}); training goes on, metrics are kept")
                self._troubled = True
                pause = RETRY_SECONDS
            if self._closing.wait(pause):
                return

    def _open(self) -> None:
        """Makes the run or finds it again, and where its metrics stop."""
        run = tracking.open_run(
            self._settings, home=self._home, name=self._folder.root.name, run_id=self._known_run_id()
        )
        self._shipped = run.newest_step()
        self.run = run
        self._write_cursor()
        run.describe(params=self._params, tags=self._tags)
        run.add_inputs(self._inputs, context="train")

    def _known_run_id(self) -> str | None:
        try:
            return str(json.loads((self._folder.root / CURSOR).read_text(encoding="utf-8"))["run_id"])
        except (OSError, ValueError, KeyError):
            return None

    def _write_cursor(self) -> None:
        assert self.run is not None
        write_durable(self._folder.root / CURSOR, to_json({"run_id": self.run.run_id, "step": self._shipped}))

    def _sample(self) -> dict[str, float]:
        if time.monotonic() - self._sampled < self._settings.system_seconds:
            return {}
        self._sampled = time.monotonic()
        return tracking.system_use()
