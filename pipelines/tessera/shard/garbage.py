"""Files of shard sets that no retained version of a set names: of killed writers, of twins that lost, of old versions.

Finding costs one pass over each set's log and a read of its manifest's files.
"""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from tessera import publish, tables
from tessera.errors import ShardSetError
from tessera.garbage import Garbage, newest_change, size_of
from tessera.home import Home
from tessera.lineage import ShardRecord
from tessera.publish import Retention
from tessera.shard.manifest import manifest_path, spans_path
from tessera.shard.run_manifest import SPLITS, SetInfo, read_run_manifest

KEEP_ALL = Retention()


def garbage(home: Home, *, before: float, retention: Retention = KEEP_ALL) -> Iterator[Garbage]:
    """What `tessera gc` may take from the shard sets; `before` is in Unix seconds.

    By default time travel goes on: a file is needed as long as one readable version of the manifest names it. A version
    outside `retention` protects its files only while a run of this home was given it.
    """
    for folder in sorted(home.shards.glob("*")):
        path = manifest_path(home, name=folder.name)
        versions = kept_versions(home, name=folder.name, retention=retention)
        names = publish.named(path, column="file", versions=versions)
        for split in SPLITS:
            in_use = {Path(name).name for name in names if name.startswith(f"{split}/")} | {"index.json"}
            yield from _found(publish.unnamed(folder / split, names=in_use, before=before), why="no manifest names it")
        why = "of a version that is not kept, or of a writer that was killed"
        yield from _found(publish.orphans(path, versions=versions, before=before), why=why)
        side = _side_versions(home, name=folder.name, versions=versions)
        yield from _found(publish.orphans(spans_path(home, name=folder.name), versions=side, before=before), why=why)
    for folder in sorted(home.tokenizers.glob(".*")):
        if newest_change(folder) < before:
            yield Garbage("shards", folder, "a tokenizer that was never finished", size_of(folder))


def kept_versions(home: Home, *, name: str, retention: Retention) -> set[int]:
    """The versions of a set whose files are kept; empty for a set that was never published."""
    path = manifest_path(home, name=name)
    if not tables.exists(path):
        return set()
    return publish.retained(path, retention=retention, pinned=_given_to_runs(home, name=name))


def _given_to_runs(home: Home, *, name: str) -> set[int]:
    """The versions of a set that runs of this home were given: these may be resumed, scored, asked for their rows."""
    versions = set()
    for manifest in home.runs.glob("*/shards.arrow"):
        with suppress(ShardSetError):  # a run whose manifest is damaged cannot go on with it
            info = SetInfo.from_metadata(read_run_manifest(manifest).schema.metadata)
            if info.name == name:
                versions.add(info.version)
    return versions


def _side_versions(home: Home, *, name: str, versions: set[int]) -> set[int]:
    """Versions of the side table that these of the manifest pin, and its newest: the next writer begins there."""
    path = spans_path(home, name=name)
    if not tables.exists(path):
        return set()
    found = (publish.read_record(manifest_path(home, name=name), version=version) for version in versions)
    pinned = {ShardRecord.model_validate(record).spans.version for record in found if record}
    return pinned | {tables.open_table(path).version()}


def _found(files: Iterator[Path], *, why: str) -> Iterator[Garbage]:
    return (Garbage("shards", file, why, file.stat().st_size) for file in files)
