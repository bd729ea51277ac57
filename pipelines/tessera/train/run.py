"""The run folder: what lies where, when a run is finished, and what its fingerprint covers. Needs no torch, no Spark.

A folder (a run, a checkpoint) is committed by its `record.json`, written last and made durable; without it the folder
does not exist. Only the launcher that holds the lock writes run.json, shards.arrow and the attempt; only rank 0 writes
the rest. See docs/protocol.md.
"""

import fcntl
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tessera import lineage
from tessera.config import Section
from tessera.errors import Conflict, ModelError, Superseded, TrainingFailed
from tessera.files import write_whole
from tessera.home import Home
from tessera.lineage import Entry, ShardRecord, TrainRecord
from tessera.shard.read.manifest import Labels
from tessera.train.settings import TrainSettings, of_format_1

SEMANTICS = 1
"""Raised when the same inputs and settings give other weights."""
FORMAT = 1
"""Of records."""
SPEC_FORMAT = 2
"""Of run.json: 2 has methods among the settings."""
RECORD = "record.json"
STATE = "state.json"
"""Of a checkpoint: progress, loader, environment."""
LOCK_SECONDS = 2.0


class RunPoint(Section):
    """A moment of a run that another goes on from."""

    run: str
    """The folder's name."""
    step: int
    """Steps done."""
    batch: int
    """Batches of its order that were taken or skipped by then."""


class Origin(Section):
    """What a run started from."""

    given: str
    """As `train.from` says it."""
    folder: str
    """With weights; relative to the home where it lies in it."""
    weights: dict[str, str]
    """File -> SHA-256."""
    point: RunPoint | None = None
    """Of the run that it goes on with; null takes weights alone."""
    before: RunPoint | None = None
    """Of weights alone: the end of the run of this home that made them, if one did."""
    offset: int = 0
    """Batches counted before the first of this run's order, which is another one than before."""
    seen: tuple[int, ...] | None = None
    """Generations that are left out, being known; null leaves out none."""

    @property
    def new_order(self) -> bool:
        """Whether the run that goes on begins an order of its own."""
        return self.point is not None and self.offset == self.point.step

    def identity(self) -> dict[str, Any]:
        """Neither names nor places."""
        point = self.point and {"step": self.point.step, "batch": self.point.batch}
        return {"weights": self.weights, "point": point, "offset": self.offset, "seen": self.seen}


class RunSpec(Section):
    """run.json: all that a rank needs to know besides shards.arrow. Paths are relative to the home, which is ../.."""

    format: int = SPEC_FORMAT
    run: str
    """The folder's name."""
    fingerprint: str
    settings: TrainSettings
    tokenizer: str
    """The tokenizer's folder."""
    block_shards: int
    """Shards whose samples are shuffled together; see `shard.read.order`."""
    origin: Origin | None = None
    """Null: values made of the seed, or those of `settings.model.path`."""
    heldout_labels: Labels | None = None
    """Of a set with conversations, in which some tokens are no labels; null: all are."""


class RunResult(Entry):
    """The run's own record.json: it is finished, and this came out."""

    format: int = FORMAT
    steps: int
    ranks: int
    parameters: int
    train_tokens: int
    bits_per_byte_before: float
    bits_per_byte_after: float
    """Held-out bits per byte, as the run itself measures them: see `train.heldout`."""
    checkpoint: str
    """Relative to the run folder."""
    weights_sha256: str
    seconds: float
    """Of training, over all attempts; starting the ranks not counted."""
    skipped: tuple[int, ...] = ()
    """Batches, counted through the run from 0, that no step took: see `train.spikes`."""

    @property
    def tags(self) -> dict[str, str]:
        """What the run's end adds to its lineage in MLflow."""
        return {"tessera.weights_sha256": self.weights_sha256, "tessera.parameters": str(self.parameters)}


