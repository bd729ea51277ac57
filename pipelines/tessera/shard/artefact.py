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

from tessera import publish
from tessera.errors import TokenizerError
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
    """The set's tokenizer: of its newest version that was made under the same tokenizer settings.

    None for a new set, for other settings, when the folder is gone or changed, and when a folder is given instead.
    """
    if settings.tokenizer.path is not None:
        return None
    for found in publish.records(manifest.manifest_path(home, name=settings.name)):
        ref = ShardRecord.model_validate(found).tokenizer
        record = _read_record(home.resolve(ref.path))
        if record.get("settings") == settings.tokenizer.identity() and holds(home, ref):
            return Pinned(ref=ref, trained_by=record["trained_by"])
    return None


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
    """Fills a folder under a passing name and gives it its own, which holds its hash; an equal one is reused."""
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
        if not holds(home, ref):
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
    return found if isinstance(found, dict) else {}
