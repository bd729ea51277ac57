"""The import law: which room may import which, and which library may be imported where. Read off the syntax trees."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tessera

ROOT = Path(tessera.__file__).parent
ABOVE = {
    "settings", "results", "stages", "status", "pipeline", "pandas", "command", "shard_commands", "audit_commands",
    "cli", "class_archive", "row_lineage", "jobs", "examining", "evaluate_commands",
}  # fmt: skip
ROOT_MODULES = {path.stem for path in ROOT.glob("*.py")} - ABOVE
RANKS = {
    "model": 1,
    "explore": 1,
    "prepare": 1,
    "shard": 2,
    "train": 3,
    "evaluate": 4,
    "serve": 5,
    "settings": 6,
    "results": 6,
    "stages": 7,
    "status": 8,
    "forgetting": 8,
    "reproducing": 8,
    "row_lineage": 9,
    "examining": 9,
    "pipeline": 10,
    "class_archive": 11,
    "pandas": 11,
    "command": 11,
    "shard_commands": 12,
    "audit_commands": 12,
    "evaluate_commands": 12,
    "cli": 13,
    "jobs": 14,
}
"""A room imports itself, rooms of a lower rank and root modules; prepare and shard leave the model alone."""

WALLS = {
    "pyspark": (
        "spark.py",
        "spark_tables.py",
        "connect.py",
        "prepare/",
        "shard/write/",
        "train/launch.py",
        "train/rows_seen.py",
        "evaluate/launch.py",
        "serve/batch.py",
    ),
    "delta": ("spark.py", "prepare/", "shard/write/"),
    "torch": ("model/", "shard/read/", "train/", "evaluate/", "serve/"),
    "transformers": ("model/", "train/", "serve/"),
    "plotly": ("explore/", "prepare/report/"),
    "petastorm": ("shard/read/petastorm/",),
    "mlflow": ("tracking.py", "registry.py", "serve/", "explore/"),
}
NEVER = ("sklearn", "scipy", "pickle", "cloudpickle")


def modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Full names of what a file imports when it runs: not what only a type checker reads."""
    pending: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            pending.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        pending.extend(ast.iter_child_nodes(node))


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return parts[0] if len(parts) > 1 else path.stem


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_rooms_import_upstream_only(path: Path) -> None:
    room = room_of(path)
    for name in imports(path):
        if not name.startswith("tessera."):
            continue
        target = name.split(".")[1]
        if target in ROOT_MODULES or target == room or target == "__version__":
            continue
        if room in ("model", "explore") or room in ROOT_MODULES:
            pytest.fail(f"{path.relative_to(ROOT)} imports {name}")
        assert RANKS[target] < RANKS[room], f"{path.relative_to(ROOT)} imports {name}, which stands downstream"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_libraries_stay_behind_their_walls(path: Path) -> None:
    place = path.relative_to(ROOT).as_posix()
    for name in imports(path):
        library = name.split(".")[0]
        assert library not in NEVER, f"{place} imports {name}"
        if library in WALLS:
            assert place.startswith(WALLS[library]), f"{place} imports {name}"


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["run", "--help"], ["train", "--set", "train.stepz=3"], ["config"]],
    ids=lambda arguments: " ".join(arguments),
)
def test_the_command_line_starts_lean(arguments: list[str]) -> None:
    """Help, configuration and its errors import nothing heavy."""
    script = (
        "import sys; from tessera.cli import main\n"
        f"sys.argv = ['tessera', *{arguments!r}]\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'pyspark', 'mlflow', 'transformers', 'pandas', 'pyarrow', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