@dataclass(frozen=True)
class RunFolder:
    """Where the parts of a run lie."""

    root: Path

    @property
    def home(self) -> Home:
        return Home(self.root.parents[1])

    @property
    def spec(self) -> Path:
        return self.root / "run.json"

    @property
    def manifest(self) -> Path:
        return self.root / "shards.arrow"

    @property
    def attempt(self) -> Path:
        return self.root / "attempt"

    @property
    def lock(self) -> Path:
        return self.root / "launcher.lock"

    @property
    def beat(self) -> Path:
        """Changes for as long as the launcher lives; ranks on a cluster watch it."""
        return self.root / "launcher.beat"

    @property
    def starts(self) -> Path:
        """A line each time the ranks were started."""
        return self.root / "starts.jsonl"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def notices(self) -> Path:
        return self.root / "notices.jsonl"

    @property
    def errors(self) -> Path:
        return self.root / "errors"

    @property
    def log(self) -> Path:
        """What torchrun and the ranks print."""
        return self.root / "ranks.log"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def record(self) -> Path:
        return self.root / RECORD

    def read_skipped(self) -> tuple[int, ...]:
        """Batches that no step took: of its record, or of its newest checkpoint; see `train.spikes`."""
        if (result := self.read_result()) is not None:
            return result.skipped
        if saved := committed(self.checkpoints):
            return tuple(read_json(saved[-1] / STATE).get("progress", {}).get("skipped", ()))
        origin = self.read_spec().origin
        if origin is None or origin.point is None or origin.new_order:
            return ()
        end = origin.point.batch + origin.offset
        return tuple(batch for batch in RunFolder(self.root.with_name(origin.point.run)).read_skipped() if batch < end)

    def read_spec(self) -> RunSpec:
        """Raises TrainingFailed when run.json is absent, FormatError when it is of another format."""
        try:
            values = json.loads(self.spec.read_text(encoding="utf-8"))
            lineage.check_format(
                values["format"], known=SPEC_FORMAT, what=str(self.spec), remedy="start a new run: --fresh"
            )
            if values["format"] == 1:
                values["settings"] = of_format_1(values["settings"])
            return RunSpec.model_validate(values)
        except (OSError, ValueError, KeyError, TypeError) as error:  # pydantic's are ValueErrors
            raise TrainingFailed(f"{self.spec} cannot be read ({type(error).__name__}); start the run again") from None

    def read_result(self) -> RunResult | None:
        """The record of a finished run; None while it is not finished.

        Raises:
            FormatError: a newer Tessera finished it.
        """
        try:
            result = RunResult.model_validate_json(self.record.read_text(encoding="utf-8"))
        except (OSError, ValidationError):
            return None
        lineage.check_format(result.format, known=FORMAT, what=str(self.record), remedy="start a new run: --fresh")
        return result

    def read_attempt(self) -> int:
        """The number of the newest attempt; 0 before the first."""
        try:
            return int(self.attempt.read_text())
        except (OSError, ValueError):
            return 0

    def read_starts(self) -> list[tuple[int, int]]:
        """(attempt, restart within it) of each start of the ranks, oldest first."""
        try:
            lines = [json.loads(line) for line in self.starts.read_text(encoding="utf-8").splitlines()]
        except OSError:
            return []
        return [(line["attempt"], line["restart"]) for line in lines]

    def check_attempt(self, attempt: int) -> None:
        """Raises Superseded when a newer attempt owns the folder."""
        newest = self.read_attempt()
        if newest != attempt:
            raise Superseded(f"run {self.root.name}: attempt {attempt} was overtaken by attempt {newest} and stops")


def fingerprint(
    settings: TrainSettings, *, shards: ShardRecord, block_shards: int, origin: Origin | None = None
) -> str:
    """What a run's weights are a function of, up to the last bits of sums: see `train.settings`.

    Raises:
        ModelError: `model.path` is not a folder.
    """
    config = settings.identity()
    config["from_"] = origin and origin.identity()
    if origin is not None:
        del config["model"]
    elif settings.model.path is not None:
        config["model"] = {"files": folder_hashes(Path(settings.model.path))}
    inputs = {
        "shards": shards.fingerprint,
        "set": shards.name,
        "version": shards.manifest.version,
        "tokenizer": shards.tokenizer.sha256,
        "block_shards": block_shards,
    }
    return lineage.fingerprint(stage="train", semantics=SEMANTICS, inputs=inputs, config=config)


def folder_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of what decides a pretrained model: its configuration and safetensors."""
    if not folder.is_dir():
        raise ModelError(f"{folder} is not a folder; give a local one to train from: nothing is downloaded")
    files = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
    return {file.name: lineage.sha256_file(file) for file in files if file.is_file()}


def verify(record: TrainRecord, *, home: Home) -> bool:
    """Whether a recorded run can still be used: its record is there, and its checkpoint's files have their sizes."""
    result = RunFolder(home.resolve(record.run)).read_result()
    return (
        result is not None
        and result.weights_sha256 == record.weights_sha256
        and is_complete(home.resolve(record.checkpoint))
    )


def is_complete(folder: Path) -> bool:
    """Whether a committed folder still has every file of its record, of its size; contents are not read."""
    try:
        files = json.loads((folder / RECORD).read_text(encoding="utf-8"))["files"]
        return all((folder / name).stat().st_size == entry["bytes"] for name, entry in files.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def committed(checkpoints: Path) -> list[Path]:
    """The checkpoints of a run that have their record, oldest first."""
    return [record.parent for record in sorted(checkpoints.glob(f"step-*/{RECORD}"))]


def named(home: Home) -> str:
    """The runs of a home, for errors."""
    return ", ".join(sorted(path.name for path in home.runs.glob("*"))) or "none"


def choose_folder(home: Home, *, fingerprint: str, set_name: str, fresh: bool) -> RunFolder:
    """The folder to train in: the newest of this fingerprint, or a new one if there is none or `fresh` asks for it."""
    name = f"{set_name}-{fingerprint[:12]}"
    number = 1
    while (home.runs / _numbered(name, number)).exists():
        number += 1
    if number > 1 and not fresh:
        number -= 1
    return RunFolder(home.runs / _numbered(name, number))


@contextmanager
def launcher_lock(folder: RunFolder) -> Iterator[None]:
    """Holds the run folder for this process; released by the system however the process ends.

    Waits LOCK_SECONDS for it: ranks of a launcher that was just killed hold it for the moment in which they notice.

    Raises:
        Conflict: another launcher holds it.
    """
    with folder.lock.open("a") as file:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise Conflict(
                        f"run {folder.root.name} is being trained by another process; wait for it, or stop it"
                    ) from None
                time.sleep(0.1)
        yield


def write_durable(path: Path, text: str) -> None:
    """Writes a small file whole or not at all."""
    write_whole(path, text.encode())


def read_json(path: Path) -> dict[str, Any]:
    """A small file of a run; {} when it is absent or no JSON."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def to_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, indent=1) + "\n"


def _numbered(name: str, number: int) -> str:
    return name if number == 1 else f"{name}-{number}"
