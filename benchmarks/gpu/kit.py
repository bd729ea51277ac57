"""Makes dist/gpu-kit.tar.gz: what a machine with a GPU and nothing else needs to check Tessera: make gpu-kit

The archive holds the package's source, a small shard set that the real line wrote from the docstrings of installed
packages, its tokenizer, a run folder, what the CPU of this machine computes for its first steps, and check.py. Making
it takes about two minutes, most of it Spark's. There: `tar xf gpu-kit.tar.gz && cd gpu-kit && python check.py`.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa

import tessera
from tessera.home import Home
from tessera.shard.manifest import read_manifest, read_record
from tessera.shard.run_manifest import SetInfo, write_run_manifest
from tessera.train.run import RunFolder, RunSpec, to_json
from tessera.train.settings import TrainSettings

HERE = Path(__file__).resolve().parent
NAME = "gpu-kit"
LIMIT_BYTES = 60 * 2**20
SCRIPTS = ("check.py", "throughput.py")
RUN = "kit"
SETTINGS = (
    "sample.packages=[networkx, numpy]", "shard.name=kit", "shard.seq_len=256", "shard.tokenizer.vocab_size=2048",
    "shard.tokenizer.sample_bytes=1000000",
)  # fmt: skip
TRAIN: dict[str, Any] = {
    "steps": 4, "batch_size": 8, "ranks": 1, "checkpoint": {"every_seconds": None}, "heldout": {"sequences": 16},
    "optimizer": {"embedding_lr": 0.02}, "methods": {"wsd": {"warmup": 1.0, "decay": 0.0}},
}  # fmt: skip
"""So gentle that the loss falls from the first step on, which four steps at the full rate would not let it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("dist") / f"{NAME}.tar.gz")
    out = parser.parse_args().out.absolute()
    with tempfile.TemporaryDirectory(prefix="tessera-kit-") as folder:
        home = Home(Path(folder) / "home")
        run_line(home)
        record = read_record(home, name="kit")
        pack(home, manifest=read_manifest(home, "kit"), tokenizer=record.tokenizer.path, out=out)
    print(f"{out}: {out.stat().st_size / 2**20:.1f} MiB")


def run_line(home: Home) -> None:
    """The line as far as the shards, as a user runs it."""
    assignments = [part for setting in SETTINGS for part in ("--set", setting)]
    environment = {**os.environ, "TESSERA_HOME": str(home.root)}
    for stage in ("sample", "prepare", "shard"):
        command = [sys.executable, "-m", "tessera.cli", stage, *assignments]
        subprocess.run(command, env=environment, check=True)


def pack(home: Home, *, manifest: pa.Table, tokenizer: str, out: Path) -> None:
    """Lays out the kit, lets its own check.py compute what the CPU gives, and writes the archive.

    Args:
        manifest: of a shard set in `home`, as `read_manifest` gives it.
        tokenizer: its folder, relative to the home.

    Raises:
        SystemExit: the archive is larger than LIMIT_BYTES.
    """
    with tempfile.TemporaryDirectory(prefix="tessera-kit-") as folder:
        kit = Path(folder) / NAME
        lay_out(kit, home=home, manifest=manifest, tokenizer=tokenizer)
        subprocess.run([sys.executable, str(kit / "check.py"), "--record"], check=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(out, "w:gz") as archive:
            archive.add(kit, NAME, filter=_plain)
    size = out.stat().st_size
    if size >= LIMIT_BYTES:
        out.unlink()
        raise SystemExit(f"the kit has {size} bytes, wanted less than {LIMIT_BYTES}; shard fewer packages in SETTINGS")


def lay_out(kit: Path, *, home: Home, manifest: pa.Table, tokenizer: str) -> None:
    """The folder that the archive unpacks to, without expected.json."""
    info = SetInfo.from_metadata(manifest.schema.metadata)
    there = Home(kit / "home")
    shutil.copytree(Path(tessera.__file__).parent, kit / "tessera", ignore=shutil.ignore_patterns("__pycache__"))
    for script in SCRIPTS:
        shutil.copyfile(HERE / script, kit / script)
    for name in manifest["file"].to_pylist():
        target = there.resolve(info.root) / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(home.resolve(info.root) / name, target)
    shutil.copytree(home.resolve(tokenizer), there.resolve(tokenizer))
    folder = RunFolder(there.runs / RUN)
    folder.checkpoints.mkdir(parents=True)
    write_run_manifest(manifest, folder.manifest)
    settings = TrainSettings.model_validate(TRAIN)
    spec = RunSpec(run=RUN, fingerprint="0" * 64, settings=settings, tokenizer=tokenizer, block_shards=4)
    folder.spec.write_text(to_json(spec.model_dump(mode="json")), encoding="utf-8")
    folder.attempt.write_text("1\n")


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """No compiled files, no user of this machine."""
    if "__pycache__" in entry.name:
        return None
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


if __name__ == "__main__":
    main()
