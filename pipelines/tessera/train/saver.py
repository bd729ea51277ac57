"""Checkpoints written in a thread, one at a time, beside the steps that follow.

The steps wait for a copy of all values on the CPU and no longer: hashing, writing and syncing overlap with them. The
copy costs as much memory as weights, gradients' moments and methods' tensors together.
"""

import threading
from collections.abc import Callable

from tessera.train.checkpoint import Checkpoint


class Saver:
    """What fails in the thread is raised by the next call of any kind.

    As a context it ends with what was begun: a run that stops on an error keeps the checkpoint that is being written.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._saved: Checkpoint | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._thread is not None:
            self._thread.join()
        if kind is None:
            self.check()

    def start(self, write: Callable[[], Checkpoint]) -> None:
        """Begins to write, once what was begun before is done."""
        self.wait()

        def work() -> None:
            try:
                self._saved = write()
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=work, name="checkpoint")
        self._thread.start()

    def wait(self) -> Checkpoint | None:
        """The checkpoint that was written last, now committed; None before the first."""
        if self._thread is not None:
            self._thread.join()
        self.check()
        return self._saved

    def check(self) -> None:
        """Raises what went wrong since the last call, without waiting."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error
