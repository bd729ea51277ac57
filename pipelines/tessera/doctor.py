"""Is this machine ready? Each finding says ok, or what to do. Starts nothing but `java -version`."""

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from tessera import java, spark
from tessera.errors import SetupError
from tessera.home import Home

PACKAGES = ("pyspark", "delta-spark", "deltalake", "mlflow", "torch", "transformers", "pandas", "pyarrow")
WORKING_PAIR = ("4.2.0", "4.4.0")
"""The versions of pyspark and of Delta's jars that were run together."""
DISK_BYTES = 5 * 2**30
OFFLINE_FLAGS = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    ok: bool
    found: str

    def __str__(self) -> str:
        return f"{'ok  ' if self.ok else 'MEND'}  {self.name:<13} {self.found}"


def examine(home: Home) -> list[Finding]:
    """Looks at Java, jars, versions, offline flags, disk, cores, memory and GPUs."""
    looks: list[Callable[[Home], Iterator[Finding]]] = [_java, _jars, _versions, _offline, _disk, _cores, _gpus]
    return [finding for look in looks for finding in look(home)]


def _java(home: Home) -> Iterator[Finding]:
    try:
        java_home = java.find_java()
        yield Finding("java", True, f"{java.java_version(java_home)} in {java_home}")
    except SetupError as error:
        yield Finding("java", False, str(error))


def _jars(home: Home) -> Iterator[Finding]:
    try:
        names = ", ".join(file.name for file in spark.jar_files())
        yield Finding("delta jars", True, names)
    except SetupError as error:
        yield Finding("delta jars", False, str(error))


def _versions(home: Home) -> Iterator[Finding]:
    python = ".".join(map(str, sys.version_info[:3]))
    fits = (3, 11) <= sys.version_info[:2] < (3, 13)
    yield Finding("python", fits, python if fits else f"{python}; use 3.11 or 3.12")
    for name in PACKAGES:
        try:
            yield Finding(name, True, metadata.version(name))
        except metadata.PackageNotFoundError:
            yield Finding(name, False, f"not installed; pip install {name}")
    found = metadata.version("pyspark") if importlib.util.find_spec("pyspark") else "none"
    if found != WORKING_PAIR[0]:
        pair = f"pyspark {found} with Delta jars {WORKING_PAIR[1]}; use pyspark {WORKING_PAIR[0]}"
        yield Finding("pair", False, pair)


def _offline(home: Home) -> Iterator[Finding]:
    unset = [flag for flag in OFFLINE_FLAGS if os.environ.get(flag) not in (None, "1")]
    found = f"set {', '.join(unset)} to 1 or leave it out" if unset else "no download is ever tried"
    yield Finding("offline", not unset, found)


def _disk(home: Home) -> Iterator[Finding]:
    place = next(folder for folder in (home.root, *home.root.parents) if folder.exists())
    free = shutil.disk_usage(place).free
    enough = free >= DISK_BYTES
    found = f"{free / 2**30:.0f} GiB free for {home.root}"
    yield Finding("disk", enough, found if enough else f"{found}; {DISK_BYTES / 2**30:.0f} GiB are wanted")


def _cores(home: Home) -> Iterator[Finding]:
    import psutil

    cores, memory = len(os.sched_getaffinity(0)), psutil.virtual_memory().total / 2**30
    found = f"{cores}, with {memory:.0f} GiB of memory"
    yield Finding("cores", memory >= 6, found if memory >= 6 else f"{found}; 6 GiB are wanted")


def _gpus(home: Home) -> Iterator[Finding]:
    devices = sorted(Path("/proc/driver/nvidia/gpus").glob("*")) if Path("/proc/driver/nvidia/gpus").exists() else []
    yield Finding("gpus", True, f"{len(devices)}" if devices else "none; train.device cpu is used")
