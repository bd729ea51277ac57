"""Shard files that no version of a set's manifest names: of writers that were killed, and of twins that lost."""

from collections.abc import Iterator

from tessera import tables
from tessera.errors import SourceError
from tessera.garbage import Garbage
from tessera.home import Home
from tessera.shard.manifest import manifest_path
from tessera.shard.run_manifest import SPLITS


def garbage(home: Home, *, before: float) -> Iterator[Garbage]:
    """What `tessera gc` may take from the shard sets; `before` is in Unix seconds.

    Time travel goes on: a file is needed as long as one readable version of the manifest names it.
    """
    for folder in sorted(home.shards.glob("*")):
        named = _named(home, set_name=folder.name)
        for split in SPLITS:
            for file in sorted((folder / split).glob("*")):
                in_use = f"{split}/{file.name}" in named or file.name == "index.json"
                if not in_use and file.stat().st_mtime < before:
                    yield Garbage("shards", file, "no manifest names it", file.stat().st_size)


def _named(home: Home, *, set_name: str) -> set[str]:
    """The files, relative to the set's folder, of all versions that can still be read."""
    path = manifest_path(home, name=set_name)
    if not tables.exists(path):
        return set()
    table = tables.open_table(path)
    named: set[str] = set()
    for entry in table.history():
        try:
            rows = tables.read(path, version=int(entry["version"]), columns=["file"])
            named.update(rows["file"].to_pylist())
        except (SourceError, OSError):
            if int(entry["version"]) == table.version():
                raise
            # an older one was vacuumed: nobody can read it any more
    return named
