"""What the log of a Delta table says, read as the JSON files that it is: a commit's own words, versions, and files.

delta-rs gives a snapshot at a version in some 30 ms and a history by reading all of the log. One commit is one small
file, and what 300 versions name is one pass over 300 of them (0.1 s). For our own tables only: no deletion vectors, no
column mapping, and every path is relative to the table.
"""

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from tessera import tables
from tessera.errors import SourceError

DIGITS = 20


def commits(table: Path) -> list[int]:
    """Versions whose commit files are there, ascending. Delta may have removed those of old ones."""
    names = (file.name.removesuffix(".json") for file in (table / "_delta_log").glob("*.json"))
    return sorted(int(name) for name in names if len(name) == DIGITS and name.isdigit())


def commit_info(table: Path, *, version: int) -> dict[str, Any] | None:
    """The `commitInfo` of a version; None when its commit file is not there, or says nothing of the kind.

    Raises:
        SourceError: the commit file is torn.
    """
    return next((action["commitInfo"] for action in _actions(table, version=version) if "commitInfo" in action), None)


def versions(table: Path) -> range:
    """The versions that the log can still give: all, until Delta removed old commit files after a checkpoint."""
    found = commits(table)
    if not found:
        return range(0)
    first = found[0]
    if first > 0:
        checkpoints = (file.name.split(".")[0] for file in (table / "_delta_log").glob("*.checkpoint*.parquet"))
        first = min((int(number) for number in checkpoints if int(number) >= first - 1), default=found[-1])
    return range(first, found[-1] + 1)


def files(table: Path, *, at: Collection[int]) -> set[str]:
    """The data files, relative to the table, that any of these versions names."""
    wanted = set(at)
    if not wanted:
        return set()
    first = versions(table)[0]
    active = _snapshot(table, version=first) if first else set()
    named = set(active) if first in wanted else set()
    for version in range(first + 1 if first else 0, max(wanted) + 1):
        for action in _actions(table, version=version):
            if "add" in action:
                active.add(unquote(action["add"]["path"]))
            elif "remove" in action:
                active.discard(unquote(action["remove"]["path"]))
        if version in wanted:
            named |= active
    return named


def _snapshot(table: Path, *, version: int) -> set[str]:
    """The files of one version, as delta-rs finds them, from a checkpoint."""
    actions = pa.table(tables.open_table(table, version=version).get_add_actions(flatten=True))
    return {unquote(file) for file in actions["path"].to_pylist()}


def _actions(table: Path, *, version: int) -> Iterator[dict[str, Any]]:
    commit = table / "_delta_log" / f"{version:0{DIGITS}}.json"
    try:
        with commit.open(encoding="utf-8") as lines:
            yield from (json.loads(line) for line in lines if line.strip())
    except FileNotFoundError:
        return
    except ValueError:
        raise SourceError(f"{commit} is torn: a line of it is not JSON; restore the file") from None
