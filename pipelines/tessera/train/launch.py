"""Starts the ranks and looks after them: lock, heartbeat, attempts, TorchDistributor, metrics, and the verdict.

Ranks run beside the driver or, with `train.placement: cluster`, as one barrier stage on the executors; the run folder,
which all of them see, is the same protocol in both. Whether training succeeded is decided by the run's record.json,
which rank 0 writes last, not by what TorchDistributor returns or raises. Ranks that fail are started again, at most
`train.max_restarts` times: in place by torchrun, and by a new attempt of ours where a machine is gone.

Starting costs about 10 s on two cores: torchrun imports torch, then each rank does, and the model; a barrier stage adds
two.
"""

import contextlib
import logging
import shutil
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TextIO

from pyspark.ml.torch import distributor as spark_torch
from pyspark.ml.torch.distributor import TorchDistributor
from pyspark.sql import SparkSession

import tessera
from tessera.home import Home
from tessera.lineage import ShardRecord, TableVersion, TrainRecord, code_version
from tessera.progress import Tell
from tessera.shard import labels
from tessera.shard.manifest import read_manifest
from tessera.shard.run_documents import write_run_documents
from tessera.shard.run_manifest import write_run_manifest
from tessera.tracking import TrackingSettings
from tessera.train import failure, view
from tessera.train import run as runs
from tessera.train.metrics import Tail
from tessera.train.origin import only_new
from tessera.train.pulse import Ward
from tessera.train.run import Origin, RunFolder, RunResult, RunSpec
from tessera.train.settings import TrainSettings
from tessera.train.ship import Shipper
from tessera.train.slots import gpus_of_task, on_cluster, on_what_is_left
from tessera.train.surroundings import LogServer, beside, heartbeat

WORKER = "tessera.train.worker"
POLL_SECONDS = 0.5
VIEW_STEPS = 50
"""Steps by whose pace the time left is told."""


@dataclass(frozen=True)
class Lineage:
    """What MLflow is told of a run besides its metrics."""

    config: Mapping[str, Any] = field(default_factory=dict)
    """The whole resolved configuration, secrets unresolved."""
    sources: tuple[TableVersion, ...] = ()
    """The source tables of the documents."""


def train(
    spark: SparkSession, *, shards: ShardRecord, settings: TrainSettings, block_shards: int, fingerprint: str,
    home: Home, tracking: TrackingSettings, lineage: Lineage, fresh: bool, tell: Tell, origin: Origin | None = None,
) -> TrainRecord:  # fmt: skip
    """Trains a model on a shard set, or goes on with the unfinished run of the same fingerprint.

    Args:
        spark: an active session, which TorchDistributor asks for; no Spark job is run beside the driver.
        block_shards: see `shard.block_shards`.
        origin: what the run starts from, of `origin.resolve`.
        fingerprint: of `train.run.fingerprint`.
        fresh: start anew, in another folder.

    Raises:
        Conflict: another process trains this run now.
        ConfigError: the cluster cannot hold the ranks: see `slots.on_cluster`.
        TrainingFailed: the ranks ended without finishing, once too often; names the rank and what it said.
    """
    began = time.monotonic()
    if settings.placement == "cluster":
        settings = on_cluster(spark, settings=settings)
    folder = runs.choose_folder(home, fingerprint=fingerprint, set_name=shards.name, fresh=fresh)
    folder.root.mkdir(parents=True, exist_ok=True)
    with runs.launcher_lock(folder):
        spec = RunSpec(
            run=folder.root.name, fingerprint=fingerprint, settings=settings, tokenizer=shards.tokenizer.path,
            block_shards=block_shards, origin=origin,
            heldout_labels=None if labels.all_count(shards) else labels.count(home, shards, split="heldout"),
        )  # fmt: skip
        attempt = begin_attempt(folder, spec=spec, shards=shards, home=home)
        shipper = Shipper(
            folder, settings=tracking, home=home, params=lineage.config, inputs=(*lineage.sources, shards.manifest),
            tags=tags_of(folder, spec=spec, shards=shards, sources=lineage.sources), notice=tell,
        )  # fmt: skip
        shipper.start()
        status = "KILLED"
        try:
            result = folder.read_result() or _until_finished(spark, folder, spec=spec, attempt=attempt, tell=tell)
            status = "FINISHED"
        except Exception:
            status = "FAILED"
            raise
        finally:
            tags = result.tags if status == "FINISHED" else None
            run_id = shipper.close(status=status, tags=tags)
    return _record(
        result, folder=folder, run_id=run_id, shards=shards, fingerprint=fingerprint, home=home,
        seconds=time.monotonic() - began,
    )  # fmt: skip


