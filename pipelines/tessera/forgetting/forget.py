"""Forgets rows in every room, and proves it: a decoding search must find their text before, and nowhere after.

The order is that of safety under a kill at any point. Erasures are recorded first, so that nothing brings the rows
back; then each room publishes a version without them; then files go. Those of the documents go last, and only when
no copy is left in the home: a forget that is run again learns from them what to look for. Every step finds out by
itself whether it is still to be done.

Costs two searches of the home (10 to 15 s a GB each), Spark for the sources, and packing the affected cells again.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tessera import erasures, failpoints, lineage, tables, tracking
from tessera import spark as sessions
from tessera.errors import Conflict, ForgetFailed
from tessera.forgetting import choose, rooms
from tessera.forgetting import target as targets
from tessera.forgetting.needles import Found
from tessera.forgetting.search import Holdings, search
from tessera.forgetting.target import Target, Wanted
from tessera.home import Home
from tessera.lineage import ForgetRecord, Record, TableVersion
from tessera.prepare.sources import Source
from tessera.progress import Tell, silent
from tessera.settings import Settings
from tessera.tables import Ledger
from tessera.train import forget as runs
from tessera.train.forget import RunSeen
from tessera.train.garbage import is_running
from tessera.train.run import RunFolder

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@dataclass(frozen=True)
class Holder:
    """A place that held text of the rows, and how many of its files did and do."""

    place: str
    before: int
    after: int


@dataclass(frozen=True)
class Forgotten:
    """What was found and done."""

    doc_ids: tuple[str, ...]
    holders: tuple[Holder, ...]
    runs: tuple[RunSeen, ...]
    models: tuple[str, ...]
    unsearchable: tuple[str, ...]
    """Rows whose text has no stretch of its own."""
    unseen: int
    """Rows of which no text is left to search for: never prepared, or forgotten before."""
    searched_files: int
    searched_bytes: int
    removed_files: int = 0
    dry_run: bool = False
    records: tuple[Record, ...] = ()
    """Of the new versions, for the ledger."""


def forget(
    home: Home, *, settings: Settings, wanted: Wanted, spark: "Callable[[], SparkSession]", close: Callable[[], None],
    dry_run: bool = False, tell: Tell = silent,
) -> Forgotten:  # fmt: skip
    """Takes rows out of documents, shard sets, answers and caches of a home, and says which runs and models saw them.

    Args:
        close: ends what `spark` started; called before files are searched.
        dry_run: find and list only.

    Raises:
        ConfigError: no row is named, or wrongly.
        SourceError: a source still has a row, and may not be changed.
        Conflict: another session, run or writer is at work in the home.
        ForgetFailed: text is left; all else was done, but with a copy in the home the documents' older files stay.
    """
    target = targets.resolve(home, settings=settings, wanted=wanted, spark=spark, tell=tell)
    targets.refuse_present(target, wanted=wanted, dry_run=dry_run)
    if not dry_run:
        erasures.record(home, pairs=target.pairs, why=wanted.why)
        failpoints.hit("forget.after_erasures")
        for source in target.sources:
            if wanted.delete_source:
                target.live[source.settings.name] = _delete(spark(), source, target)
    close()
    tell("choosing what to look for")
    needles, unsearchable = choose.needles(home, target, dry_run=dry_run)
    tell("searching")
    roots = _roots(home, settings=settings, target=target)
    before = search(roots, needles=needles)
    _refuse_blind(home, before, target=target, unsearchable=unsearchable)
    saw = runs.runs_that_saw(home, erased=erasures.make(target.pairs))
    if dry_run:
        models = rooms.models(home, settings=settings, saw=saw, tag=False)
        return _result(home, target, before, before, saw, models, unsearchable, dry_run=True)
    _refuse_at_work(home, saw)
    records = rooms.publish(home, tell=tell)
    models = rooms.models(home, settings=settings, saw=saw, tag=True)
    failpoints.hit("forget.before_remove")
    tell("removing files")
    removed = rooms.remove_files(home, target=target, before=before, needles=needles)
    tell("searching again")
    after = search(roots, needles=needles)
    if not after.unreadable and not _copies(home, after):
        removed += rooms.remove_documents(home)
        left = search([home.documents], needles=needles)
        outside = {path: found for path, found in after.files.items() if not path.is_relative_to(home.root)}
        after = replace(after, files={**outside, **left.files}, unreadable=left.unreadable)
    done = _result(home, target, before, after, saw, models, unsearchable, removed=removed, records=records)
    if after.files or after.unreadable:
        raise ForgetFailed(_what_is_left(home, after, target=target), result=done)
    return done


def _delete(spark: "SparkSession", source: Source, target: Target) -> set[str]:
    from tessera.prepare import rows

    return rows.delete(spark, source, doc_ids=target.doc_ids)


def _roots(home: Home, *, settings: Settings, target: Target) -> list[Path]:
    """The home, and what is ours or the rows' outside of it on this machine."""
    outside = [Path(one.location) for one in target.sources if not one.in_catalog and "://" not in one.location]
    uri = tracking.tracking_uri(settings.tracking, home=home)
    if uri.startswith("sqlite:///"):
        outside.append(Path(uri.removeprefix("sqlite:///")))
    if settings.tracking.artifacts and "://" not in settings.tracking.artifacts:
        outside.append(Path(settings.tracking.artifacts).absolute())
    return [home.root, *(path for path in outside if path.exists() and not path.is_relative_to(home.root))]


