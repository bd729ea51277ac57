"""Checkpoints: a Hugging Face folder with the optimizer's and the loader's state beside it, committed by its record.

    step-00000200/  config.json generation_config.json model.safetensors <tokenizer files>
                    optimizer.safetensors state.json record.json

record.json is written last and holds every other file's size and SHA-256; all is synced before and after, so that a
checkpoint is whole or does not exist. No pickle is written or read. Costs 0.1 s for a model of 1.4 M parameters.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tessera import failpoints
from tessera.errors import CorruptCheckpoint
from tessera.files import sync
from tessera.lineage import check_format, sha256_file
from tessera.model.build import WEIGHTS, export, on_cpu, unique_weights
from tessera.shard import chat, tokenizer
from tessera.train import run as runs
from tessera.train.run import FORMAT, RECORD, STATE, to_json, write_durable

OPTIMIZER = "optimizer.safetensors"


@dataclass(frozen=True)
class Snapshot:
    """All values of a moment, on the CPU and apart from those that training goes on with."""

    weights: Mapping[str, Tensor]
    tensors: Mapping[str, Tensor]
    """Of the optimizer and the methods."""


def take(model: nn.Module, *, tensors: Mapping[str, Tensor]) -> Snapshot:
    """Copies the values of now."""
    copies = {name: on_cpu(value, copied=True) for name, value in tensors.items()}
    return Snapshot(unique_weights(model, copied=True), copies)


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint whose files have been compared with its record."""

    folder: Path
    state: dict[str, Any]
    """What `save` was given."""
    weights_sha256: str


def folder_of(checkpoints: Path, *, step: int) -> Path:
    """Where the checkpoint after `step` steps lies."""
    return checkpoints / f"step-{step:08d}"


def save(
    folder: Path, *, model: nn.Module, values: Snapshot, tokenizer_folder: Path, state: dict[str, Any],
    before_commit: Callable[[], None], chats: bool = False,
) -> Checkpoint:  # fmt: skip
    """Writes and commits a checkpoint; what is at `folder`, left by a run that was killed or fell back, is replaced.

    Args:
        model: its configuration is written, not its values of now.
        state: JSON values; `num_steps` among them.
        chats: the model was trained on conversations: the tokenizer gets the template by which they were written.
        before_commit: called when all but the record is written; what it raises leaves nothing committed.
    """
    if folder.exists():
        (folder / RECORD).unlink(missing_ok=True)
        shutil.rmtree(folder)
    export(model, folder=folder, weights=values.weights)
    for file in tokenizer.files(tokenizer_folder):
        shutil.copyfile(file, folder / file.name)
    if chats and chat.load(folder).name == chat.OURS:
        (folder / chat.FILE).write_text(chat.PLAIN, encoding="utf-8")
    save_file(dict(values.tensors), folder / OPTIMIZER)
    (folder / STATE).write_text(to_json(state), encoding="utf-8")
    files: dict[str, dict[str, Any]] = {}
    for file in sorted(folder.iterdir()):
        sync(file)
        files[file.name] = {"bytes": file.stat().st_size, "sha256": sha256_file(file)}
    failpoints.hit("checkpoint.before_record")
    before_commit()
    sync(folder)
    write_durable(folder / RECORD, to_json({"format": FORMAT, "files": files}))
    sync(folder.parent)
    return Checkpoint(folder=folder, state=state, weights_sha256=files[WEIGHTS]["sha256"])


def newest(checkpoints: Path, *, notice: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that is committed and undamaged; `notice` hears of each that is passed over."""
    for folder in sorted(checkpoints.glob("step-*"), reverse=True):
        try:
            return open_checkpoint(folder)
        except CorruptCheckpoint as error:
            notice(f"{error}; the one before is used")
    return None


def open_checkpoint(folder: Path) -> Checkpoint:
    """Compares every file of a checkpoint with its record.

    Raises:
        CorruptCheckpoint: no record, or a file that is missing or differs; says which.
        FormatError: a newer Tessera wrote it: no older checkpoint is then silently taken instead.
    """
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        files = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in record["files"].items()}
    except FileNotFoundError:
        raise CorruptCheckpoint(f"checkpoint {folder.name} has no {RECORD}: it was not finished") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise CorruptCheckpoint(f"checkpoint {folder.name} has an unreadable {RECORD}") from None
    check_format(record.get("format"), known=FORMAT, what=f"checkpoint {folder}", remedy="start a new run: --fresh")
    if not {WEIGHTS, OPTIMIZER, STATE} <= set(files):
        raise CorruptCheckpoint(f"checkpoint {folder.name} has a {RECORD} that does not name all of its files")
    for name, (num_bytes, sha256) in files.items():
        file = folder / name
        if file.parent != folder or not file.is_file():
            raise CorruptCheckpoint(f"checkpoint {folder.name} lacks {name}")
        if file.stat().st_size != num_bytes:
            raise CorruptCheckpoint(
                f"checkpoint {folder.name}: {name} has {file.stat().st_size} bytes, expected {num_bytes}"
            )
        if (found := sha256_file(file)) != sha256:
            raise CorruptCheckpoint(
                f"checkpoint {folder.name}: {name} has SHA-256 {found[:12]}, expected {sha256[:12]}"
            )
    state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    return Checkpoint(folder=folder, state=state, weights_sha256=files[WEIGHTS][1])


def restore_tensors(checkpoint: Checkpoint, *, tensors: Mapping[str, Tensor], like: Callable[..., Tensor]) -> None:
    """Copies a checkpoint's values into the tensors of an optimizer and of methods.

    Args:
        like: shares a whole tensor out as another is; see `parallel.Parallel`.

    Raises:
        CorruptCheckpoint: they are of another model, or of other methods.
    """
    try:
        kept = load_file(checkpoint.folder / OPTIMIZER)
    except SafetensorError as error:
        raise CorruptCheckpoint(f"checkpoint {checkpoint.folder.name}: {OPTIMIZER} is unreadable ({error})") from None
    if {name: value.shape for name, value in tensors.items()} != {name: value.shape for name, value in kept.items()}:
        raise CorruptCheckpoint(
            f"checkpoint {checkpoint.folder.name}: {OPTIMIZER} belongs to another model, or to other methods; "
            "start a new run: --fresh"
        )
    for name, value in tensors.items():
        value.copy_(like(kept[name], shards=value))


def prune(checkpoints: Path, *, keep: int, keep_best: int = 0) -> None:
    """Removes all but some committed checkpoints, and what was left uncommitted before the newest.

    Args:
        keep: the newest.
        keep_best: besides, those with the fewest held-out bits per byte, of those that were measured at their step.
    """
    committed = runs.committed(checkpoints)
    measured = {folder: bits for folder in committed[:-keep] if (bits := _heldout_bits(folder)) is not None}
    kept = {*committed[-keep:], *sorted(measured, key=lambda folder: (measured[folder], folder))[:keep_best]}
    for folder in sorted(checkpoints.glob("step-*")):
        if committed and folder < committed[-1] and folder not in kept:
            (folder / RECORD).unlink(missing_ok=True)
            shutil.rmtree(folder)


def _heldout_bits(folder: Path) -> float | None:
    progress = json.loads((folder / STATE).read_text(encoding="utf-8")).get("progress", {})
    measured = progress.get("bits_per_byte_step") == progress.get("next_step")
    return float(progress["bits_per_byte"]) if measured else None
