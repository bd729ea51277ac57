"""`tessera`: one sub-command a room, thin over the pipeline.

Records go to stdout (with `--json` as one line, the last); progress, tables' frames and errors go to stderr. Exit
status: 0 done, 2 the user's input is wrong, 1 anything else. Nothing heavy is imported before it is needed.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from tessera import __version__
from tessera.errors import TesseraError
from tessera.home import Home

if TYPE_CHECKING:
    from tessera.lineage import Record
    from tessera.pipeline import Pipeline

app = typer.Typer(
    help="Train, improve, monitor and serve open language models on your own Delta tables.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Target = Annotated[str, typer.Option(help="local, dev, staging or prod: the overlay in conf/.")]
Assignments = Annotated[
    list[str] | None, typer.Option("--set", help="section.key=value, a YAML value; may be given again.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved configuration and what would run.")]
Json = Annotated[bool, typer.Option("--json", help="Print the record as the last line of stdout.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Run although a recorded result holds.")]
Traceback = Annotated[bool, typer.Option("--traceback", help="Show where an error arose.")]
Port = Annotated[int | None, typer.Option(help="Answer HTTP on this loopback port; 0 takes a free one.")]
Prompt = Annotated[str | None, typer.Option(help="What to ask the model, instead of serve.prompt.")]

HELP = {
    "sample": "Write the sample table: documentation of the installed Python packages.",
    "prepare": "Delta tables to governed documents.",
    "shard": "Documents to packed token shards.",
    "train": "Shards to a trained checkpoint.",
    "evaluate": "Score the checkpoint on held-out documents and decide at the gate.",
}


def main() -> None:
    """The console script."""
    app()


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


def _stage_command(stage: str) -> None:
    """Registers the sub-command of one stage."""

    def command(
        target: Target = "local",
        assignments: Assignments = None,
        dry_run: DryRun = False,
        as_json: Json = False,
        fresh: Fresh = False,
        traceback: Traceback = False,
    ) -> None:
        def work() -> None:
            with _pipeline(target, assignments, fresh=fresh) as pipeline:
                if dry_run:
                    _print_plan(pipeline, as_json=as_json)
                    return
                _print_record(pipeline.do(stage), as_json=as_json)

        _guarded(work, show=traceback)

    app.command(stage, help=HELP[stage])(command)


for _stage in HELP:
    _stage_command(_stage)


@app.command()
def serve(
    target: Target = "local",
    assignments: Assignments = None,
    port: Port = None,
    prompt: Prompt = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    fresh: Fresh = False,
    traceback: Traceback = False,
) -> None:
    """Register the model, move its aliases and print one completion; with --port answer HTTP."""

    def work() -> None:
        with _pipeline(target, assignments, fresh=fresh) as pipeline:
            if dry_run:
                _print_plan(pipeline, as_json=as_json)
                return
            record = pipeline.do("serve")
            if port is not None or pipeline.settings.serve.port is not None:
                pipeline.listen(record, port=port)
                return
            _print_completion(pipeline, record, prompt=prompt, as_json=as_json)
            _print_record(record, as_json=as_json)

    _guarded(work, show=traceback)


@app.command()
def run(
    target: Target = "local",
    assignments: Assignments = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    fresh: Fresh = False,
    traceback: Traceback = False,
) -> None:
    """The whole line: sample, prepare, shard, train, evaluate, serve."""

    def work() -> None:
        with _pipeline(target, assignments, fresh=fresh) as pipeline:
            if dry_run:
                _print_plan(pipeline, as_json=as_json)
                return
            from tessera import report

            records = pipeline.run()
            _print_completion(pipeline, records[-1], prompt=None, as_json=as_json)
            out = Console(file=sys.stderr if as_json else sys.stdout, highlight=False)
            out.print(report.table(records, mlflow_command=pipeline.mlflow_command()))
            if as_json:
                print(json.dumps(pipeline.summary(records), sort_keys=True), flush=True)

    _guarded(work, show=traceback)


@app.command()
def history(target: Target = "local", as_json: Json = False, traceback: Traceback = False) -> None:
    """The ledger: every stage run, what went in and what came out."""

    def work() -> None:
        with _pipeline(target, None) as pipeline:
            rows = pipeline.history()
            if as_json:
                print(json.dumps(rows, sort_keys=True), flush=True)
                return
            from tessera import report

            Console(highlight=False).print(report.history(rows))

    _guarded(work, show=traceback)


@app.command()
def config(
    target: Target = "local",
    assignments: Assignments = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of the configuration.")] = False,
    traceback: Traceback = False,
) -> None:
    """Print the resolved configuration, or its JSON schema."""

    def work() -> None:
        from tessera.settings import Settings, load_settings

        if schema:
            print(json.dumps(Settings.model_json_schema(), indent=2))
        else:
            print(_yaml(load_settings(target, assignments=assignments or ())))

    _guarded(work, show=traceback)


@app.command()
def doctor(traceback: Traceback = False) -> None:
    """Check Java, jars, versions, offline flags, disk, cores and GPUs: ok, or what to do."""

    def work() -> None:
        from tessera import doctor as checks

        findings = checks.examine(Home.from_environment())
        for finding in findings:
            print(finding)
        if not all(finding.ok for finding in findings):
            raise typer.Exit(1)

    _guarded(work, show=traceback)


@app.command()
def jars(traceback: Traceback = False) -> None:
    """Fetch the Delta jars, once; no later start of Spark asks the network."""

    def work() -> None:
        from tessera import spark

        for file in spark.fetch_jars():
            print(file)

    _guarded(work, show=traceback)


def _guarded(work: Callable[[], None], *, show: bool) -> None:
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
        # A foreign message may hold row text: name the kind and the place only.
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(frame.filename).name}:{frame.lineno}"
        _complain(f"unexpected {type(error).__name__} at {place}; --traceback shows the rest", show=show)
        raise typer.Exit(1) from None


def _complain(message: str, *, show: bool) -> None:
    if show:
        traceback.print_exc()
    print("tessera: " + " ".join(message.split()), file=sys.stderr, flush=True)


class _pipeline:
    """A pipeline whose Spark session ends with the block."""

    def __init__(self, target: str, assignments: list[str] | None, *, fresh: bool = False) -> None:
        from tessera.settings import load_settings

        settings = load_settings(target, assignments=assignments or ())  # its errors come before any heavy import
        from tessera.pipeline import Pipeline

        self.pipeline = Pipeline(settings, home=Home.from_environment(), target=target, fresh=fresh)

    def __enter__(self) -> "Pipeline":
        return self.pipeline

    def __exit__(self, *exception: object) -> None:
        self.pipeline.close()


def _print_plan(pipeline: "Pipeline", *, as_json: bool) -> None:
    plan = pipeline.plan()
    if as_json:
        resolved = pipeline.settings.model_dump(mode="json")
        print(json.dumps({"stage": "plan", "plan": plan, "config": resolved}, sort_keys=True), flush=True)
        return
    print(_yaml(pipeline.settings))
    for stage, action in plan.items():
        print(f"# {stage}: {action}")


def _print_record(record: "Record", *, as_json: bool) -> None:
    if as_json:
        print(record.to_json(), flush=True)


def _print_completion(pipeline: "Pipeline", record: "Record", *, prompt: str | None, as_json: bool) -> None:
    asked, text = pipeline.complete(record, prompt=prompt)
    out = Console(file=sys.stderr if as_json else sys.stdout, highlight=False)
    out.print(Text.assemble("\n", (asked, "dim"), text), soft_wrap=True)


def _yaml(settings: Any) -> str:
    import yaml

    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True).rstrip()


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUTF8", "1")
    main()
