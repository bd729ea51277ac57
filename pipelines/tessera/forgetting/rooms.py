"""What each room does about erased rows: a new version without them, then the files of older ones; and who saw them."""

from collections.abc import Sequence
from pathlib import Path

from tessera import erasures, lineage, registry, tracking
from tessera.forgetting import local_log
from tessera.forgetting.needles import Needles
from tessera.forgetting.search import Holdings
from tessera.forgetting.target import Target
from tessera.garbage import OURS, SPARK_SCRATCH, Garbage, remove, size_of
from tessera.home import Home
from tessera.lineage import Record, TableVersion
from tessera.prepare import forget as documents
from tessera.progress import Tell
from tessera.registry import RegisteredVersion
from tessera.serve import forget as answers
from tessera.settings import Settings
from tessera.shard import forget as shards
from tessera.train.forget import RunSeen

ROWS_TAG, AT_TAG = "tessera.erased_rows", "tessera.erased_at"


def publish(home: Home, *, tell: Tell) -> tuple[Record, ...]:
    """A version of everything without all rows that were ever erased."""
    erased = erasures.read(home)
    tell("documents")
    found: list[Record | None] = [documents.publish_without(home, erased=erased)]
    newest = documents.newest(home)

    def replaces(version: TableVersion) -> bool:
        return newest is not None and documents.replaces(newest, documents=version, home=home)

    for name in shards.set_names(home):
        tell(f"shard set {name}")
        found.append(shards.publish_without(home, name=name, erased=erased, documents=newest, replaces=replaces))
    tell("answers")
    found.append(answers.publish_without(home, erased=erased))
    return tuple(record for record in found if record is not None)


def remove_files(home: Home, *, target: Target, before: Holdings, needles: Needles) -> int:
    """Removes the files of older versions but documents', caches, spill, and what rows left in a source; how many."""
    erased = erasures.read(home)
    removed = [file for name in _folders(home.shards) for file in shards.remove_files(home, name=name, erased=erased)]
    removed += answers.remove_files(home, erased=erased)
    removed += _scratch(home)
    for source in target.sources:
        live = target.live.get(source.settings.name)
        if live is not None and not source.in_catalog and "://" not in source.location:
            removed += local_log.remove_dead(Path(source.location), holding=before.files, live=live)
            local_log.scrub(Path(source.location), holding=before.files, needles=needles)
    return len(removed)


def remove_documents(home: Home) -> int:
    """Removes documents' files of older versions, out of which a search learns what to look for; how many."""
    return len(documents.remove_files(home, erased=erasures.read(home)))


def _folders(path: Path) -> list[str]:
    return sorted(one.name for one in path.glob("*") if one.is_dir())


def _scratch(home: Home) -> list[Path]:
    """Removes what may be a copy of any text: no session works in this home now."""
    found = [path for pattern in SPARK_SCRATCH for path in home.spill.glob(pattern)] + list(home.cache.glob(OURS))
    found += [path for path in (home.cache / "petastorm",) if path.exists()]
    remove([Garbage("spill", path, "may hold erased text", size_of(path)) for path in found])
    return found


def models(home: Home, *, settings: Settings, saw: Sequence[RunSeen], tag: bool) -> tuple[str, ...]:
    """The registered versions of the runs that saw rows, tagged with how many and when."""
    counts = {one.run_id: len(one.rows) for one in saw if one.run_id and one.rows}
    uris = tracking.uris(settings.tracking, home=home)
    local = uris["tracking_uri"].startswith("sqlite:///") and uris["registry_uri"] == uris["tracking_uri"]
    if not counts or (local and not Path(uris["tracking_uri"].removeprefix("sqlite:///")).exists()):
        return ()
    found = registry.versions_of_runs(uris["tracking_uri"], run_ids=counts, registry_uri=uris["registry_uri"])
    for version in found if tag else ():
        _tag(version, rows=counts[version.run_id], uris=uris)
    return tuple(version.uri for version in found)


def _tag(version: RegisteredVersion, *, rows: int, uris: tracking.Addresses) -> None:
    tags = {ROWS_TAG: str(rows), AT_TAG: lineage.now()}
    registry.tag_version(uris["tracking_uri"], version=version, tags=tags, registry_uri=uris["registry_uri"])
