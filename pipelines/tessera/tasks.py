"""The tasks of a Spark session, classic or of Spark Connect: how many run at once, how many are done, why one failed.

A classic session has a context to ask. Spark Connect has none: there the number is counted by a small job, and the
server reports progress by itself, every two seconds.
"""

import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from tessera import connect, errors
from tessera.errors import Conflict, SetupError, SourceError, StorageFull, TesseraError
from tessera.progress import Tell

if TYPE_CHECKING:
    from pyspark import SparkContext
    from pyspark.sql import SparkSession

Params = ParamSpec("Params")
Result = TypeVar("Result")

MEANINGS: tuple[tuple[str, type[TesseraError], str], ...] = (
    (
        r"FILE_NOT_EXIST|DELTA_FILE_NOT_FOUND|PATH_NOT_FOUND",
        SourceError,
        "the version of the table that is read is no longer readable: a data file of it was removed meanwhile, by a "
        "vacuum or an erasure; read its newest version, or run the stage that writes it again",
    ),
    (
        r"DELTA_CONCURRENT_|DELTA_PROTOCOL_CHANGED|DELTA_METADATA_CHANGED",
        Conflict,
        "another writer committed to the same table at the same time; nothing of this run was published. Run the "
        "command again: it starts from the newest version",
    ),
    (
        r"No space left on device|Disk quota exceeded",
        StorageFull,
        "a disk has no room left: that of the home or of spark.local.dir; free some space, see tessera gc, and run the "
        "command again",
    ),
    (
        r"(?:FAILED_READ_FILE|CANNOT_READ_FILE_FOOTER).*?([^/\s]+\.parquet)",
        SourceError,
        "{} is no whole Parquet file, and the version of the table that is read names it; restore the file, or read "
        "another version",
    ),
)
"""What is found in an error of Spark, and what it means; {} is what the pattern's group found."""

WATCH_SECONDS = 0.5
MAX_PARALLELISM = 2**16
"""Rows of the job that counts: every partition must get one."""


def context_of(spark: "SparkSession") -> "SparkContext | None":
    """The session's context; None over Spark Connect."""
    return getattr(spark, "sparkContext", None)


def parallelism(spark: "SparkSession") -> int:
    """Partitions that Spark makes when nobody says how many: by default one for each core."""
    context = context_of(spark)
    if context is not None:
        return int(context.defaultParallelism)
    numbers = spark.range(MAX_PARALLELISM).selectExpr("spark_partition_id() AS number")
    last = numbers.agg({"number": "max"}).first()
    assert last is not None
    return int(last[0]) + 1


def error_of_worker(error: Exception) -> TesseraError | None:
    """The error of ours that a worker raised, out of the trace that Spark makes of it, or what to say of a server or of
    workers that are not as they must be; None of another."""
    text = str(error)
    if connect.is_gone(error):
        return SetupError("the Spark Connect server answers no more; start it, and run the command again")
    if "No module named 'tessera'" in text:
        return SetupError("Spark's workers have no Tessera: install it, with the extra `spark`, in the Python they run")
    if mismatch := re.search(r"worker has different version: ([\d.]+).* than that in driver:? ([\d.]+)", text):
        return SetupError(f"Spark's workers run Python {mismatch[1]}, this is {mismatch[2]}; use one version for both")
    found = re.search(r"tessera\.errors\.(\w+): (.*)", text)
    kind = getattr(errors, found[1], None) if found else None
    if found and isinstance(kind, type) and issubclass(kind, TesseraError):
        return kind(found[2])
    for pattern, make, meant in MEANINGS:
        if found := re.search(pattern, text):
            return make(meant.format(*found.groups()))
    return None


def told(work: Callable[Params, Result]) -> Callable[Params, Result]:
    """The work of a driver, whose errors are ours wherever Spark's mean something that we know: see MEANINGS.

    Spark's Python client wraps some errors in a class of its own, and gives others as they came from the JVM.
    """

    @wraps(work)
    def tell(*args: Params.args, **kwargs: Params.kwargs) -> Result:
        try:
            return work(*args, **kwargs)
        except TesseraError:
            raise
        except Exception as error:
            if ours := error_of_worker(error):
                raise ours from None
            raise

    return tell


@contextmanager
def watched(spark: "SparkSession", text: str, *, tell: Tell) -> Iterator[None]:
    """Tells how many tasks of the stages at work are done, while the block runs."""
    tell(text)
    context = context_of(spark)
    with _reported(spark, text, tell=tell) if context is None else _asked(context, text, tell=tell):
        yield


@contextmanager
def _asked(context: "SparkContext", text: str, *, tell: Tell) -> Iterator[None]:
    tracker = context.statusTracker()
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(WATCH_SECONDS):
            stages = [info for number in tracker.getActiveStageIds() if (info := tracker.getStageInfo(number))]
            if stages:
                done = sum(stage.numCompletedTasks for stage in stages)
                tell(text, done, sum(stage.numTasks for stage in stages))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


@contextmanager
def _reported(spark: "SparkSession", text: str, *, tell: Tell) -> Iterator[None]:
    def report(*, stages: Iterable[Any] | None, **_: object) -> None:
        at_work = [stage for stage in stages or () if not stage.done]
        if at_work:
            tell(text, sum(stage.num_completed_tasks for stage in at_work), sum(stage.num_tasks for stage in at_work))

    spark.registerProgressHandler(report)
    try:
        yield
    finally:
        spark.removeProgressHandler(report)
