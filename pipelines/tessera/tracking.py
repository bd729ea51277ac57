"""MLflow runs: made, fed and ended by the launcher, never by ranks.

Importing mlflow takes five CPU-seconds and a new SQLite store another five, so nothing of it is imported before it is
used, and `prepare_store` may run in a thread while something else starts. No telemetry, and no network but the address
that is configured. Metrics are sent in whole steps; a run knows the newest step that it has.
"""

import logging
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from pydantic import Field

from tessera.config import EXECUTION, Section, resolve_secret
from tessera.home import Home
from tessera.lineage import TableVersion

QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}
"""Environment of mlflow unless the user has set it: no telemetry; trouble is noticed in a minute, not in ten."""

STEP = "step"
"""A metric of every step, equal to the step: its latest value says which step was sent last."""
RUN_TAG = "tessera.run"
"""Names the run folder: finds a run that was made just before its id could be noted."""
MAX_PARAMS, MAX_METRICS, MAX_VALUE = 100, 1000, 6000
"""MLflow's limits of one call and one value."""

_store_lock = threading.Lock()


class TrackingSettings(Section):
    """Where runs and models are recorded."""

    uri: str | None = Field(None, min_length=1, json_schema_extra=EXECUTION)
    """Address of the MLflow server; null means a SQLite file in the home. `${env:NAME}` is resolved late."""
    experiment: str = Field("tessera", min_length=1, json_schema_extra=EXECUTION)
    """The experiment that runs belong to; made if it is absent."""
    system_seconds: float = Field(5.0, gt=0, json_schema_extra=EXECUTION)
    """Seconds between two samples of processor and memory use."""


def tracking_uri(settings: TrackingSettings, *, home: Home) -> str:
    """The address that MLflow is given: of runs and of models."""
    return resolve_secret(settings.uri) if settings.uri else f"sqlite:///{home.mlflow_database.absolute()}"


def shown_uri(settings: TrackingSettings, *, home: Home) -> str:
    """The address without a password, and with secrets unresolved: for records and messages."""
    if not settings.uri:
        return tracking_uri(settings, home=home)
    parts = urlsplit(settings.uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def prepare_store(settings: TrackingSettings, *, home: Home) -> str:
    """Makes the store and the experiment if they are absent; the experiment's id. Safe to call from several threads."""
    client = _client(tracking_uri(settings, home=home))
    with _store_lock:
        if not settings.uri:
            home.root.mkdir(parents=True, exist_ok=True)
        found = client.get_experiment_by_name(settings.experiment)
        if found is not None:
            return str(found.experiment_id)
        location = None if settings.uri else home.mlflow_artifacts.absolute().as_uri()
        return str(client.create_experiment(settings.experiment, artifact_location=location))


@dataclass(frozen=True)
class TrackedRun:
    """One MLflow run, open for writing."""

    uri: str
    run_id: str

    def newest_step(self) -> int:
        """The last step whose metrics it has; -1 before the first."""
        return int(_client(self.uri).get_run(self.run_id).data.metrics.get(STEP, -1))

    def log_steps(self, lines: Sequence[Mapping[str, float]], *, extra: Mapping[str, float] | None = None) -> None:
        """Adds the metrics of whole steps, oldest first.

        Args:
            lines: each has `step` and `time` (Unix seconds); every other key is a metric.
            extra: metrics of this moment, added to the last step.
        """
        from mlflow.entities import Metric

        metrics: list[Any] = []
        for number, line in enumerate(lines):
            step, stamp = int(line["step"]), int(line["time"] * 1000)
            added = extra if extra and number == len(lines) - 1 else {}
            values = {**added, **{key: value for key, value in line.items() if key not in ("time", STEP)}, STEP: step}
            if len(metrics) + len(values) > MAX_METRICS:
                _client(self.uri).log_batch(self.run_id, metrics=metrics)
                metrics = []
            metrics += [Metric(key, float(value), stamp, step) for key, value in values.items()]
        if metrics:
            _client(self.uri).log_batch(self.run_id, metrics=metrics)

    def describe(self, *, params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Adds the configuration and lineage; a parameter that the run has already keeps its value."""
        from mlflow.entities import Param, RunTag

        client = _client(self.uri)
        known = client.get_run(self.run_id).data.params
        new = [Param(key, value[:MAX_VALUE]) for key, value in flatten(params).items() if key not in known]
        for low in range(0, len(new), MAX_PARAMS):
            client.log_batch(self.run_id, params=new[low : low + MAX_PARAMS])
        client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def add_inputs(self, tables: Iterable[TableVersion], *, context: str) -> None:
        """Shows Delta tables as inputs of the run: name, version (0 too), path. No row is read."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = [
            DatasetInput(
                dataset=Dataset(
                    name=table.name,
                    digest=f"v{table.version}",
                    source_type="delta_table",
                    source=f'{{"path": "{table.path}", "delta_table_version": {table.version}}}',
                    profile=f'{{"table_id": "{table.table_id}"}}',
                ),
                tags=[InputTag("mlflow.data.context", context)],
            )
            for table in tables
        ]
        _client(self.uri).log_inputs(self.run_id, datasets=inputs)

    def end(self, status: str) -> None:
        """Closes the run: FINISHED, FAILED or KILLED."""
        _client(self.uri).set_terminated(self.run_id, status=status)


def open_run(settings: TrackingSettings, *, home: Home, name: str, run_id: str | None) -> TrackedRun:
    """Makes the run `name`, or goes on with it: the one with `run_id`, else the one whose RUN_TAG is `name`."""
    uri = tracking_uri(settings, home=home)
    experiment = prepare_store(settings, home=home)
    client = _client(uri)
    if run_id is None:
        found = client.search_runs([experiment], filter_string=f"tags.`{RUN_TAG}` = '{name}'", max_results=1)
        run_id = str(found[0].info.run_id) if found else None
    if run_id is None:
        return TrackedRun(uri, str(client.create_run(experiment, run_name=name, tags={RUN_TAG: name}).info.run_id))
    client.update_run(run_id, status="RUNNING")
    return TrackedRun(uri, run_id)


def set_tags(settings: TrackingSettings, *, home: Home, run_id: str, tags: Mapping[str, str]) -> None:
    """Adds tags to a run that may be ended already."""
    from mlflow.entities import RunTag

    tagged = [RunTag(key, value) for key, value in tags.items()]
    _client(tracking_uri(settings, home=home)).log_batch(run_id, tags=tagged)


def flatten(values: Mapping[str, Any], *, prefix: str = "") -> dict[str, str]:
    """Nested settings as `section.key` -> text, as MLflow holds parameters; lists as JSON-like text."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, prefix=f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = str(value)
    return flat


def system_use() -> dict[str, float]:
    """Processor and memory use of the machine now, under the names that MLflow's own monitor uses."""
    import psutil

    memory = psutil.virtual_memory()
    return {
        "system/cpu_utilization_percentage": psutil.cpu_percent(),
        "system/system_memory_usage_megabytes": round((memory.total - memory.available) / 2**20),
        "system/system_memory_usage_percentage": memory.percent,
    }


@lru_cache(maxsize=4)
def _client(uri: str) -> Any:
    for key, value in QUIET.items():
        os.environ.setdefault(key, value)
    from mlflow.tracking import MlflowClient

    for logger in ("mlflow", "mlflow.store.db.utils", "alembic"):
        logging.getLogger(logger).setLevel(logging.WARNING)  # after the import, which sets levels of its own
    return MlflowClient(tracking_uri=uri, registry_uri=uri)
