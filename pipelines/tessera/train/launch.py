"""Starts the ranks and looks after them: lock, attempt, TorchDistributor, metrics, and the verdict.

Whether training succeeded is decided by the run's record.json, which rank 0 writes last, not by what TorchDistributor
returns or raises. Starting costs about 10 s on two cores: torchrun imports torch, then each rank does, and the model.
"""

import contextlib
import io
import json
import logging
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from pyspark.ml.torch.distributor import TorchDistributor
from pyspark.sql import SparkSession

import tessera
from tessera.errors import TrainingFailed, UserError
from tessera.home import Home
from tessera.lineage import ShardRecord, TableVersion, TrainRecord, code_version
from tessera.progress import Tell
from tessera.shard.manifest import read_manifest
from tessera.shard.run_manifest import write_run_manifest
from tessera.tracking import TrackingSettings
from tessera.train import run as runs
from tessera.train.metrics import Tail
from tessera.train.run import ATTEMPT_VARIABLE, RunFolder, RunResult, RunSpec
from tessera.train.settings import TrainSettings
from tessera.train.ship import Shipper

WORKER = Path(__file__).with_name("worker.py")
POLL_SECONDS = 0.5
SECONDARY = ("connection", "gloo", "nccl", "peer", "timed out", "sockets")
"""Words in the error of a rank that only lost another."""
FIRST_FAILURE = re.compile(r"rank\s*: (\d+) \(local_rank: \d+\)\s*exitcode\s*: (-?\d+)")
"""A line of torchrun's summary, whose last entry is the first observed failure."""
OWN_WORD = ("1", "-15")
"""Exit statuses that explain nothing: a rank that left an error of its own, or that torchrun ended."""


@dataclass(frozen=True)
class Lineage:
    """What MLflow is told of a run besides its metrics."""

    config: Mapping[str, Any] = field(default_factory=dict)
    """The whole resolved configuration, secrets unresolved."""
    sources: tuple[TableVersion, ...] = ()
    """The source tables of the documents."""


def train(
    spark: SparkSession, *, shards: ShardRecord, settings: TrainSettings, block_shards: int, fingerprint: str,
    home: Home, tracking: TrackingSettings, lineage: Lineage, fresh: bool, tell: Tell,
) -> TrainRecord:  # fmt: skip
    """Trains a model on a shard set, or goes on with the unfinished run of the same fingerprint.

    Args:
        spark: an active session, which TorchDistributor asks for; no Spark job is run in local mode.
        block_shards: see `shard.block_shards`.
        fingerprint: of `train.run.fingerprint`.
        fresh: start anew, in another folder.

    Raises:
        Conflict: another process trains this run now.
        TrainingFailed: the ranks ended without finishing; names the rank and what it said.
    """
    began = time.monotonic()
    folder = runs.choose_folder(home, fingerprint=fingerprint, set_name=shards.name, fresh=fresh)
    folder.root.mkdir(parents=True, exist_ok=True)
    with runs.launcher_lock(folder):
        spec = RunSpec(
            run=folder.root.name, fingerprint=fingerprint, settings=settings, tokenizer=shards.tokenizer.path,
            block_shards=block_shards,
        )  # fmt: skip
        attempt = begin_attempt(folder, spec=spec, shards=shards, home=home)
        shipper = Shipper(
            folder, settings=tracking, home=home, params=lineage.config, inputs=(*lineage.sources, shards.manifest),
            tags=tags_of(folder, shards=shards, sources=lineage.sources, fingerprint=fingerprint), notice=tell,
        )  # fmt: skip
        shipper.start()
        status = "KILLED"
        try:
            result = folder.read_result() or _run_ranks(folder, spec=spec, attempt=attempt, tell=tell)
            status = "FINISHED"
        except Exception:
            status = "FAILED"
            raise
        finally:
            tags = {"tessera.weights_sha256": result.weights_sha256} if status == "FINISHED" else None
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
    shutil.rmtree(folder.errors, ignore_errors=True)
    folder.checkpoints.mkdir(exist_ok=True)
    write_run_manifest(read_manifest(home, shards.name, shards.manifest.version), folder.manifest)
    runs.write_durable(folder.spec, runs.to_json(spec.model_dump(mode="json")))
    attempt = folder.read_attempt() + 1
    runs.write_durable(folder.attempt, f"{attempt}\n")
    return attempt


def tags_of(
    folder: RunFolder, *, shards: ShardRecord, sources: tuple[TableVersion, ...], fingerprint: str
) -> dict[str, str]:
    """Lineage as MLflow tags: every table with its version, hashes, the code's commit."""
    tables = {table.name: table for table in (*shards.inputs, *sources)}
    return {
        "tessera.fingerprint": fingerprint,
        "tessera.run_folder": folder.home.relative(folder.root),
        "tessera.code": code_version(),
        "tessera.version": tessera.__version__,
        "tessera.shard_set": f"{shards.name}@{shards.manifest.version}",
        "tessera.tokenizer_sha256": shards.tokenizer.sha256,
        **{f"tessera.table.{name}": f"{table.path}@{table.version}" for name, table in tables.items()},
    }


