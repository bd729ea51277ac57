"""Environments that hold what some requirements ask for and nothing else, made without a network in a second.

The declared dependencies of the installed distributions are followed to their end, and exactly their files are linked
into a fresh virtual environment. So an import that nobody declared fails there as it would on another machine.
"""

import os
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LIBRARIES = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"


def closure(requirements: Iterable[str]) -> list[Distribution]:
    """The distributions that `requirements` bring, extras followed where they are asked for, markers evaluated here.

    Raises:
        PackageNotFoundError: this environment lacks one.
        AssertionError: it has one of a version that is not asked for.
    """
    found: dict[tuple[str, str], Distribution] = {}
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        for extra in ("", *wanted.extras):
            if (name, extra) in found:
                continue
            found[name, extra] = package = distribution(name)
            assert wanted.specifier.contains(package.version, prereleases=True), f"{wanted}: {package.version}"
            for text in package.requires or ():
                needed = Requirement(text)
                if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                    waiting.append(needed)
    return list({name: package for (name, _), package in found.items()}.values())


def requirements_of(package: Distribution, *, extra: str = "") -> list[str]:
    """What a distribution asks for, with one of its extras."""
    needed = [Requirement(text) for text in package.requires or ()]
    asked = [one for one in needed if one.marker is None or any(one.marker.evaluate({"extra": e}) for e in ("", extra))]
    return [str(one) for one in asked]


def make_environment(folder: Path, *, holding: Iterable[Distribution] = ()) -> Path:
    """A virtual environment with links to the files of these distributions; its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    link(holding, into=folder)
    return folder / "bin" / "python"


def link(packages: Iterable[Distribution], *, into: Path) -> None:
    """Puts links to what these distributions installed into an environment."""
    libraries = into / LIBRARIES
    for package in packages:
        here = Path(str(package.locate_file("")))
        for top in {file.parts[0] for file in package.files or ()} - {"..", "__pycache__"}:
            if not (libraries / top).is_symlink():
                (libraries / top).symlink_to(here / top)


def cannot_import(python: Path, names: Iterable[str]) -> list[str]:
    """Those of `names` that this Python does not find."""
    script = "import importlib.util, sys; print(*[n for n in sys.argv[1:] if importlib.util.find_spec(n) is None])"
    return run(python, "-c", script, *names).stdout.split()


def run(python: Path, *arguments: str, **options: object) -> "subprocess.CompletedProcess[str]":
    """Runs a Python of ours without the caller's paths, its output caught."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    options = {"capture_output": True, "text": True, "timeout": 280, "env": environment, **options}
    return subprocess.run([str(python), *arguments], **options)  # type: ignore[call-overload,no-any-return]
