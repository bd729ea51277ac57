"""What `tessera reproduce` prints: what came out as recorded; versions, counts and hashes only."""

import dataclasses
import json

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from tessera.reproducing.reproduce import Reproduced


def show(found: Reproduced, *, as_json: bool) -> None:
    if as_json:
        told = {"stage": "reproduce", "reproduced": not found.differing, **dataclasses.asdict(found)}
        print(json.dumps(told, sort_keys=True), flush=True)
    else:
        Console(highlight=False).print(render(found))


def render(found: Reproduced) -> RenderableType:
    """Fit for 80 columns."""
    shown = Table(box=None, show_header=False, pad_edge=False)
    shown.add_column(style="bold", no_wrap=True)
    shown.add_column(no_wrap=True)
    shown.add_column(overflow="fold")
    for one in found.compared:
        shown.add_row(one.what, one.verdict, one.detail)
    left_out = [one.what for one in found.compared if one.verdict == "not comparable"]
    what = f"all but {' and '.join(left_out)}" if left_out else "everything"
    last = f"{', '.join(found.differing)} differ" if found.differing else f"{what} came out as recorded"
    return Group(shown, Text(f"{found.model}, rebuilt in {found.seconds:,.0f} s: {last}"))