def _run_ranks(folder: RunFolder, *, spec: RunSpec, attempt: int, tell: Tell) -> RunResult:
    """Runs all ranks to their end.

    Raises:
        TrainingFailed: no record was written.
        UserError: a rank said so of what the user gave.
    """
    tell(f"starting {spec.settings.ranks} ranks")
    done = threading.Event()
    watcher = threading.Thread(target=_watch, args=(folder, spec, tell, done), name="progress", daemon=True)
    watcher.start()
    try:
        with _environment(spec.settings, attempt=attempt), folder.log.open("w", encoding="utf-8") as log:
            distributor = TorchDistributor(num_processes=spec.settings.ranks, local_mode=True, use_gpu=False)
            distributor.logger.setLevel(logging.WARNING)
            # use_gpu would ask for GPUs that Spark owns; ranks choose their device by themselves.
            with contextlib.redirect_stdout(_Lines(log)):
                distributor.run(str(WORKER), str(folder.root))
    except RuntimeError:
        pass  # a generic one, with torchrun's last lines; the ranks' own words are in errors/
    finally:
        done.set()
        watcher.join()
    result = folder.read_result()
    if result is None:
        raise explain_failure(folder)
    return result


def explain_failure(folder: RunFolder) -> Exception:
    """What the ranks left behind, as one error: the first that was not merely the loss of another rank."""
    said = []
    for path in sorted(folder.errors.glob("rank-*.json")):
        with contextlib.suppress(ValueError, OSError):
            said.append(json.loads(path.read_text(encoding="utf-8")))
    said.sort(key=lambda entry: entry["time"])
    causes = [entry for entry in said if not _is_secondary(entry)]
    where = f"run {folder.root.name}"
    again = f"run the command again to go on from the last checkpoint; {folder.log.name} in the run folder says more"
    if causes:
        first = causes[0]
        if first["exit_status"] == UserError.exit_status:
            return UserError(first["message"])
        trace = f" at {first['trace'][-1]}" if first["trace"] and not first["message"] else ""
        return TrainingFailed(
            f"{where}: rank {first['rank']} failed: {first['type']}: {first['message']}{trace}; {again}"
        )
    if (dead := _first_dead(folder.log)) is not None:
        rank, status = dead
        how = f"killed by signal {-status}" if status < 0 else f"ended with status {status}"
        return TrainingFailed(f"{where}: rank {rank} was {how}, perhaps for want of memory, and left no word; {again}")
    if said:
        return TrainingFailed(
            f"{where}: the ranks lost each other: rank {said[0]['rank']}: {said[0]['message']}; {again}"
        )
    return TrainingFailed(f"{where}: no rank left a record or an error, they never started or all were killed; {again}")


def _first_dead(log: Path) -> tuple[int, int] | None:
    """Rank and exit status of the first rank that failed without an error of its own, as torchrun reports it last."""
    try:
        reported = FIRST_FAILURE.findall(log.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None
    return (int(reported[-1][0]), int(reported[-1][1])) if reported and reported[-1][1] not in OWN_WORD else None


def _is_secondary(entry: Mapping[str, Any]) -> bool:
    """Whether this rank failed because another did."""
    own = entry["type"] in ("RuntimeError", "DistBackendError", "DistNetworkError")
    return own and any(word in entry["message"].lower() for word in SECONDARY)


def _watch(folder: RunFolder, spec: RunSpec, tell: Tell, done: threading.Event) -> None:
    """Tells of each new step, and of what the ranks note, until `done`."""
    lines, notices = Tail(folder.metrics), Tail(folder.notices)
    earlier = [*notices.read(), *lines.read()]
    del earlier  # of earlier attempts
    while True:
        last = done.wait(POLL_SECONDS)
        for entry in notices.read():
            tell(entry["notice"])
        newest: dict[str, Any] = next(reversed(list(lines.read())), {})
        if "loss" in newest:
            speed = f"{newest['tokens_per_second']:,.0f} tokens/s"
            tell(f"loss {newest['loss']:.3f}, {speed}", newest["step"], spec.settings.steps)
        if last:
            return


@contextlib.contextmanager
def _environment(settings: TrainSettings, *, attempt: int) -> Iterator[None]:
    """What ranks inherit, while they are started: TorchDistributor passes this process's environment on."""
    threads = settings.threads or max(1, len(os.sched_getaffinity(0)) // settings.ranks)
    package = str(Path(tessera.__file__).parents[1])
    added = {
        ATTEMPT_VARIABLE: str(attempt),
        "PYTHONSAFEPATH": "1",  # the worker's own folder holds names such as `run`, which must not shadow others
        "PYTHONPATH": os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")])),
        "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", "lo"),
        "OMP_NUM_THREADS": str(threads),
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }
    before = {key: os.environ.get(key) for key in added}
    os.environ.update(added)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


class _Lines(io.TextIOBase):
    """Takes what TorchDistributor prints in this thread into the run's log; other threads print as before."""

    def __init__(self, log: TextIO) -> None:
        self._log = log
        self._beside = sys.stdout
        self._thread = threading.get_ident()

    def write(self, text: str) -> int:
        if threading.get_ident() != self._thread:
            return self._beside.write(text)
        self._log.write(text)
        self._log.flush()
        return len(text)


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
