"""Whether a cluster can hold the ranks, asked before they are started.

Without it Spark would try a barrier stage that does not fit again and again, for ten minutes. Costs nothing where the
executors have registered, SLOT_SECONDS where they have not.
"""

import time
from typing import TYPE_CHECKING

from tessera import tasks
from tessera.errors import ConfigError
from tessera.train.settings import TrainSettings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

SLOT_SECONDS = 5.0
"""How long executors that are still registering are waited for."""
POLL_SECONDS = 0.5
GPUS_OF_TASK = "spark.task.resource.gpu.amount"
PARALLELISM = ("spark.default.parallelism", "spark.sql.leafNodeDefaultParallelism")
"""With one of them set, Spark's parallelism says nothing of its cores."""


def on_cluster(spark: "SparkSession", *, settings: TrainSettings) -> TrainSettings:
    """The settings with the threads that Spark gives a task, once it is sure that the ranks fit.

    Raises:
        ConfigError: too few slots, or GPU amounts that the ranks do not fit.
    """
    gpus = gpus_of_task(spark, settings=settings)
    wanted = settings.ranks // max(gpus, 1)
    found = _slots(spark, wanted=wanted)
    if found is not None and found < wanted:
        raise ConfigError(
            f"train.ranks {settings.ranks} takes {wanted} tasks at once, the cluster has slots for {found}; "
            f"start more workers, or set train.ranks={max(found, 1) * max(gpus, 1)}"
        )
    threads = settings.threads or int(spark.conf.get("spark.task.cpus", "1") or 1)
    return settings.model_copy(update={"threads": threads})


def on_what_is_left(spark: "SparkSession", *, settings: TrainSettings) -> TrainSettings:
    """The settings with as many of their ranks as the cluster still holds, at least `train.min_ranks`.

    Raises:
        ConfigError: it holds not even those.
    """
    gpus = max(gpus_of_task(spark, settings=settings), 1)
    found = _slots(spark, wanted=settings.ranks // gpus)
    if found is None or found * gpus >= settings.ranks:
        return settings
    fitting = [ranks for ranks in range(settings.min_ranks, found * gpus + 1)
               if ranks % gpus == 0 and settings.batch_size % ranks == 0]  # fmt: skip
    if not fitting:
        raise ConfigError(
            f"the cluster has slots for {found} tasks now, and the run had {settings.ranks} ranks; with "
            f"train.min_ranks {settings.min_ranks} and train.batch_size {settings.batch_size} no smaller number fits. "
            "Bring workers back and run the command again to go on from the last checkpoint"
        )
    return settings.model_copy(update={"ranks": max(fitting)})


def gpus_of_task(spark: "SparkSession", *, settings: TrainSettings) -> int:
    """GPUs that Spark gives a task, each for a rank of its own; 0 where the ranks run on processors.

    Raises:
        ConfigError: GPUs are asked for and Spark has none to give, or an amount that the ranks do not fit.
    """
    if settings.device == "cpu":
        return 0
    amount = str(spark.conf.get(GPUS_OF_TASK, "0") or "0")
    if not amount.isdecimal():
        raise ConfigError(f"{GPUS_OF_TASK} is {amount}, wanted a whole number: a rank has a GPU of its own")
    gpus = int(amount)
    if settings.device == "cuda" and not gpus:
        raise ConfigError(
            f"train.device is cuda, but {GPUS_OF_TASK} is not set; set it and spark.executor.resource.gpu.amount "
            "in spark.conf, or set train.device=auto"
        )
    if gpus and settings.ranks % gpus:
        raise ConfigError(
            f"train.ranks {settings.ranks} is no multiple of {GPUS_OF_TASK} ({gpus}), which gives each task that many "
            f"ranks; set train.ranks={max(1, settings.ranks // gpus) * gpus}"
        )
    return gpus


def _slots(spark: "SparkSession", *, wanted: int) -> int | None:
    """Tasks that the cluster can run at once; None where the session cannot say."""
    deadline = time.monotonic() + SLOT_SECONDS
    while (found := _slots_now(spark)) is not None and found < wanted and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    return found


def _slots_now(spark: "SparkSession") -> int | None:
    """See `_slots`. Spark Connect knows cores alone: those that have registered, or two of a cluster that has fewer."""
    if tasks.context_of(spark) is None:
        if any(spark.conf.get(key, None) for key in PARALLELISM):
            return None
        return tasks.parallelism(spark) // int(spark.conf.get("spark.task.cpus", "1") or 1)
    try:
        context = spark.sparkContext._jsc.sc()
    except Exception:  # a platform that lets nobody at its JVM
        return None
    return int(context.maxNumConcurrentTasks(context.resourceProfileManager().defaultResourceProfile()))
