"""Frames that Spark is to work out once: written as Parquet into the home, and gone when the stage ends.

Unlike a cached frame, one that is read back has a plan of one step, so that plans do not grow with what they are built
on; it outlives an executor; and a row of 200 MB needs a third of the memory.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count

from pyspark.sql import DataFrame

from tessera.home import Home
from tessera.spark_tables import parquet

Keep = Callable[[DataFrame], DataFrame]
"""Gives the same frame, worked out."""


@contextmanager
def scratch(home: Home, *, name: str) -> Iterator[tuple[Keep, Keep]]:
    """Two functions that keep frames while this lasts: one for hashes and counts, and one for text.

    What a killed one leaves, text too, is taken by `gc` and by `forget`.

    Args:
        name: of the stage run; no two of one name at a time.
    """
    folder = home.cache / f"prepare-{name}"
    numbers = count()

    def keep(frame: DataFrame, *, dictionaries: bool) -> DataFrame:
        path = str(folder / str(next(numbers)))
        frame.write.option("parquet.enable.dictionary", str(dictionaries).lower()).parquet(path)
        return parquet(frame.sparkSession, path, schema=frame.schema)

    try:
        yield partial(keep, dictionaries=True), partial(keep, dictionaries=False)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
