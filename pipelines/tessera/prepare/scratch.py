"""Frames that Spark is to work out once: written as Parquet into the home's cache, and gone when the stage ends.

Unlike a cached frame, one that is read back has a plan of one step, so that plans do not grow with what they are built
on; and it outlives an executor. Only hashes and counts are kept this way, never text.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count

from pyspark.sql import DataFrame

from tessera.home import Home
from tessera.spark_tables import parquet

Keep = Callable[[DataFrame], DataFrame]
"""Gives the same frame, worked out."""


@contextmanager
def scratch(home: Home, *, name: str) -> Iterator[Keep]:
    """A function that keeps frames while this lasts.

    Args:
        name: of the stage run; no two of one name at a time.
    """
    folder = home.cache / f"prepare-{name}"
    numbers = count()

    def keep(frame: DataFrame) -> DataFrame:
        path = str(folder / str(next(numbers)))
        frame.write.parquet(path)
        return parquet(frame.sparkSession, path, schema=frame.schema)

    try:
        yield keep
    finally:
        shutil.rmtree(folder, ignore_errors=True)
