"""The tokenizer of a set as an artefact of its own: `tokenizers/NAME-<sha12>/`, with a record of what made it.

A set keeps its tokenizer: later versions of the set use it as it is, because a model knows no other. So the tokenizer
is an input of those versions, and enters their fingerprint; the version that trained it needs only its documents.
"""

import json
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tessera import lineage, publish
from tessera.errors import TokenizerError
from tessera.files import write_whole
from tessera.home import Home
from tessera.lineage import ShardRecord, TokenizerRef
from tessera.shard import manifest, tokenizer
from tessera.shard.settings import ShardSettings

FORMAT = 1
RECORD = "record.json"


@dataclass(frozen=True)
class Pinned:
    """The tokenizer that a set has already."""

    ref: TokenizerRef
    trained_by: str
    """Fingerprint of the shard stage that trained it; empty for a folder that was given."""


def find_pinned(home: Home, *, settings: ShardSettings) -> Pinned | None:
    """The set's tokenizer, which every version of it is written with; None for a new set.

    Raises:
        TokenizerError: the settings ask for another one, or its folder is gone or changed.
    """
    found = publish.read_record(manifest.manifest_path(home, name=settings.name))
    if found is None:
        return None
    ref = ShardRecord.model_validate(found).tokenizer
    if settings.tokenizer.path is not None:
        given = tokenizer.identity(Path(settings.tokenizer.path))
        if given != ref.sha256:
            raise _another(settings, has=f"{ref.sha256[:12]}", wanted=f"{settings.tokenizer.path}, {given[:12]}")
        return Pinned(ref=ref, trained_by="")
    if not holds(home, ref):
        raise TokenizerError(
            f"{ref.path}, the tokenizer of shard set {settings.name}, is gone or changed; restore it, or write another "
            "set: --set shard.name=NAME"
        )
    record = _read_record(home.resolve(ref.path))
    if not {"settings", "trained_by"} <= set(record):
        raise TokenizerError(
            f"{ref.path}/{RECORD} cannot be read, so how the tokenizer of shard set {settings.name} was made is not "
            f"known; restore it, or give the folder itself: --set shard.tokenizer.path={home.resolve(ref.path)}"
        )
    if record["settings"] != settings.tokenizer.identity():
        trained = f"trained with {record['settings']}" if record["settings"] else f"given, {ref.sha256[:12]}"
        raise _another(settings, has=trained, wanted=f"one trained with {settings.tokenizer.identity()}")
    return Pinned(ref=ref, trained_by=record["trained_by"])


def _another(settings: ShardSettings, *, has: str, wanted: str) -> TokenizerError:
    return TokenizerError(
        f"shard set {settings.name} has a tokenizer ({has}), shard.tokenizer asks for another ({wanted}). A set keeps "
        "its tokenizer; write another set: --set shard.name=NAME"
    )


def holds(home: Home, ref: TokenizerRef) -> bool:
    """Whether the folder is there with the recorded contents."""
    try:
        return tokenizer.identity(home.resolve(ref.path)) == ref.sha256
    except (TokenizerError, OSError):
        return False


def train(home: Home, *, settings: ShardSettings, texts: list[str], fingerprint: str) -> TokenizerRef:
    """Trains the set's tokenizer on `texts` and stores it.

    Args:
        fingerprint: of the shard stage that asks.
    """
    vocab_size = settings.tokenizer.vocab_size
    values = {"settings": settings.tokenizer.identity(), "trained_by": fingerprint, "sample_documents": len(texts)}
    return _store(
        home, name=settings.name, record=values,
        fill=lambda folder: tokenizer.train(texts, folder=folder, vocab_size=vocab_size),
    )  # fmt: skip


def copy(home: Home, *, settings: ShardSettings, folder: Path) -> TokenizerRef:
    """Stores the tokenizer files of a local folder: a home that is moved keeps its tokenizer.

    Raises:
        TokenizerError: the folder is incomplete.
    """

    def fill(target: Path) -> None:
        for file in tokenizer.files(folder):
            shutil.copyfile(file, target / file.name)

    return _store(home, name=settings.name, record={"settings": {}, "trained_by": ""}, fill=fill)


def _store(home: Home, *, name: str, record: dict[str, Any], fill: Callable[[Path], None]) -> TokenizerRef:
    """Fills a folder under a passing name and gives it its own, which holds its hash; an equal one is reused.

    Its record becomes this one: a set that was published never comes here, so the old one is a killed writer's.
    """
    home.tokenizers.mkdir(parents=True, exist_ok=True)
    partial = home.tokenizers / f".{name}-{uuid.uuid4().hex}"
    partial.mkdir()
    try:
        fill(partial)
        loaded = tokenizer.definition(partial)
        sha256 = tokenizer.identity(partial)
        text = json.dumps({"format": FORMAT, "sha256": sha256, **record}, indent=2, sort_keys=True)
        (partial / RECORD).write_text(text + "\n", encoding="utf-8")
        folder = home.tokenizers / f"{name}-{sha256[:12]}"
        ref = TokenizerRef(
            path=home.relative(folder), sha256=sha256, vocab_size=loaded.vocab_size, end_id=loaded.end_id
        )
        if holds(home, ref):
            write_whole(folder / RECORD, (text + "\n").encode())
        else:
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return ref


def _read_record(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    lineage.check_format(found.get("format"), known=FORMAT, what=str(folder / RECORD))
    return found
