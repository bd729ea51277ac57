"""What surrounds the ranks while they run: environment, heartbeat, and a log for what torchrun prints.

Nothing of theirs reaches the terminal. A heartbeat is one small write each half second; a log line one message.
"""

import contextlib
import io
import os
import socketserver
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import tessera
from tessera.train.run import RunFolder
from tessera.train.settings import TrainSettings

BEATS = 4
"""Heartbeats in `train.beat_seconds`."""


@contextlib.contextmanager
def beside(settings: TrainSettings, *, log: TextIO) -> Iterator[None]:
    """What ranks beside the driver inherit: TorchDistributor passes this process's environment on, and prints."""
    threads = settings.threads or max(1, len(os.sched_getaffinity(0)) // settings.ranks)
    package = str(Path(tessera.__file__).parents[1])
    added = {
        "PYTHONSAFEPATH": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")])),
        "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", "lo"),
        "OMP_NUM_THREADS": str(threads),
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }
    before = {key: os.environ.get(key) for key in added}
    os.environ.update(added)
    try:
        with contextlib.redirect_stdout(_Lines(log)):
            yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


class _Lines(io.TextIOBase):
    """Takes what TorchDistributor prints in this thread into the run's log; other threads print as before."""

    def __init__(self, log: TextIO) -> None:
        self._log = log
        self._beside = sys.stdout
        self._thread = threading.get_ident()

    def write(self, text: str) -> int:
        if threading.get_ident() != self._thread:
            return self._beside.write(text)
        self._log.write(text)
        self._log.flush()
        return len(text)


@contextlib.contextmanager
def heartbeat(folder: RunFolder, *, settings: TrainSettings) -> Iterator[None]:
    """Writes `launcher.beat` while the block runs: how ranks on a cluster know that their launcher lives."""
    done = threading.Event()

    def beat() -> None:
        count = 0
        while not done.wait(settings.beat_seconds / BEATS):
            count += 1
            with contextlib.suppress(OSError):  # a full or slow disk: the ranks notice
                folder.beat.write_text(str(count))

    folder.beat.write_text("0")
    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


class LogServer:
    """Writes what executors send into the run's log, and listens on the driver's address alone.

    Takes the place of TorchDistributor's own, which listens on every interface and prints to the terminal. A message is
    its length in four bytes, most significant first, and UTF-8.
    """

    port = -1

    def __init__(self, log: TextIO) -> None:
        self._log = log
        self._server: socketserver.ThreadingTCPServer | None = None
        self._lock = threading.Lock()

    def start(self, spark_host_address: str = "") -> None:
        """Listens in a thread; called by TorchDistributor, like `shutdown`."""
        write = self._write

        class Receiver(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                while len(length := self.rfile.read(4)) == 4:
                    write(self.rfile.read(int.from_bytes(length, "big")).decode(errors="replace"))

        try:
            server = socketserver.ThreadingTCPServer((spark_host_address, 0), Receiver)
        except OSError:  # the driver's host is not this machine: over Spark Connect, or behind an address translation
            self._write(f"no log of the ranks: {spark_host_address} is not an address of this machine")
            return
        server.daemon_threads = True
        self.port = server.server_address[1]
        self._server = server
        threading.Thread(target=server.serve_forever, name="ranks-log", daemon=True).start()

    def shutdown(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def _write(self, line: str) -> None:
        with self._lock, contextlib.suppress(ValueError):  # the log may be closed when a late line comes
            self._log.write(line + "\n")
            self._log.flush()
