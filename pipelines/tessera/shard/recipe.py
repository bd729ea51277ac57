"""The recipe of a set: from the settings that ask for it, or from the record of a version that is stored."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tessera import lineage
from tessera.home import Home
from tessera.lineage import ShardRecord, TableVersion, TokenizerRef
from tessera.publish import Publication
from tessera.shard import chat, manifest, tokenizer
from tessera.shard.cell import Recipe
from tessera.shard.settings import ShardSettings
from tessera.shard.stage import NOT_COMPACTED, SEMANTICS


def make(
    values: Mapping[str, Any], *, ref: TokenizerRef, buckets: Mapping[int, int], compacted: int, home: Home,
    max_uncut_bytes: int = tokenizer.MAX_UNCUT_BYTES,
) -> Recipe:  # fmt: skip
    """What decides the bytes of a set beside its documents.

    Args:
        values: `ShardSettings.identity()`, of today's settings or as a record holds it.
        buckets: by generation.
        compacted: see `stage.compaction`.
        max_uncut_bytes: see `TokenizerSettings`.
    """
    folder = home.resolve(ref.path)
    return Recipe(
        buckets=dict(buckets),
        compacted=compacted,
        tokenizer=replace(tokenizer.definition(folder), max_uncut_bytes=max_uncut_bytes),
        template=chat.load(folder),
        seq_len=values["seq_len"],
        seed=values["seed"],
        shard_bytes=values["shard_bytes"],
        packing=values["packing"],
        truncate=values["truncate"],
    )


def recorded(record: ShardRecord, *, home: Home) -> Recipe:
    """The recipe that a stored version was written by."""
    rows = manifest.read_cells(home, record)
    buckets = dict(zip(rows["generation"].to_pylist(), rows["buckets"].to_pylist(), strict=True))
    version = record.inputs[0].version
    compacted = max((done for done in record.compactions if done <= version), default=NOT_COMPACTED)
    return make(record.settings, ref=record.tokenizer, buckets=buckets, compacted=compacted, home=home)


def facts(settings: ShardSettings, *, ref: TokenizerRef, publication: Publication, home: Home) -> dict[str, Any]:
    """What the record of a version to come says beside its inputs and counts."""
    name = settings.name
    return {
        "name": name,
        "manifest": TableVersion(
            name=f"{name}/manifest", path=home.relative(publication.path), version=publication.version
        ),
        "tokenizer": ref,
        "seq_len": settings.seq_len,
        "settings": settings.identity(),
        "recipe": hash_of(settings.identity(), tokenizer_sha256=ref.sha256),
        "code": lineage.code_version(),
        "created": lineage.now(),
    }


def hash_of(values: Mapping[str, Any], *, tokenizer_sha256: str) -> str:
    """Names a recipe, whatever the documents: files of an equal one may be kept.

    Args:
        values: `ShardSettings.identity()`.
    """
    deciding = {key: value for key, value in values.items() if key not in ("name", "tokenizer")}
    return lineage.sha256_json([SEMANTICS, tokenizer_sha256, deciding])
