"""A set's version as a folder for other readers: upstream's names, and an `index.json` for each split, written last.

Files are linked where the file system allows it, else copied, or compressed; each is hashed on the way. Costs a read of
the set, and its size on disk where it is not linked. The index in the set's own folders is not touched.
"""

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from tessera.errors import CorruptShard, ShardSetError
from tessera.files import write_whole
from tessera.home import Home
from tessera.progress import Tell, silent
from tessera.shard import manifest
from tessera.shard.format import compression as codecs
from tessera.shard.format import mds
from tessera.shard.read.manifest import SPLITS, ShardFile

CHUNK_BYTES = 2**22


@dataclass(frozen=True)
class Exported:
    """What was written."""

    name: str
    version: int
    files: int
    num_bytes: int
    linked: int
    """Files that share their bytes with the set."""


def export(
    home: Home, *, name: str, to: Path, version: int | None = None, compression: str | None = None, tell: Tell = silent
) -> Exported:
    """Writes `to/SPLIT/shard.00000.mds` and so on, and `to/SPLIT/index.json`.

    Args:
        compression: of the files, see `format.compression`; None links or copies them.

    Raises:
        ShardSetError: there is no such set or version, or `to` holds something.
        CorruptShard: a file of the set is not what its manifest says; the split it belongs to has no index then.
    """
    record = manifest.read_record(home, name=name, version=version)
    table = manifest.read_manifest(home, name, record.manifest.version)
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ShardSetError(f"{to} is not an empty folder; give a new one")
    if compression is not None:
        codecs.parse(compression)
    folder = manifest.set_folder(home, name=name)
    files = num_bytes = linked = 0
    for split in SPLITS:
        entries = []
        for number, file in enumerate(manifest.shard_files(table, split=split)):
            source, target = folder / file.file, to / split / f"shard.{number:05d}.mds"
            zip_data = None
            if compression is None:
                linked += _place(file, source=source, target=target)
            else:
                zip_data = _compress(file, source=source, target=target, compression=compression)
            config = {**mds.read_config(source), "compression": compression}
            entries.append(
                mds.index_entry(
                    config, basename=target.name, num_bytes=file.num_bytes, samples=file.samples, zip_data=zip_data,
                    hashes=dict.fromkeys(config["hashes"], file.sha256),
                )
            )  # fmt: skip
            files += 1
            num_bytes += file.num_bytes
            tell("exporting", files, table.num_rows)
        if entries:
            index = mds.index_json(entries, tessera_manifest_version=record.manifest.version)
            write_whole(to / split / "index.json", index.encode())
    return Exported(name=name, version=record.manifest.version, files=files, num_bytes=num_bytes, linked=linked)


def _place(file: ShardFile, *, source: Path, target: Path) -> bool:
    """Links or copies a file, and compares its hash; whether it was linked."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        try:
            os.link(source, target)
            linked = True
        except OSError:
            shutil.copyfile(source, target)
            linked = False
    except FileNotFoundError:
        raise _corrupt(source, found="is missing") from None
    if (found := _sha256(target)) != file.sha256:
        target.unlink()
        raise _corrupt(source, found=f"has SHA-256 {found}, expected {file.sha256}")
    return linked


def _compress(file: ShardFile, *, source: Path, target: Path, compression: str) -> dict[str, object]:
    """Writes a file compressed; what the index says of that."""
    try:
        data = source.read_bytes()
    except FileNotFoundError:
        raise _corrupt(source, found="is missing") from None
    if (found := hashlib.sha256(data).hexdigest()) != file.sha256:
        raise _corrupt(source, found=f"has SHA-256 {found}, expected {file.sha256}")
    packed = codecs.compress(data, compression=compression)
    path = target.with_name(f"{target.name}.{codecs.parse(compression)[0]}")
    write_whole(path, packed)
    return {"basename": path.name, "bytes": len(packed), "hashes": {"sha256": hashlib.sha256(packed).hexdigest()}}


def _corrupt(source: Path, *, found: str) -> CorruptShard:
    return CorruptShard(f"shard {source} {found}; look at all: tessera shard verify {source.parent.parent.name}")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
