"""A Spark DataFrame as batches: petastorm's converter, its cache in the home and swept.

The DataFrame is written once as Parquet under `cache/petastorm` and read from there as often as wanted. The cache lives
as long as the converter and its readers, until `delete` or the end of a `with`. What a killed process leaves is told
from what is in use by a lock that the system releases, and removed by `sweep` and `tessera gc`: see `garbage`.

petastorm takes two plans for the same when they read the same path, also when the files there changed in between, and
then gives the older rows. Here each converter has a folder of its own, so that no two share one.
"""

import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, Self

from tessera.errors import ConfigError, SetupError
from tessera.home import Home
from tessera.shard.read.petastorm import files as files_module
from tessera.shard.read.petastorm import shim
from tessera.shard.read.petastorm.garbage import claim_folder, give_back
from tessera.shard.read.petastorm.reader import BatchReader, open_files

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

ROW_GROUP_BYTES = 8 * 2**20
_one_at_a_time = threading.Lock()  # petastorm finds session and folder in globals


class Converter:
    """The rows of a DataFrame as they were when it was converted, in files that this process keeps."""

    def __init__(self, inner: Any, *, folder: Path, lock: IO[Any]) -> None:
        self.folder = folder
        self.num_rows = int(inner.dataset_size)
        """As Spark counted them."""
        self._delete = weakref.finalize(self, _delete, folder, lock=lock, inner=inner)
        name = f"the DataFrame's cache {folder.name[:8]}"
        self.files = files_module.of_paths(sorted(folder.rglob("*.parquet")), name=name, num_rows=self.num_rows)

    def __len__(self) -> int:
        return self.num_rows

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.delete()

    def batch_reader(
        self,
        *,
        columns: Sequence[str] | None = None,
        batch_size: int = 1024,
        epochs: int = 1,
        workers: int = 2,
        seed: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        fill: Mapping[str, Any] | None = None,
    ) -> BatchReader:
        """Batches of these rows, counted every epoch; arguments and errors are those of `reader.batch_reader`."""
        return open_files(
            self.files, columns=columns, batch_size=batch_size, epochs=epochs, workers=workers, seed=seed, rank=rank,
            world_size=world_size, fill=fill, owner=self,
        )  # fmt: skip

    def delete(self) -> None:
        """Removes the cache now; its readers fail afterwards."""
        self._delete()


def make_spark_converter(
    dataframe: "DataFrame",
    *,
    home: Home,
    row_group_bytes: int = ROW_GROUP_BYTES,
    compression: str = "snappy",
    precision: Literal["float32", "float64"] | None = None,
) -> Converter:
    """Writes `dataframe` into the home's cache and opens it for reading in batches.

    Spark's executors write the files, so on a cluster the home must be a folder that all of them see.

    Args:
        row_group_bytes: of a Parquet row group before compression: what one worker reads at a time.
        precision: what floats are cast to; null keeps them (petastorm itself would cut doubles to floats).

    Raises:
        ConfigError: the home's path holds one of # ? ;
        SetupError: petastorm is absent, or the DataFrame is of Spark Connect, which has no JVM here to ask.
    """
    module = shim.load("spark.spark_dataset_converter")
    if not hasattr(dataframe, "_jdf"):
        raise SetupError("petastorm's converter needs a classic Spark session, found Spark Connect; use batch_reader")
    if unfit := set("#?;") & set(str(home.root)):
        raise ConfigError(f"{home.root} holds {' '.join(unfit)}, which petastorm cuts addresses at; move the home")
    session = dataframe.sparkSession
    folder, lock = claim_folder(home)
    try:
        with _one_at_a_time:
            module._get_spark_session = lambda: session
            key = module.SparkDatasetConverter.PARENT_CACHE_DIR_URL_CONF
            before = session.conf.get(key, None)
            session.conf.set(key, f"file://{folder.absolute()}")
            try:
                inner = module.make_spark_converter(
                    dataframe, parquet_row_group_size_bytes=row_group_bytes, compression_codec=compression,
                    dtype=precision,
                )  # fmt: skip
            finally:
                session.conf.unset(key) if before is None else session.conf.set(key, before)
        return Converter(inner, folder=folder, lock=lock)
    except BaseException:
        give_back(folder, lock=lock)
        raise


def _delete(folder: Path, *, lock: IO[Any], inner: Any) -> None:
    inner.delete()
    give_back(folder, lock=lock)