def begin_attempt(folder: RunFolder, *, spec: RunSpec, shards: ShardRecord, home: Home) -> int:
    """Makes the folder ready for ranks; the number of this attempt. The caller holds the launcher's lock."""
    finished = folder.read_result()
    if finished is not None and not runs.is_complete(folder.root / finished.checkpoint):
        folder.record.unlink()  # its last checkpoint is gone: the run is not finished any more
    folder.checkpoints.mkdir(exist_ok=True)
    folder.starts.unlink(missing_ok=True)  # failures of an earlier command do not count
    manifest = read_manifest(home, shards.name, shards.manifest.version)
    write_run_manifest(only_new(manifest, origin=spec.origin, shards=shards), folder.manifest)
    write_run_documents(home, shards, manifest=folder.manifest)
    runs.write_durable(folder.spec, runs.to_json(spec.model_dump(mode="json")))
    return next_attempt(folder)


def next_attempt(folder: RunFolder) -> int:
    """Takes the folder from ranks of earlier attempts, wherever they may still run."""
    shutil.rmtree(folder.errors, ignore_errors=True)
    attempt = folder.read_attempt() + 1
    runs.write_durable(folder.attempt, f"{attempt}\n")
    return attempt


def tags_of(
    folder: RunFolder, *, spec: RunSpec, shards: ShardRecord, sources: tuple[TableVersion, ...]
) -> dict[str, str]:
    """Lineage as MLflow tags: every table with its version, hashes, the code's commit."""
    tables = {table.name: table for table in (*shards.inputs, *sources)}
    return {
        "tessera.fingerprint": spec.fingerprint,
        "tessera.run_folder": folder.home.relative(folder.root),
        "tessera.code": code_version(),
        "tessera.version": tessera.__version__,
        "tessera.shard_set": f"{shards.name}@{shards.manifest.version}",
        "tessera.tokenizer_sha256": shards.tokenizer.sha256,
        **({"tessera.from": spec.origin.given} if spec.origin else {}),
        **{f"tessera.table.{name}": f"{table.path}@{table.version}" for name, table in tables.items()},
    }


def _until_finished(spark: SparkSession, folder: RunFolder, *, spec: RunSpec, attempt: int, tell: Tell) -> RunResult:
    """Runs the ranks, again after failures that another start may survive.

    Raises:
        TrainingFailed: no restart is left, or the failure is a verdict.
        UserError: a rank said so of what the user gave.
    """
    left = spec.settings.max_restarts
    while True:
        _run_ranks(spark, folder, spec=spec, attempt=attempt, restarts=left, tell=tell)
        if (result := folder.read_result()) is not None:
            return result
        failed = failure.find(folder)
        left -= max(1, sum(began == attempt for began, _ in folder.read_starts()))
        if left < 0 or failed.verdict:
            raise failed.error(folder)
        attempt = next_attempt(folder)
        tell(f"{failed.said}: a new attempt, {left} restarts left")
        if spec.settings.placement == "cluster":
            ranks = spec.settings.ranks
            spec = spec.model_copy(update={"settings": on_what_is_left(spark, settings=spec.settings)})
            if spec.settings.ranks < ranks:
                runs.write_durable(folder.spec, runs.to_json(spec.model_dump(mode="json")))
                tell(f"the cluster holds {spec.settings.ranks} of {ranks} ranks now, the run goes on with them")


