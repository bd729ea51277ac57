"""What `tessera forget` prints: holders before and after, runs and models; ids and counts only."""

import dataclasses
import json

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from tessera.forgetting.forget import Forgotten


def show(done: Forgotten, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(to_dict(done), sort_keys=True), flush=True)
    else:
        Console(highlight=False).print(render(done))


def to_dict(done: Forgotten) -> dict[str, object]:
    """As JSON has it."""
    values = dataclasses.asdict(dataclasses.replace(done, records=()))
    versions = [{"stage": one.stage, "fingerprint": one.fingerprint} for one in done.records]
    return {"stage": "forget", **values, "records": versions}


def render(done: Forgotten) -> RenderableType:
    """Fit for 80 columns."""
    shown = Table(box=None, pad_edge=False)
    shown.add_column("files that hold the text", overflow="fold")
    shown.add_column("before", justify="right")
    if not done.dry_run:
        shown.add_column("after", justify="right")
    for one in done.holders:
        shown.add_row(one.place, *map(str, (one.before,) if done.dry_run else (one.before, one.after)))
    blind = done.unseen + len(done.unsearchable) == len(done.doc_ids)
    nothing = "nothing could be searched for" if blind else "no file holds text of these rows"
    parts: list[RenderableType] = [shown if done.holders else Text(nothing)]
    for run in done.runs:
        what = (
            f"saw {len(run.rows)} of them, first in step {min(row.first_step for row in run.rows)}"
            if run.rows
            else ("may have seen them: its shard set is gone")
        )
        parts.append(Text(f"run {run.run} {what}; its weights are what they were"))
    parts += [Text(f"model {uri} came out of such a run") for uri in done.models]
    if done.unsearchable:
        parts.append(Text(f"{len(done.unsearchable)} rows have no text of their own that could be searched for"))
    if done.unseen:
        parts.append(Text(f"of {done.unseen} rows no text is left anywhere to search for"))
    last = "nothing was changed" if done.dry_run else f"{done.removed_files} files removed"
    parts.append(Text(f"{len(done.doc_ids)} rows, {done.searched_files:,} files searched, {last}"))
    return Group(*parts)
