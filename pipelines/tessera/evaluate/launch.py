"""Asks a model on several ranks beside the driver, by TorchDistributor. See `sharing` for what passes between them.

Starting costs about 10 s on two cores and a Spark session, so one start asks all tasks.
"""

import logging
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

from pyspark.ml.torch.distributor import TorchDistributor
from pyspark.sql import SparkSession

from tessera.evaluate import sharing
from tessera.evaluate.sharing import Asked, ModelOnRanks
from tessera.evaluate.task import Task
from tessera.home import Home
from tessera.progress import Tell, silent
from tessera.train.settings import TrainSettings
from tessera.train.surroundings import beside

WORKER = "tessera.evaluate.worker"


def ask_on_ranks(
    tasks: Mapping[str, Task],
    *,
    home: Home,
    spark: Callable[[], SparkSession],
    model: ModelOnRanks,
    tell: Tell = silent,
) -> Asked:
    """What a model does on `tasks`, or why it could not be asked, by name.

    Args:
        spark: gives the session that TorchDistributor asks for; no Spark job is run.

    Raises:
        EvaluationFailed: a rank ended without a result.
    """
    folder = home.cache / f"evaluate-{uuid.uuid4().hex[:12]}"
    log = folder.with_suffix(".log")
    sharing.write_asked(folder, tasks=tasks, model=model)
    spark()
    tell(f"starting {model.ranks} ranks")
    try:
        _run(folder, log=log, ranks=model.ranks)
        found = sharing.read_outcomes(folder, tasks=tasks, ranks=model.ranks)
        log.unlink()
        return found
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(folder: Path, *, log: Path, ranks: int) -> None:
    distributor = TorchDistributor(num_processes=ranks, local_mode=True, use_gpu=False)
    distributor.logger.setLevel(logging.WARNING)
    with log.open("w", encoding="utf-8") as file, beside(TrainSettings(ranks=ranks), log=file):
        try:
            # What stands where a script is expected goes to torchrun as it is: the module is found by name.
            distributor.run("--max_restarts=0", "-m", WORKER, str(folder))
        except Exception as error:  # whatever Spark or torchrun say of it; a rank without a result is what counts
            file.write(f"{type(error).__name__}\n")
