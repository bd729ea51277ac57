"""`tables/answers`, without Spark: what an answer is called by, which table and model are meant, what is still valid.

An answer belongs to (doc_id, model, model_version, request, prompt_sha256). `request` covers the template, the sampling
and the weights; `prompt_sha256` the row as the prompt shows it. A row is pending when the table holds no such answer:
new and changed rows are, and every row after a new version, template or sampling. Older answers stay.

All this is found in half a second, and the model version in the time that mlflow takes to import; no JVM, no torch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from tessera import lineage, publish, registry, tables
from tessera.errors import ConfigError, ModelError, SourceError
from tessera.home import Home
from tessera.lineage import ScoreRecord
from tessera.prepare import sources
from tessera.prepare.sources import Located
from tessera.serve import stage
from tessera.serve.score_settings import ScoreSettings, Template, parse_template

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

SEMANTICS = 1

SCHEMA = pa.schema(
    [
        ("doc_id", pa.string()),
        ("source", pa.string()),
        ("source_version", pa.int64()),
        ("row_key", pa.string()),
        ("model", pa.string()),
        ("model_version", pa.int64()),
        ("request", pa.string()),
        ("prompt_sha256", pa.string()),
        ("answer", pa.string()),
        ("prompt_tokens", pa.int64()),
        ("tokens", pa.int64()),
        ("finish_reason", pa.string()),
        ("seconds", pa.float64()),
        ("at", pa.string()),
    ]
)
"""A row an answer. `row_key`: the key columns as canonical JSON. A prompt that cannot be answered has a null `answer`,
and `finish_reason` says why (see batch.UNANSWERED). `at`: when the slice was done, UTC. No prompt is stored."""

STATS_COLUMNS = "doc_id,source,source_version,model,model_version,request,prompt_sha256,finish_reason,at"
"""Delta keeps minima and maxima of these only: keys and answers in `_delta_log` would outlive their erasure."""

UNPRINTABLE = ("struct", "array", "map", "binary", "variant", "interval")
SLICE_BITS = 32


@dataclass(frozen=True)
class ModelVersion:
    """The model version that answers, as the registry knows it."""

    name: str
    version: int
    weights_sha256: str


@dataclass(frozen=True)
class Model(ModelVersion):
    """The same with its files at hand."""

    checkpoint: Path
    """Configuration, weights and tokenizer, in a folder that every executor can read."""


def template_of(settings: ScoreSettings) -> Template:
    """The prompt taken apart.

    Raises:
        ConfigError: there is none.
    """
    if settings.prompt is None:
        raise ConfigError('score needs a prompt: --prompt "Summarise: {column}", or score.prompt')
    return parse_template(settings.prompt)


def find_source(settings: ScoreSettings, *, home: Home, spark: "Callable[[], SparkSession] | None" = None) -> Located:
    """Finds the table, pins its version, and checks that it has the columns of the key and the prompt.

    Args:
        spark: gives the session; called only for a table of the Spark catalog.

    Raises:
        ConfigError: no table or no prompt is named.
        SourceError: no such table, version or column; or a column of the prompt is not text, number, time or boolean.
    """
    template = template_of(settings)
    if settings.source is None:
        raise ConfigError("score needs a table: --source TABLE, or score.source")
    place = _place(settings.source, home=home)
    found = sources.locate(
        place, option="--source", name=settings.name, home=home, spark=spark, version=settings.version
    )
    _check_columns(settings, template=template, columns=found.columns, where=found.location)
    return found


def find_version(tracking_uri: str, *, model: str, registry_uri: str | None = None) -> ModelVersion:
    """The version that `models:/NAME@ALIAS` or `models:/NAME/VERSION` means now; its files are not touched.

    Raises:
        ModelError: there is none, saying what there is; or Tessera did not register it.
    """
    version = registry.get_version(tracking_uri, model=model, registry_uri=registry_uri)
    weights = version.tags.get(stage.WEIGHTS_TAG)
    if not weights:
        raise ModelError(f"{version.uri} was not registered by Tessera; name a version that tessera serve made")
    return ModelVersion(name=version.name, version=version.version, weights_sha256=weights)


def fetch_model(tracking_uri: str, *, version: ModelVersion, home: Home, registry_uri: str | None = None) -> Model:
    """Its files on this machine; those of an MLflow server are fetched once a version.

    Raises:
        ModelError: they are gone.
    """
    uri = f"models:/{version.name}/{version.version}"
    folder = registry.resolve(
        tracking_uri, model=uri, registry_uri=registry_uri, artifacts=home.mlflow_artifacts, cache=home.models
    )
    checkpoint = folder / "artifacts" / stage.CHECKPOINT
    if not checkpoint.is_dir():
        raise ModelError(f"{uri}: its checkpoint is not at {checkpoint}; register the run again: tessera serve --fresh")
    return Model(
        name=version.name, version=version.version, weights_sha256=version.weights_sha256, checkpoint=checkpoint
    )


def find_model(tracking_uri: str, *, model: str, home: Home, registry_uri: str | None = None) -> Model:
    """`find_version`, then `fetch_model`."""
    version = find_version(tracking_uri, model=model, registry_uri=registry_uri)
    return fetch_model(tracking_uri, version=version, home=home, registry_uri=registry_uri)


def request_of(settings: ScoreSettings, *, model: ModelVersion) -> str:
    """SHA-256 of all that decides an answer besides the row: weights, template, sampling. Greedy has no seed."""
    asked = settings.model_dump(mode="json", include={"prompt", "max_tokens", "stop"})
    if settings.temperature > 0:
        asked |= settings.model_dump(mode="json", include={"temperature", "top_p", "seed"})
    return lineage.sha256_json({"semantics": SEMANTICS, "weights": model.weights_sha256, **asked})


def fingerprint(source: Located, *, settings: ScoreSettings, model: ModelVersion) -> str:
    """Over the pinned rows, the model version and the request."""
    inputs = {
        "source": [source.pinned.name, source.pinned.version, list(settings.key), settings.where],
        "model": [model.name, model.version],
    }
    request = request_of(settings, model=model)
    return lineage.fingerprint(stage="score", semantics=SEMANTICS, inputs=inputs, config={"request": request})


def verify(record: ScoreRecord, *, source: Located, home: Home) -> bool:
    """Whether the record is of this very table, left no row pending, and nothing has touched its answers since."""
    if record.remaining or [table.table_id for table in record.inputs] != [source.pinned.table_id]:
        return False
    path = home.resolve(record.table.path)
    if not tables.exists(path):
        return False
    newest = tables.open_table(path).version()
    return _only_scored(path, after=record.table.version, newest=newest) and not tables.missing_files(
        path, version=newest
    )


def num_slices(num_rows: int, *, slice_rows: int) -> int:
    """The smallest power of two that leaves a slice at most `slice_rows` rows on average."""
    wanted = -(-num_rows // slice_rows)
    return int(min(1 << max(wanted - 1, 0).bit_length(), 2**SLICE_BITS))


def _only_scored(path: Path, *, after: int, newest: int) -> bool:
    """Whether each version above `after` is a commit of scoring: those append only."""
    numbers: Any = (record["table"]["version"] for record in publish.records(path))
    return len(list(takewhile(lambda number: number > after, numbers))) == newest - after


def _place(source: str, *, home: Home) -> Path | str:
    """The folder that is meant; else the text itself, a URI or what only the Spark catalog may know."""
    if "://" in source:
        return source
    if "/" not in source and tables.exists(home.tables / source):
        return home.tables / source
    path = Path(source).expanduser()
    path = path if path.is_absolute() else Path.cwd() / path
    return path if "/" in source or tables.exists(path) else source


def _check_columns(settings: ScoreSettings, *, template: Template, columns: dict[str, str], where: str) -> None:
    named = [column for _, column in template if column is not None]
    for option, names in {"--id": settings.key, "--prompt": named}.items():
        for name in names:
            if name not in columns:
                raise SourceError(f"{where} has no column {name!r} for {option}; it has: {', '.join(columns)}")
    for name in named:
        if columns[name].startswith(UNPRINTABLE):
            raise SourceError(
                f"{where}: the prompt's column {name!r} is of type {columns[name]}, wanted text, number, time or "
                "boolean; name another column, or cast it in a view"
            )