def _refuse_blind(home: Home, before: Holdings, *, target: Target, unsearchable: Sequence[str]) -> None:
    """A search that cannot see what is there proves nothing."""
    looked_for = target.held - set(unsearchable)
    seen = set().union(
        *(numbers for path, numbers in before.files.items() if path.is_relative_to(home.documents)), set()
    )
    if missed := looked_for - {target.doc_ids[number] for number in seen}:
        raise ForgetFailed(
            f"the search does not find {len(missed)} rows in {home.relative(home.documents)}, which holds them, such "
            f"as doc_id {min(missed)}; nothing was removed. This is a fault of Tessera"
        )


def _refuse_at_work(home: Home, saw: Sequence[RunSeen]) -> None:
    if not sessions.let_go(home):
        raise Conflict(
            f"a Spark session of another process works in {home.root}; wait for it, or stop it, then run forget again"
        )
    running = [one.run for one in saw if is_running(RunFolder(home.runs / one.run))]
    if running:
        raise Conflict(f"run {running[0]} is being trained on these rows; stop it, then run forget again")


def _result(
    home: Home, target: Target, before: Holdings, after: Holdings, saw: Sequence[RunSeen], models: tuple[str, ...],
    unsearchable: tuple[str, ...], *, removed: int = 0, records: tuple[Record, ...] = (), dry_run: bool = False,
) -> Forgotten:  # fmt: skip
    counted = [_by_place(home, holdings, target=target) for holdings in (before, after)]
    holders = [
        Holder(place, *(count.get(place, 0) for count in counted)) for place in sorted({**counted[0], **counted[1]})
    ]
    return Forgotten(
        doc_ids=target.doc_ids,
        holders=tuple(holders),
        runs=tuple(saw),
        models=models,
        unsearchable=unsearchable,
        unseen=sum(not texts for texts in target.texts.values()),
        searched_files=after.num_files,
        searched_bytes=after.num_bytes,
        removed_files=removed,
        records=records,
        dry_run=dry_run,
    )


def forget_and_keep(
    home: Home, *, settings: Settings, wanted: Wanted, spark: "Callable[[], SparkSession]", close: Callable[[], None],
    ledger: Ledger, dry_run: bool = False, tell: Tell = silent,
) -> Forgotten:  # fmt: skip
    """`forget`, written into the ledger, also when text is left: the new versions are there all the same."""
    began = time.monotonic()
    try:
        done = forget(home, settings=settings, wanted=wanted, spark=spark, close=close, dry_run=dry_run, tell=tell)
    except ForgetFailed as error:
        if isinstance(error.result, Forgotten):
            keep(home, error.result, ledger=ledger, seconds=time.monotonic() - began)
        raise
    keep(home, done, ledger=ledger, seconds=time.monotonic() - began)
    return done


def keep(home: Home, done: Forgotten, *, ledger: Ledger, seconds: float) -> None:
    """Writes what was done into the ledger: the new versions, so that the next stages find them, and the whole."""
    if done.dry_run:
        return
    for record in done.records:
        ledger.append(record)
    ledger.append(record_of(home, done, seconds=seconds))


def record_of(home: Home, done: Forgotten, *, seconds: float) -> ForgetRecord:
    """What the ledger keeps."""
    path = erasures.path(home)
    return ForgetRecord(
        fingerprint=erasures.read(home).digest,
        seconds=round(seconds, 3),
        code=lineage.code_version(),
        created=lineage.now(),
        rows=len(done.doc_ids),
        holders={one.place: (one.before, one.after) for one in done.holders},
        runs={one.run: len(one.rows) for one in done.runs},
        models=done.models,
        unsearchable=len(done.unsearchable),
        table=TableVersion(name=erasures.TABLE, path=home.relative(path), version=tables.open_table(path).version()),
    )


def _by_place(home: Home, holdings: Holdings, *, target: Target) -> dict[str, int]:
    counts: dict[str, int] = {}
    for path in holdings.files:
        place = place_of(home, path, target=target)
        counts[place] = counts.get(place, 0) + 1
    return counts


def place_of(home: Home, path: Path, *, target: Target) -> str:
    """The folder of the home that a file belongs to, or the source, or the MLflow store."""
    if path.is_relative_to(home.root):
        parts = path.relative_to(home.root).parts
        return "/".join(parts[:2]) if len(parts) > 2 else parts[0]
    for source in target.sources:
        if path.is_relative_to(source.location):
            return f"source {source.settings.name}"
    return "mlflow"


def _what_is_left(home: Home, after: Holdings, *, target: Target) -> str:
    if after.unreadable:
        return (
            f"{len(after.unreadable)} files could not be read, so nobody knows what they hold, such as "
            f"{home.relative(after.unreadable[0])}; make them readable, then run forget again"
        )
    copies = _copies(home, after)
    left = copies or after.files
    places = _by_place(home, replace(after, files=left), target=target)
    listed = ", ".join(f"{place} ({count})" for place, count in sorted(places.items()))
    kept = f", but older files of {home.relative(home.documents)} stay, which say what to look for" if copies else ""
    return (
        f"text of these rows is left in {listed}, such as {home.relative(min(left))}; all else was done{kept}. A "
        "vacuum cleans a source, as does --delete-source; other files, such as exports, are yours to remove. Then run "
        "the same forget again"
    )


def _copies(home: Home, found: Holdings) -> dict[Path, Found]:
    """What is found in the home beside the documents: nobody knows whose it is."""
    return {
        path: numbers
        for path, numbers in found.files.items()
        if path.is_relative_to(home.root) and not path.is_relative_to(home.documents)
    }
