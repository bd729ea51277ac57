"""What a person sees while a stage runs: bars in a terminal, a plain line now and then elsewhere; always on stderr."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

PLAIN_SECONDS = 10.0
"""Without a terminal: seconds between two lines of one stage."""


class Tell(Protocol):
    """How a stage reports: a few words, and how far it is when that is known."""

    def __call__(self, text: str, done: float | None = None, total: float | None = None) -> None: ...


def silent(text: str, done: float | None = None, total: float | None = None) -> None:
    """Reports to nobody."""


class Reporter:
    """Shows stages one after another on stderr."""

    def __init__(self, *, console: Console | None = None) -> None:
        self.console = console or Console(file=sys.stderr, highlight=False, force_jupyter=False)

    def line(self, text: str) -> None:
        """One plain line."""
        self.console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def stage(self, name: str) -> Iterator[Tell]:
        """Shows what `name` tells while the block runs, then removes the bar; the caller prints the result."""
        if not self.console.is_terminal:
            yield self._plain(name)
            return
        columns = (
            SpinnerColumn(),
            TextColumn("{task.fields[stage]:<8}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
        )
        with Progress(*columns, console=self.console, transient=True) as bars:
            task = bars.add_task("", total=None, stage=name, count="")

            def tell(text: str, done: float | None = None, total: float | None = None) -> None:
                count = f"{done or 0:,.0f}/{total:,.0f}" if total else ""
                bars.update(task, description=text, completed=done or 0, total=total, count=count)

            yield tell

    def _plain(self, name: str) -> Tell:
        last_text, last_time = "", 0.0

        def tell(text: str, done: float | None = None, total: float | None = None) -> None:
            nonlocal last_text, last_time
            phase = text if total is None else ""
            now = time.monotonic()
            if (phase and phase != last_text) or now - last_time >= PLAIN_SECONDS:
                counted = f" {int(done or 0)}/{int(total)}" if total else ""
                self.line(f"{name}: {text}{counted}")
                last_text, last_time = phase, now

        return tell
