"""The serve stage as the pipeline sees it: its fingerprint, and whether a registered version still stands.

Neither needs torch; with the local SQLite store the check needs no mlflow either, whose import costs seconds. With an
MLflow server the model's files are fetched once a version, into the home.
"""

import sqlite3
from pathlib import Path

from tessera import lineage, registry
from tessera.errors import ModelError
from tessera.home import Home
from tessera.lineage import EvaluateRecord, ServeRecord
from tessera.serve.settings import ServeSettings

SEMANTICS = 1

FINGERPRINT_TAG = "tessera.fingerprint"
WEIGHTS_TAG = "tessera.weights_sha256"
SQLITE = "sqlite:///"
CHECKPOINT = "checkpoint"
"""The artifact of a model version that holds configuration, weights and tokenizer."""

VERSION_QUERY = """
    select v.storage_location, t.value
    from model_versions v join model_version_tags t on t.name = v.name and t.version = v.version and t.key = ?
    where v.name = ? and v.version = ? and v.status = 'READY'
"""


def fingerprint(evaluate: EvaluateRecord, *, settings: ServeSettings) -> str:
    """Over the weights, their evaluation and the name that they are registered under."""
    inputs = {"weights": evaluate.weights_sha256, "evaluate": evaluate.fingerprint}
    return lineage.fingerprint(stage="serve", semantics=SEMANTICS, inputs=inputs, config=settings.identity())


def verify(record: ServeRecord, *, home: Home, tracking_uri: str, registry_uri: str | None = None) -> bool:
    """Whether the version is registered with these weights and its files are there.

    Where aliases point is not asked: someone may have moved them on purpose, back to an older version for example.

    Raises:
        TrackingError: the registry cannot be asked.
    """
    found = _find(record, tracking_uri=tracking_uri, registry_uri=registry_uri)
    if found is None or found[1] != record.weights_sha256:
        return False
    location = registry.local_path(found[0]) if found[0] else None
    return location is None or (registry.relocate(location, artifacts=home.mlflow_artifacts) / "MLmodel").is_file()


def checkpoint_folder(record: ServeRecord, *, home: Home, tracking_uri: str, registry_uri: str | None = None) -> Path:
    """Where the registered version's configuration, weights and tokenizer lie on this machine.

    Raises:
        ModelError: the version or its files are gone.
        TrackingError: the registry cannot be asked.
    """
    found = _find(record, tracking_uri=tracking_uri, registry_uri=registry_uri)
    location = registry.local_path(found[0]) if found and found[0] else None
    if location is not None:
        folder = registry.relocate(location, artifacts=home.mlflow_artifacts)
    else:
        model = f"models:/{record.model}/{record.version}"
        folder = registry.resolve(
            tracking_uri, model=model, registry_uri=registry_uri, artifacts=home.mlflow_artifacts,
            cache=home.models,
        )  # fmt: skip
    checkpoint = folder / "artifacts" / CHECKPOINT
    if not checkpoint.is_dir():
        raise ModelError(
            f"{record.model} version {record.version}: its files are not at {folder}; "
            "register the run again: tessera serve --fresh"
        )
    return checkpoint


def _find(record: ServeRecord, *, tracking_uri: str, registry_uri: str | None) -> tuple[str, str] | None:
    address = registry_uri or tracking_uri
    if address.startswith(SQLITE):
        return _in_sqlite(Path(address.removeprefix(SQLITE)), record=record)
    return _in_registry(record, tracking_uri=tracking_uri, registry_uri=registry_uri)


def _in_sqlite(database: Path, *, record: ServeRecord) -> tuple[str, str] | None:
    """Place and weights of the version, read from MLflow's own tables; None when it is not there."""
    if not database.is_file():
        return None
    try:
        connection = sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)
        try:
            row = connection.execute(VERSION_QUERY, (WEIGHTS_TAG, record.model, record.version)).fetchone()
        finally:
            connection.close()
    except sqlite3.Error:
        return None
    return (str(row[0] or ""), str(row[1])) if row else None


def _in_registry(record: ServeRecord, *, tracking_uri: str, registry_uri: str | None = None) -> tuple[str, str] | None:
    model = f"models:/{record.model}/{record.version}"
    try:
        version = registry.get_version(tracking_uri, model=model, registry_uri=registry_uri)
    except ModelError:
        return None
    return "", version.tags.get(WEIGHTS_TAG, "")
