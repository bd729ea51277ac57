"""Sample data that is real and always at hand: the documentation inside the installed Python packages.

It stands in for an organisation's private documentation: a hundred thousand rows, with owners, licences, versions and
dates. Source files are parsed, never imported. Costs 0.7 ms a docstring on one core; runs on all cores, without Spark.
"""

import ast
import multiprocessing
import os
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import pyarrow as pa

from tessera import lineage, publish, tables
from tessera.errors import SourceError
from tessera.home import Home
from tessera.lineage import SampleRecord
from tessera.prepare.settings import SampleSettings

TABLE = "python_docs"
SEMANTICS = 2

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("package", pa.string()),
        ("package_version", pa.string()),
        ("license", pa.string()),
        ("module", pa.string()),
        ("kind", pa.string()),
        ("signature", pa.string()),
        ("summary", pa.string()),
        ("text", pa.string()),
        ("updated_at", pa.timestamp("us", tz="UTC")),
    ]
)
STATS_COLUMNS = "id,package,package_version,license,kind,updated_at"

Row = dict[str, object]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Package:
    """One installed distribution and its Python files, (module, path) sorted by path."""

    name: str
    version: str
    license: str
    files: tuple[tuple[str, Path], ...]


def fingerprint(settings: SampleSettings) -> str:
    """Over the packages that would be read, with their versions."""
    inputs = [[package.name, package.version] for package in installed(settings)]
    return lineage.fingerprint(stage="sample", semantics=SEMANTICS, inputs=inputs, config=settings.identity())


def write_sample(settings: SampleSettings, *, home: Home, progress: Progress | None = None) -> SampleRecord:
    """Writes `tables/python_docs`, one row a docstring, in one publishing commit.

    Args:
        progress: called with (files read, files in all).

    Raises:
        SourceError: a named package is not installed.
    """
    began = time.monotonic()
    publication = publish.begin(home.tables / TABLE, name=TABLE)
    packages = installed(settings)
    rows = _number(sorted(read_docstrings(packages, progress=progress), key=lambda row: (str(row["id"]), _place(row))))
    data = pa.Table.from_pylist(rows, schema=SCHEMA)
    table = lineage.TableVersion(name=TABLE, path=f"tables/{TABLE}", version=publication.version)
    record = SampleRecord(
        fingerprint=fingerprint(settings),
        rows=data.num_rows,
        table=table,
        seconds=round(time.monotonic() - began, 3),
        code=lineage.code_version(),
        created=lineage.now(),
    )
    publish.commit(publication, data, record=record, stats_columns=STATS_COLUMNS)
    return record


def verify(record: SampleRecord, *, home: Home) -> bool:
    """Whether the recorded table version still opens and all its files are there."""
    path = home.resolve(record.table.path)
    return tables.exists(path) and not tables.missing_files(path, version=record.table.version)


def installed(settings: SampleSettings) -> list[Package]:
    """The distributions to read, sorted by name, each once.

    Raises:
        SourceError: a named package is not installed.
    """
    found: dict[str, Package] = {}
    wanted = None if settings.packages is None else {_normal(name) for name in settings.packages}
    for distribution in metadata.distributions():
        name = _normal(distribution.metadata["Name"])
        if name not in found and name != "tessera" and (wanted is None or name in wanted):
            found[name] = _package(distribution, name=name)
    if wanted is not None and (missing := sorted(wanted - set(found))):
        raise SourceError(f"sample.packages names {missing[0]}, which is not installed; see: pip list")
    return [found[name] for name in sorted(found)]


def read_docstrings(packages: list[Package], *, progress: Progress | None = None) -> Iterator[Row]:
    """The docstrings of all modules, classes and functions; order depends on nothing but the packages."""
    tasks = [(package, module, path) for package in packages for module, path in package.files]
    chunks = [tasks[start : start + 64] for start in range(0, len(tasks), 64)]
    done = 0
    spawned = multiprocessing.get_context("spawn")  # a fork would hold the JVM's pipes open
    with ProcessPoolExecutor(max_workers=len(os.sched_getaffinity(0)), mp_context=spawned) as pool:
        for chunk, rows in zip(chunks, pool.map(_read_files, chunks), strict=True):
            done += len(chunk)
            if progress:
                progress(done, len(tasks))
            yield from rows


def docstrings_of(source: bytes, *, module: str) -> Iterator[tuple[str, str, str, str]]:
    """Yields (qualified name, kind, signature, docstring) in the order of the source; none if it does not parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return
    stack: list[tuple[ast.AST, str, str]] = [(tree, module, "")]
    while stack:
        node, name, signature = stack.pop()
        text = ast.get_docstring(node) if isinstance(node, Documented) else None
        if text:
            yield name, _kind(node), signature, text.encode("utf-8", "replace").decode()
        inside = [(child, f"{name}.{child.name}", _signature(child)) for child in _definitions(node)]
        stack.extend(reversed(inside))


Documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def _definitions(node: ast.AST) -> Iterator[Definition]:
    """Classes and functions below `node`, also inside `if` and `try`, but not inside one another."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield child
        elif isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
            yield from _definitions(child)


def _kind(node: ast.AST) -> str:
    if isinstance(node, ast.Module):
        return "module"
    return "class" if isinstance(node, ast.ClassDef) else "function"


def _signature(node: Definition) -> str:
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        return f"class {node.name}({bases})" if bases else f"class {node.name}"
    result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{node.name}({ast.unparse(node.args)}){result}"


def _read_files(tasks: list[tuple[Package, str, Path]]) -> list[Row]:
    rows: list[Row] = []
    for package, module, path in tasks:
        try:
            source, modified = path.read_bytes(), path.stat().st_mtime
        except OSError:
            continue
        for name, kind, signature, text in docstrings_of(source, module=module):
            rows.append(
                {
                    "id": name,
                    "package": package.name,
                    "package_version": package.version,
                    "license": package.license,
                    "module": module,
                    "kind": kind,
                    "signature": signature,
                    "summary": text.strip().partition("\n")[0].strip() or None,
                    "text": text,
                    "updated_at": datetime.fromtimestamp(int(modified), tz=UTC),
                }
            )
    return rows


def _number(rows: list[Row]) -> list[Row]:
    """Gives the second and later rows of one qualified name an ordinal: overloads, property setters."""
    previous, ordinal = None, 1
    for row in rows:
        name = row["id"]
        ordinal = ordinal + 1 if name == previous else 1
        previous = name
        if ordinal > 1:
            row["id"] = f"{name}#{ordinal}"
    return rows


def _place(row: Row) -> tuple[str, str]:
    return str(row["package"]), str(row["module"])


def _package(distribution: metadata.Distribution, *, name: str) -> Package:
    files = {}
    for file in distribution.files or ():
        if file.suffix == ".py" and ".." not in file.parts:
            parts = file.parts[:-1] if file.name == "__init__.py" else file.with_suffix("").parts
            files[".".join(parts)] = Path(str(distribution.locate_file(file)))
    described = distribution.metadata
    classifiers = [line.rsplit(" :: ", 1)[-1] for line in described.get_all("Classifier") or [] if "License" in line]
    license_line = _first(described, "License-Expression") or (classifiers or [""])[0] or _first(described, "License")
    first_line = (license_line.splitlines() or [""])[0][:100]
    return Package(name=name, version=distribution.version, license=first_line, files=tuple(sorted(files.items())))


def _normal(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def _first(described: metadata.PackageMetadata, key: str) -> str:
    return str((described.get_all(key) or [""])[0])
