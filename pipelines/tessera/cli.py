"""`tessera`: one sub-command a room, thin over the pipeline.

Records go to stdout (with `--json` as one line, the last); progress, tables' frames and errors go to stderr. Exit
status: 0 done, 2 the user's input is wrong, 1 anything else. Nothing heavy is imported before it is needed.
"""

import dataclasses
import json
import os
import sys
from typing import Annotated

import typer
from rich.console import Console

from tessera import __version__, evaluate_commands
from tessera.audit_commands import app as audit_app
from tessera.command import (
    Assignments,
    DryRun,
    Fresh,
    Json,
    Target,
    Traceback,
    as_yaml,
    guarded,
    opened,
    plain,
    print_completion,
    print_plan,
    print_record,
    run_stage,
)
from tessera.home import Home
from tessera.shard_commands import app as shard_app

app = typer.Typer(
    help="Train, improve, monitor and serve open language models on your own Delta tables.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Port = Annotated[int | None, typer.Option(help="Answer HTTP on this loopback port; 0 takes a free one.")]
KeySource = Annotated[str | None, typer.Option(help="The source whose row keys --id and --keys are.")]
RowKeys = Annotated[
    list[str] | None, typer.Option("--id", "--row", help="A row key; of several columns a=1,b=2. May be given again.")
]
KeyTable = Annotated[str | None, typer.Option(help="A Delta table's folder with the key columns.")]
DocIds = Annotated[list[str] | None, typer.Option(help="A document's id; may be given again.")]
Prompt = Annotated[str | None, typer.Option(help="What to ask the model, instead of serve.prompt.")]

HELP = {
    "sample": "Write the sample table: the docs of installed Python packages.",
    "prepare": "Delta tables to governed documents.",
}


def main() -> None:
    """The console script."""
    app()


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    pass


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
        run_stage(
            stage, target=target, assignments=assignments, dry_run=dry_run, as_json=as_json, fresh=fresh,
            traceback=traceback,
        )  # fmt: skip

    app.command(stage, help=HELP[stage])(command)


for _stage in ("sample", "prepare"):
    _stage_command(_stage)


@app.command()
def train(
    target: Target = "local",
    assignments: Assignments = None,
    resume: Annotated[str | None, typer.Option(help="RUN or RUN@STEP: its settings, and go on from there.")] = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    fresh: Fresh = False,
    traceback: Traceback = False,
) -> None:
    """Shards to a trained checkpoint.

    The same command goes on with a run that was stopped. With --resume and --set train.steps=N a finished one goes on.
    """
    run_stage(
        "train", target=target, assignments=assignments, dry_run=dry_run, as_json=as_json, fresh=fresh,
        traceback=traceback, resume=resume,
    )  # fmt: skip


evaluate_commands.register(app)
app.add_typer(shard_app, name="shard")
app.add_typer(audit_app, name="audit")


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
    """Register the model and ask it once.

    Its aliases move; with --port it answers HTTP until it is stopped.
    """

    def work() -> None:
        with opened(target, assignments, fresh=fresh) as pipeline:
            if dry_run:
                print_plan(pipeline, as_json=as_json)
                return
            record = pipeline.do("serve")
            if port is not None or pipeline.settings.serve.port is not None:
                pipeline.listen(record, port=port)
                return
            print_completion(pipeline, record, prompt=prompt, as_json=as_json)
            print_record(record, as_json=as_json)

    guarded(work, show=traceback)


@app.command()
def score(
    source: Annotated[str | None, typer.Option(help="Table of the home, folder, or catalog.schema.name.")] = None,
    prompt: Annotated[str | None, typer.Option(help='What a row is asked: "Summarise: {body}".')] = None,
    key: Annotated[list[str] | None, typer.Option("--id", help="Column of the row key; may be given again.")] = None,
    model: Annotated[str | None, typer.Option(help="models:/NAME@ALIAS or models:/NAME/VERSION.")] = None,
    version: Annotated[int | None, typer.Option(help="Of the table; the latest without it.")] = None,
    limit: Annotated[int | None, typer.Option(help="Answer at most so many rows.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Tokens of an answer.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the draws.")] = None,
    target: Target = "local",
    assignments: Assignments = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    fresh: Fresh = False,
    traceback: Traceback = False,
) -> None:
    """Answer the rows of a table in Spark, each once.

    Only rows that this model version has not answered, into tables/answers; the model is the champion by default.
    """
    import yaml

    given = {
        "source": source, "prompt": prompt, "id": key, "model": model, "version": version, "limit": limit,
        "max_tokens": max_tokens, "temperature": temperature, "seed": seed,
    }  # fmt: skip
    asked = [f"score.{name}={yaml.safe_dump(value)}" for name, value in given.items() if value is not None]

    def work() -> None:
        with opened(target, [*(assignments or []), *asked], fresh=fresh) as pipeline:
            if dry_run:
                print_plan(pipeline, stages=("score",), as_json=as_json)
                return
            print_record(pipeline.do("score"), as_json=as_json)

    guarded(work, show=traceback)


@app.command()
def run(
    target: Target = "local",
    assignments: Assignments = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    fresh: Fresh = False,
    traceback: Traceback = False,
) -> None:
    """The whole line, from the table to a model that answers."""

    def work() -> None:
        with opened(target, assignments, fresh=fresh) as pipeline:
            if dry_run:
                print_plan(pipeline, as_json=as_json)
                return
            from tessera import report

            records = pipeline.run()
            print_completion(pipeline, records[-1], prompt=None, as_json=as_json)
            out = Console(file=sys.stderr if as_json else sys.stdout, highlight=False)
            out.print(report.table(records, mlflow_command=pipeline.mlflow_command()))
            if as_json:
                print(json.dumps(pipeline.summary(records), sort_keys=True), flush=True)

    guarded(work, show=traceback)


@app.command()
def history(target: Target = "local", as_json: Json = False, traceback: Traceback = False) -> None:
    """The ledger: every stage run, what went in and what came out."""

    def work() -> None:
        with opened(target, None) as pipeline:
            rows = pipeline.history()
            if as_json:
                print(json.dumps(rows, sort_keys=True), flush=True)
                return
            from tessera import report

            Console(highlight=False).print(report.history(rows))

    guarded(work, show=traceback)


@app.command()
def explore(
    target: Target = "local", assignments: Assignments = None, as_json: Json = False, traceback: Traceback = False
) -> None:
    """Write the map of all runs: quality against time.

    One page that needs no network, kept in MLflow too.
    """

    def work() -> None:
        with opened(target, assignments) as pipeline:
            made = pipeline.explore()
            if as_json:
                shown = {"stage": "explore", "path": str(made.path), "runs": made.num_runs, "front": made.num_front}
                print(json.dumps({**shown, "left_out": made.num_left_out, "run_id": made.run_id}, sort_keys=True))
                return
            print(made.path)
            for line in made.lines():
                print(line)

    guarded(work, show=traceback)


@app.command()
def status(
    target: Target = "local", assignments: Assignments = None, as_json: Json = False, traceback: Traceback = False
) -> None:
    """What is stale against the sources, what runs, what failed."""

    def work() -> None:
        with opened(target, assignments) as pipeline:
            found = pipeline.status()
            if as_json:
                print(json.dumps(dataclasses.asdict(found), sort_keys=True, default=plain), flush=True)
                return
            from tessera import report

            Console(highlight=False).print(report.status(found))

    guarded(work, show=traceback)


@app.command()
def gc(
    target: Target = "local",
    assignments: Assignments = None,
    delete: Annotated[bool, typer.Option("--delete", help="Remove what is listed; without it nothing is.")] = False,
    older_than: Annotated[float, typer.Option(min=0, help="Hours; what is younger is left alone.")] = 24.0,
    as_json: Json = False,
    traceback: Traceback = False,
) -> None:
    """List what nothing needs; with --delete remove it.

    Shard files that no version names, old checkpoints, caches, spill: each with its size.
    """

    def work() -> None:
        from tessera import garbage

        with opened(target, assignments) as pipeline:
            found = pipeline.garbage(older_than_hours=older_than)
            freed = garbage.remove(found) if delete else None
            if as_json:
                listed = [{**dataclasses.asdict(one), "path": pipeline.home.relative(one.path)} for one in found]
                print(json.dumps({"freed_bytes": freed, "garbage": listed}, sort_keys=True), flush=True)
                return
            from tessera import report

            Console(highlight=False).print(report.garbage(found, home=pipeline.home, freed=freed))

    guarded(work, show=traceback)


@app.command()
def forget(
    target: Target = "local",
    assignments: Assignments = None,
    source: KeySource = None,
    key: RowKeys = None,
    keys: KeyTable = None,
    doc_id: DocIds = None,
    why: Annotated[str, typer.Option(help="Kept for ever, so no personal data.")] = "",
    delete_source: Annotated[bool, typer.Option("--delete-source", help="Delete the rows in the source too.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Search and list; change nothing.")] = False,
    as_json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Erase rows from every room, and prove it by a search.

    From documents, shard sets, answers and caches; runs and models that saw them are listed and tagged.
    """

    def work() -> None:
        with opened(target, assignments) as pipeline:
            from tessera.errors import ForgetFailed
            from tessera.forgetting import report
            from tessera.forgetting.forget import Forgotten
            from tessera.forgetting.target import Wanted

            wanted = Wanted(
                source=source, ids=tuple(key or ()), keys=keys, doc_ids=tuple(doc_id or ()), why=why,
                delete_source=delete_source,
            )  # fmt: skip
            try:
                report.show(pipeline.forget(wanted, dry_run=dry_run), as_json=as_json)
            except ForgetFailed as error:
                if isinstance(error.result, Forgotten):
                    report.show(error.result, as_json=as_json)
                raise

    guarded(work, show=traceback)


@app.command()
def lineage(
    target: Target = "local",
    assignments: Assignments = None,
    source: KeySource = None,
    key: RowKeys = None,
    keys: KeyTable = None,
    doc_id: DocIds = None,
    as_json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Tell which runs and models were trained on rows, how often, and since which step."""

    def work() -> None:
        with opened(target, assignments) as pipeline:
            from tessera import row_lineage
            from tessera.forgetting.target import Wanted

            wanted = Wanted(source=source, ids=tuple(key or ()), keys=keys, doc_ids=tuple(doc_id or ()))
            row_lineage.show(*pipeline.trained_on(wanted), as_json=as_json)

    guarded(work, show=traceback)


@app.command()
def reproduce(
    model: Annotated[str, typer.Argument(help="models:/NAME/VERSION or models:/NAME@ALIAS.")],
    target: Target = "local",
    assignments: Assignments = None,
    from_documents: Annotated[
        bool, typer.Option("--from-documents", help="Do not read the sources; begin at the documents.")
    ] = False,
    as_json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Rebuild a model version from its record, and compare.

    Documents, tokenizer, shards and, on as many ranks, weights; nothing of the rebuild is kept.
    """

    def work() -> None:
        with opened(target, assignments) as pipeline:
            found = pipeline.reproduce(model, from_documents=from_documents)
            from tessera.reproducing import report
            from tessera.reproducing.reproduce import refuse_differences

            report.show(found, as_json=as_json)
            refuse_differences(found)

    guarded(work, show=traceback)


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
            print(as_yaml(load_settings(target, assignments=assignments or ())))

    guarded(work, show=traceback)


@app.command()
def doctor(traceback: Traceback = False) -> None:
    """Check Java, jars, versions, disk, GPUs: ok, or what to do."""

    def work() -> None:
        from tessera import doctor as checks

        findings = checks.examine(Home.from_environment())
        for finding in findings:
            print(finding)
        if not all(finding.ok for finding in findings):
            raise typer.Exit(1)

    guarded(work, show=traceback)


@app.command()
def jars(
    archive: Annotated[bool, typer.Option("--archive", help="Also note which classes Spark loads (200 MB).")] = False,
    traceback: Traceback = False,
) -> None:
    """Fetch the Delta jars, once: no later start of Spark asks the network.

    With --archive, each later start takes half the time.
    """

    def work() -> None:
        from tessera import spark

        for file in spark.fetch_jars():
            print(file)
        if archive:
            from tessera import class_archive

            print(class_archive.make())

    guarded(work, show=traceback)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUTF8", "1")
    main()
