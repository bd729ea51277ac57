"""What a run starts from, found by the driver: another run of the home, a registered model, or a local folder.

A run that goes on with another takes its weights, its optimizer and its step. On the same version of the set it also
goes on in the same order; on a newer one it may take the generations that were added since, in an order of their own.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tessera.errors import ConfigError
from tessera.home import Home
from tessera.lineage import ShardRecord
from tessera.shard.run_manifest import read_run_manifest
from tessera.train import ledger
from tessera.train.run import RECORD, STATE, Origin, RunFolder, RunPoint, committed, folder_hashes, named
from tessera.train.settings import TrainSettings

MODEL_URI = "models:/"


def resolve(settings: TrainSettings, *, shards: ShardRecord, home: Home, fetch: Callable[[str], Path]) -> Origin | None:
    """What `train.from` names; None where it names nothing.

    Args:
        fetch: gives the folder of a registered model by its URI.

    Raises:
        ConfigError: there is no such run or step, or the run cannot be gone on with on this set.
        ModelError: a folder without weights.
    """
    given = settings.from_
    if given is None:
        if settings.only_new:
            raise ConfigError("train.only_new is true without train.from; name the run that knows the rest")
        return None
    name, _, step = given.partition("@")
    if not given.startswith(MODEL_URI) and (home.runs / name).is_dir() and "/" not in name:
        return _of_run(RunFolder(home.runs / name), step=step, given=given, settings=settings, shards=shards)
    folder = fetch(given) if given.startswith(MODEL_URI) else Path(given).expanduser().absolute()
    if settings.only_new or not folder.is_dir():
        raise ConfigError(f"train.from {given} is no run of this home (there are: {named(home)}), and no folder")
    weights = folder_hashes(folder)
    return Origin(given=given, folder=_place(folder, home=home), weights=weights, before=_made_by(weights, home=home))


def _of_run(folder: RunFolder, *, step: str, given: str, settings: TrainSettings, shards: ShardRecord) -> Origin:
    checkpoint = _checkpoint(folder, step=step, given=given)
    state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    spec, loader, done = folder.read_spec(), state["loader"], int(state["num_steps"])
    if settings.steps <= done:
        raise ConfigError(
            f"train.steps is {settings.steps}, and {given} has done {done}, which count; set train.steps above {done}"
        )
    if loader["tokenizer"] != shards.tokenizer.sha256:
        raise ConfigError(f"{given} was trained with another tokenizer than {shards.name} has; train a new run")
    before = spec.origin
    offset, seen = (before.offset, before.seen) if before is not None else (0, None)
    point = RunPoint(run=folder.root.name, step=done, batch=int(loader["next_step"]))
    if loader["set"] != shards.name:
        raise ConfigError(
            f"{given} was trained on set {loader['set']}, this is {shards.name}; give shard.name={loader['set']}, or "
            "take its weights alone: train.from with its folder"
        )
    if settings.only_new:
        offset, seen = done, _known(folder, seen)
    elif loader["version"] != shards.manifest.version:
        raise ConfigError(
            f"{given} was trained on {loader['set']}@{loader['version']}, the set is {shards.name}@"
            f"{shards.manifest.version} now, whose order is another: some samples would come twice, others never. To "
            "take those that were added since: --set train.only_new=true"
        )
    weights = json.loads((checkpoint / RECORD).read_text(encoding="utf-8"))["files"]
    return Origin(
        given=given, folder=folder.home.relative(checkpoint), point=point, offset=offset, seen=seen,
        weights={name: entry["sha256"] for name, entry in weights.items() if name.endswith(".safetensors")},
    )  # fmt: skip


def _made_by(weights: Mapping[str, str], *, home: Home) -> RunPoint | None:
    """The end of the finished run whose weights these are."""
    for root in sorted(home.runs.glob("*")):
        folder = RunFolder(root)
        result = folder.read_result()
        if result is not None and result.weights_sha256 in weights.values():
            return ledger.end(folder, steps=result.steps)
    return None


def _checkpoint(folder: RunFolder, *, step: str, given: str) -> Path:
    saved = {str(int(path.name.removeprefix("step-"))): path for path in committed(folder.checkpoints)}
    if saved and not step:
        return list(saved.values())[-1]
    if step in saved:
        return saved[step]
    steps = ", ".join(saved) or "none"
    raise ConfigError(f"train.from {given}: the run has checkpoints of these steps: {steps}; give RUN or RUN@STEP")


def _known(folder: RunFolder, seen: Sequence[int] | None) -> tuple[int, ...]:
    """The generations that a run and those before it had."""
    table = read_run_manifest(folder.manifest)
    return tuple(sorted({*(seen or ()), *table["generation"].to_pylist()}))


def _place(folder: Path, *, home: Home) -> str:
    return home.relative(folder) if folder.is_relative_to(home.root) else str(folder)


def only_new(table: Any, *, origin: Origin | None, shards: ShardRecord) -> Any:
    """A set's manifest without the training shards that are left out.

    Raises:
        ConfigError: none is left.
    """
    if origin is None or origin.seen is None:
        return table
    added = {*table["generation"].to_pylist()} - {*origin.seen}
    if compacted := added & {*shards.compactions}:
        raise ConfigError(
            f"{shards.name} was compacted at documents version {min(compacted)}, after {origin.given} was trained: "
            "what is new cannot be told from what is not. Take its weights alone: train.from with its folder"
        )
    kept = [row["split"] != "train" or row["generation"] not in origin.seen
            for row in table.select(["split", "generation"]).to_pylist()]  # fmt: skip
    left = table.filter(kept)
    if "train" not in left["split"].to_pylist():
        raise ConfigError(
            f"{shards.name}@{shards.manifest.version} holds no generation that {origin.given} does not know; prepare "
            "and shard what was added first, or leave out train.only_new"
        )
    return left