def _run_ranks(
    spark: SparkSession, folder: RunFolder, *, spec: RunSpec, attempt: int, restarts: int, tell: Tell
) -> None:
    """Runs all ranks to their end, however it comes; torchrun starts them again at most `restarts` times."""
    settings = spec.settings
    cluster = settings.placement == "cluster"
    tell(f"starting {settings.ranks} ranks{' on the cluster' if cluster else ''}")
    gpus = cluster and gpus_of_task(spark, settings=settings) > 0
    with _told(folder, spec=spec, tell=tell), folder.log.open("w", encoding="utf-8") as log:
        # Beside the driver, use_gpu would ask for GPUs that Spark owns; there ranks choose their device by themselves.
        distributor = TorchDistributor(num_processes=settings.ranks, local_mode=not cluster, use_gpu=gpus)
        distributor.logger.setLevel(logging.WARNING)
        # What stands where a script is expected goes to torchrun as it is: the package is found by name, not by path.
        command = (f"--max_restarts={restarts}", "-m", WORKER, str(folder.root), str(attempt))
        try:
            with _on_executors(folder, settings=settings, log=log) if cluster else beside(settings, log=log):
                distributor.run(*command)
        except Exception as error:  # whatever Spark or torchrun say of it; the ranks' own words are in errors/
            log.write(f"{type(error).__name__}: {error}\n")


@contextlib.contextmanager
def _on_executors(folder: RunFolder, *, settings: TrainSettings, log: TextIO) -> Iterator[None]:
    """A heartbeat for the ranks, and TorchDistributor's log server replaced by ours, while the block runs."""
    original = spark_torch.LogStreamingServer
    spark_torch.LogStreamingServer = lambda: LogServer(log)
    try:
        with heartbeat(folder, settings=settings):
            yield
    finally:
        spark_torch.LogStreamingServer = original


@contextlib.contextmanager
def _told(folder: RunFolder, *, spec: RunSpec, tell: Tell) -> Iterator[None]:
    """Tells of each new step, of what the ranks note and of each restart, while the block runs."""
    done = threading.Event()
    watcher = threading.Thread(target=_watch, args=(folder, spec, tell, done), name="progress", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _watch(folder: RunFolder, spec: RunSpec, tell: Tell, done: threading.Event) -> None:
    lines, notices, starts = Tail(folder.metrics), Tail(folder.notices), Tail(folder.starts)
    for tail in (lines, notices, starts):
        list(tail.read())  # of earlier attempts
    recent: deque[dict[str, Any]] = deque(maxlen=VIEW_STEPS)
    ward = Ward(folder.root, seconds=spec.settings.stall_seconds)
    ward.clear()
    while True:
        last = done.wait(POLL_SECONDS)
        with contextlib.suppress(OSError):  # a full disk: the ranks will meet it too
            if stalled := ward.look(time.monotonic()):
                failure.end_stalled(folder, stalled, seconds=spec.settings.stall_seconds)
                ward.clear()
        if slow := ward.straggler():
            tell(f"rank {slow[0]} is slow: each other rank waits {slow[1]:.0%} of its time for it")
        for start in starts.read():
            if start["restart"]:
                failed = failure.find(folder, start=(start["attempt"], start["restart"] - 1))
                tell(f"{failed.said}: started again, restart {start['restart']}")
        for entry in notices.read():
            tell(entry["notice"])
        if came := [line for line in lines.read() if "loss" in line or "heldout_loss" in line]:
            recent.extend(came)
        if came and "loss" in recent[-1]:
            tell(view.describe(recent, steps=spec.settings.steps), recent[-1]["step"], spec.settings.steps)
        if last:
            return


def _record(
    result: RunResult,
    *,
    folder: RunFolder,
    run_id: str,
    shards: ShardRecord,
    fingerprint: str,
    home: Home,
    seconds: float,
) -> TrainRecord:
    return TrainRecord(
        fingerprint=fingerprint,
        inputs=(shards.manifest,),
        seconds=round(seconds, 3),
        code=code_version(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        run=home.relative(folder.root),
        run_id=run_id,
        shard_set=shards.manifest,
        tokenizer=shards.tokenizer,
        steps=result.steps,
        train_tokens=result.train_tokens,
        ranks=result.ranks,
        parameters=result.parameters,
        bits_per_byte_before=result.bits_per_byte_before,
        checkpoint=home.relative(folder.root / result.checkpoint),
        weights_sha256=result.weights_sha256,
    )
