"""`tessera audit`: the entries of the audit table, and whether they are all there and unchanged.

Thin over `audit`. Both start no JVM, need no configuration and change nothing; the home is TESSERA_HOME's.
"""

import dataclasses
import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from tessera.command import Json, Traceback, guarded, plain
from tessera.errors import ConfigError
from tessera.home import Home

if TYPE_CHECKING:
    from tessera.audit import Audited
    from tessera.lineage import AuditHead

HELP = "Who read what, for which purpose; with verify, whether the entries were tampered with."

app = typer.Typer(help=HELP, invoke_without_command=True, rich_markup_mode=None)


@app.callback()
def audit(context: typer.Context, as_json: Json = False, traceback: Traceback = False) -> None:
    if context.invoked_subcommand is not None:
        if as_json or traceback:
            raise typer.BadParameter(f"options go behind {context.invoked_subcommand}, not before it")
        return

    def work() -> None:
        from tessera import audit as table

        found = table.entries(Home.from_environment())
        if as_json:
            print(json.dumps(found, sort_keys=True), flush=True)
            return
        Console(highlight=False).print(_listed(found))

    guarded(work, show=traceback)


@app.command()
def verify(
    head: Annotated[
        list[str] | None,
        typer.Option(help="SEQ:HASH, a head that was kept elsewhere; may be given again.", show_default=False),
    ] = None,
    keyed_from: Annotated[int, typer.Option(min=0, help="The first entry that must have a mac.")] = 0,
    as_json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Compare all entries with their hashes, macs and heads.

    The heads are those of the records of documents and shard sets; macs need TESSERA_AUDIT_KEY. Leaves with 1 if
    anything is wrong.
    """

    def work() -> None:
        from tessera import audit as table

        home = Home.from_environment()
        kept = [_head(one) for one in head or ()]
        found = table.verify(home, heads=[*table.recorded_heads(home), *kept], keyed_from=keyed_from)
        if as_json:
            print(json.dumps(dataclasses.asdict(found), sort_keys=True, default=plain), flush=True)
        else:
            out = Console(highlight=False)
            out.print(_verified(found, keyed=bool(os.environ.get(table.KEY))))
            if found.head and not found.problems:
                out.print(f"keep this head elsewhere:\n{found.head.seq}:{found.head.hash}", soft_wrap=True)
        if found.problems:
            raise typer.Exit(1)

    guarded(work, show=traceback)


def _head(given: str) -> "AuditHead":
    from tessera.lineage import AuditHead

    seq, colon, digest = given.partition(":")
    if not (colon and seq.isdecimal() and digest):
        raise ConfigError("--head: wanted SEQ:HASH, as tessera audit verify prints it")
    return AuditHead(seq=int(seq), hash=digest)


def _listed(found: Sequence[dict[str, Any]]) -> RenderableType:
    """Three lines an entry, newest last, fit for 60 columns."""
    if not found:
        return Text("no entries yet: every run of prepare adds one")
    grid = Table(box=None, show_header=False, pad_edge=False)
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column(overflow="fold")
    for entry in found:
        grid.add_row(f"{entry['seq']}", _entry(entry))
    return grid


def _entry(entry: dict[str, Any]) -> Text:
    try:
        inputs = ", ".join(f"{one['name']}@{one['version']}" for one in json.loads(entry["inputs"]))
        purpose = "no purpose named" if entry["purpose"] is None else f"for {entry['purpose']}"
        lines = (
            f"{entry['at'][:19].replace('T', ' ')} UTC  {entry['stage']}, by {entry['who']}",
            f"{entry['rows']:,} rows of {inputs} to {entry['output']}, {purpose}",
            f"hash {entry['hash'][:16]}, {'no mac' if entry['mac'] is None else 'with a mac'}",
        )
    except (KeyError, TypeError, ValueError):
        return Text("no entry that Tessera wrote; see tessera audit verify")
    return Text("\n".join(map(_printable, lines)), overflow="fold")


def _verified(found: "Audited", *, keyed: bool) -> RenderableType:
    """What was compared, and every problem."""
    macs = f"macs: {found.macs:,}" if keyed else "no macs, TESSERA_AUDIT_KEY is not set"
    head = Text(f"entries: {found.entries:,}; heads: {found.heads:,}; {macs}")
    if not found.problems:
        return Group(head, Text("all as they were written"))
    problems = (Text(problem, overflow="fold") for problem in found.problems)
    return Group(head, *problems, Text(f"{len(found.problems)} wrong: not what was written; see docs/audit.md"))


def _printable(line: str) -> str:
    """Without what would steer a terminal: names come from the environment."""
    return "".join(letter if letter.isprintable() else "?" for letter in line)
