"""Rebuilds a registered model version from its record, beside what is there, and says whether the same comes out.

The rebuild lies in a home of its own below the home's cache and is removed at the end, whatever happens: it holds row
text. Its name is one that `gc` and `forget` take when a process was killed. MLflow's store of the rebuild lies in it
too; nothing is registered, evaluated or written into the ledger, and who read the sources is in `tables/audit`.

Each room is held against its own inputs, as they were recorded:

* documents: all rows of the sources at their versions are judged anew, by the settings that the run keeps, without what
  was erased until now. What comes out must be the recorded documents, as a set; not their `added`, which is the history
  of the increments that they came by.
* tokenizer: trained again on the documents of the version that trained it; the one that was kept is what is used.
* shards: written whole from the recorded documents version itself, whose `added` decides the cells. So a set that came
  about by increments, erasures and compactions gives the files of one that never knew them.
* weights: trained anew on those shards where this can be the same to the last bit: with as many ranks, threads and
  sequences at once, and versions, as the checkpoint names. How it is carried out otherwise is today's configuration.

Costs what the line cost, without evaluation; what is gone is said before Spark starts.
"""

import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tessera import lineage, tasks
from tessera.errors import ReproductionFailed
from tessera.home import Home
from tessera.progress import Tell, silent
from tessera.reproducing import record
from tessera.reproducing.rebuild import (
    Compared,
    Work,
    compare_documents,
    compare_shards,
    compare_tokenizer,
    compare_weights,
)
from tessera.results import Results
from tessera.settings import Settings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

FOLDER = "prepare-reproduced-{}"
"""In the cache, where `gc` and `forget` take what begins like this."""


@dataclass(frozen=True)
class Reproduced:
    """What came of a rebuild."""

    model: str
    run: str
    """The run folder that the model came out of, relative to the home."""
    compared: tuple[Compared, ...]
    code: str
    """The commit that trained the model."""
    code_now: str
    seconds: float

    @property
    def differing(self) -> tuple[str, ...]:
        return tuple(one.what for one in self.compared if one.verdict == "differs")


@tasks.told
def reproduce(
    home: Home, *, model: str, settings: Settings, results: Results, spark: "Callable[[], SparkSession]",
    from_documents: bool = False, tell: Tell = silent,
) -> Reproduced:  # fmt: skip
    """Rebuilds `models:/NAME/VERSION` or `models:/NAME@ALIAS`, and compares.

    Args:
        settings: today's; of them, what cannot change an output: Spark, tracking, and how ranks are run.
        from_documents: do not read the sources, of which only the documents may be left.

    Raises:
        ModelError: no such version, or it was not registered from this home.
        SourceError: a table cannot be read any more at the version that is wanted; says which.
        UserError: rows were erased since, or records are gone.
    """
    began = time.monotonic()
    tell("reading the record")
    recorded = record.find(home, model=model, settings=settings, results=results)
    record.refuse_gone(home, recorded)
    if from_documents:
        asked: record.Judging | record.NotAsked = record.NotAsked("the sources were not asked for")
    else:
        asked = record.judging(home, recorded, spark=spark)
    tell("starting Spark")
    session = spark()
    with _passing_home(home) as rebuilt:
        work = Work(home=home, rebuilt=rebuilt, recorded=recorded, settings=settings, spark=session, tell=tell)
        documents, tokenizer = compare_documents(work, asked), compare_tokenizer(work)
        made, shards = compare_shards(work)
        weights = compare_weights(work, made, shards=shards)
    return Reproduced(
        model=recorded.model,
        run=recorded.train.run,
        compared=(documents, tokenizer, shards, weights),
        code=recorded.train.code,
        code_now=lineage.code_version(),
        seconds=round(time.monotonic() - began, 3),
    )


def refuse_differences(found: Reproduced) -> None:
    """Raises ReproductionFailed when something came out otherwise."""
    if found.differing:
        raise ReproductionFailed(
            f"{found.model} does not come out of its record: {', '.join(found.differing)} differ. What went in is what "
            f"was recorded, so look at code and machine: it was made by {found.code}, this is {found.code_now}"
        )


@contextmanager
def _passing_home(home: Home) -> Iterator[Home]:
    folder = home.cache / FOLDER.format(uuid.uuid4().hex[:12])
    folder.mkdir(parents=True)
    try:
        yield Home(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
