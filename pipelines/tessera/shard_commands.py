"""`tessera shard` and what is done with shard sets beside writing them: import, export, verify, inspect, compact.

Thin over the room, as `cli` is over the pipeline. Verifying, inspecting and exporting start no JVM and change nothing.
"""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tessera.command import (
    Assignments,
    DryRun,
    Fresh,
    Json,
    Target,
    Traceback,
    guarded,
    opened,
    print_record,
    run_stage,
)
from tessera.home import Home
from tessera.progress import Reporter

HELP = "Documents to packed token shards; look at sets, import and export."

app = typer.Typer(help=HELP, invoke_without_command=True, rich_markup_mode=None)

Name = Annotated[str | None, typer.Argument(help="The set; that of the configuration without it.", show_default=False)]
Version = Annotated[int | None, typer.Option(help="Of the set; the newest without it.")]


@app.callback()
def shard(
    context: typer.Context,
    target: Target = "local",
    assignments: Assignments = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    fresh: Fresh = False,
    traceback: Traceback = False,
) -> None:
    if context.invoked_subcommand is not None:
        given = [name for name, value in context.params.items() if value and value != "local"]
        if given:
            raise typer.BadParameter(f"options go behind {context.invoked_subcommand}, not before it")
        return

    run_stage(
        "shard", target=target, assignments=assignments, dry_run=dry_run, as_json=as_json, fresh=fresh,
        traceback=traceback,
    )  # fmt: skip


@app.command()
def compact(
    target: Target = "local", assignments: Assignments = None, as_json: Json = False, traceback: Traceback = False
) -> None:
    """Make one generation of all documents.

    Fewer, fuller files; states of the set's loaders are refused from then on.
    """

    def work() -> None:
        with opened(target, assignments) as pipeline:
            print_record(pipeline.compact(), as_json=as_json)

    guarded(work, show=traceback)


@app.command(name="import")
def import_(
    folder: Annotated[Path, typer.Argument(help="An MDS folder: shards and index.json.")],
    name: Annotated[str, typer.Option(help="Of the set that it becomes.")],
    tokenizer: Annotated[Path | None, typer.Option(help="Folder; needed for tokens, else one is trained.")] = None,
    column: Annotated[str | None, typer.Option(help="Of text or tokens; `tokens`, else `text`.")] = None,
    target: Target = "local",
    assignments: Assignments = None,
    as_json: Json = False,
    fresh: Fresh = False,
    traceback: Traceback = False,
) -> None:
    """Make an MDS folder of others a shard set.

    Text is tokenized and packed like documents; tokens are packed as they are.
    """
    import yaml

    given = {"shard.name": name, "shard.tokenizer.path": None if tokenizer is None else str(tokenizer)}
    asked = [f"{key}={yaml.safe_dump(value)}" for key, value in given.items() if value is not None]

    def work() -> None:
        with opened(target, [*(assignments or []), *asked], fresh=fresh) as pipeline:
            print_record(pipeline.import_shards(folder, column=column), as_json=as_json)

    guarded(work, show=traceback)


@app.command()
def export(
    name: Name = None,
    to: Annotated[Path, typer.Option("--to", help="A new folder.")] = Path("export"),
    version: Version = None,
    compression: Annotated[str | None, typer.Option(help="zstd, gz, bz2, br or snappy, such as zstd:3.")] = None,
    target: Target = "local",
    as_json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Write a set as an MDS folder for other readers.

    Files are linked where that can be, else copied.
    """

    def work() -> None:
        from tessera.shard import export as room

        with Reporter().stage("export") as tell:
            made = room.export(
                Home.from_environment(), name=_name(name, target), to=to, version=version, compression=compression,
                tell=tell,
            )  # fmt: skip
        if as_json:
            print(json.dumps(dataclasses.asdict(made), sort_keys=True), flush=True)
            return
        print(f"{made.files} files of {made.name}@{made.version} in {to}, {made.linked} of them linked")

    guarded(work, show=traceback)


@app.command()
def verify(
    name: Name = None,
    version: Version = None,
    target: Target = "local",
    as_json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Read a whole set and compare all with its manifest.

    Hashes, sizes, counts, token ids, boundaries; names every damaged file, and leaves with 1 if there is one.
    """

    def work() -> None:
        from tessera.shard import verify as room
        from tessera.shard import views

        with Reporter().stage("verify") as tell:
            found = room.verify(Home.from_environment(), name=_name(name, target), version=version, tell=tell)
        if as_json:
            print(json.dumps(dataclasses.asdict(found), sort_keys=True), flush=True)
        else:
            Console(highlight=False).print(views.verified(found))
        if found.damages:
            raise typer.Exit(1)

    guarded(work, show=traceback)


@app.command()
def inspect(
    name: Name = None,
    shard: Annotated[str | None, typer.Option(help="A shard file, or part of its name.")] = None,
    sample: Annotated[int | None, typer.Option(min=0, help="A sample of it, from 0.")] = None,
    text: Annotated[bool, typer.Option("--text", help="Decode the sample's tokens: prints text of rows.")] = False,
    version: Version = None,
    target: Target = "local",
    as_json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Show what a set, a shard file or a sample holds.

    Fill, padding, boundaries of documents, tokens; text with --text only.
    """

    def work() -> None:
        from tessera.errors import ShardSetError
        from tessera.shard import inspect as room
        from tessera.shard import views

        home = Home.from_environment()
        found = room.inspect_set(home, name=_name(name, target), version=version)
        shown: room.SetView | room.FileView | room.SampleView = found
        if sample is not None and shard is None:
            raise ShardSetError("--sample is of a shard file; name it: --shard FILE")
        if text and sample is None:
            raise ShardSetError("--text is of one sample; name it: --shard FILE --sample N")
        if shard is not None:
            file = room.find_file(found, shard)
            if sample is None:
                shown = room.inspect_file(home, found, file)
            else:
                shown = room.inspect_sample(home, found, file, sample=sample, with_text=text)
        if as_json:
            print(json.dumps(room.as_json(shown), sort_keys=True), flush=True)
            return
        Console(highlight=False).print(views.view(shown))

    guarded(work, show=traceback)


def _name(given: str | None, target: str) -> str:
    """The set that is meant: the configuration's when none is named."""
    if given is not None:
        return given
    from tessera.settings import load_settings

    return load_settings(target).shard.name
