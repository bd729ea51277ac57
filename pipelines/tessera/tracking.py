"""MLflow runs: made, fed and ended by the launcher, never by ranks.

The store is a SQLite file in the home, another database, or an MLflow server: by its address alone. Importing mlflow
takes five CPU-seconds and a new store another five, so nothing of it is imported before it is used, and `prepare_store`
may run in a thread while something else starts. No telemetry, and no network but the address that is configured.

Metrics are sent in whole steps; a run knows the newest step that it has. Calls are not repeated by the client: a reply
may have been lost after the deed, and only the caller knows what to look up before it asks again.
"""

import logging
import os
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypedDict
from urllib.parse import quote

from pydantic import Field, model_validator

from tessera.away import USER, masked, why
from tessera.config import EXECUTION, SECRET, Section, resolve_secret
from tessera.errors import ConfigError, TrackingError
from tessera.home import Home
from tessera.lineage import TableVersion

QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
"""Environment of mlflow unless the user has set it: no telemetry; one try a call, which ends after ten seconds."""
PATIENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3", "MLFLOW_HTTP_REQUEST_TIMEOUT": "600"}
"""The same while a model's files travel: the server may answer late, and a file may be sent twice."""
DATABASE_SECONDS = 20.0
"""How long one statement may take on PostgreSQL: pg8000 alone would wait for ever for a server that hangs."""

STEP = "step"
"""A metric of every step, equal to the step, sent as the step's last: its latest value says which step is complete."""
RUN_TAG = "tessera.run"
"""Names the run folder: finds a run that was made just before its id could be noted."""
MAX_PARAMS, MAX_METRICS, MAX_VALUE = 100, 1000, 6000
"""MLflow's limits of one call and one value."""

CREDENTIALS = re.compile(r"((?:\$\{[^}]*\}|[^:])*)(?::(.*))?", re.DOTALL)
"""`user:password`, either as `${env:NAME}`, whose colon parts nothing."""
SECRET_KEY = re.compile(r"(?i)[?&;][^=&;#]*(?:password|passwd|pwd|secret|token|key)[^=&;#]*=([^&;#]*)")
"""The value of a key in an address's query that names something secret."""

_store_lock = threading.Lock()


class Addresses(TypedDict):
    """Of runs, and of models where that is another."""

    tracking_uri: str
    registry_uri: str


class TrackingSettings(Section):
    """Where runs and models are recorded."""

    uri: str | None = Field(None, min_length=1, json_schema_extra=EXECUTION)
    """An MLflow server (`http://host:5000`) or a database (`postgresql+pg8000://user:${env:NAME}@host/name`); null
    means a SQLite file in the home. Passwords as `${env:NAME}` only: resolved late, escaped here, shown nowhere."""
    registry_uri: str | None = Field(None, min_length=1, json_schema_extra=EXECUTION)
    """Where models are registered, such as `databricks-uc`; null means where runs are recorded."""
    artifacts: str | None = Field(None, min_length=1, json_schema_extra=EXECUTION)
    """Where a new experiment's files go: a folder or a URI. Null means the home, or what the MLflow server decides."""
    experiment: str = Field("tessera", min_length=1, json_schema_extra=EXECUTION)
    """The experiment that runs belong to; made if it is absent."""
    system_seconds: float = Field(5.0, gt=0, json_schema_extra=EXECUTION)
    """Seconds between two samples of processor and memory use."""
    flush_seconds: float = Field(30.0, ge=0, json_schema_extra=EXECUTION)
    """How long the end of a run waits for MLflow before it says what is missing there; a later command sends it."""

    @model_validator(mode="after")
    def _no_password(self) -> "TrackingSettings":
        for key in ("uri", "registry_uri", "artifacts"):
            if any(not SECRET.fullmatch(secret) for secret in _secrets_in(getattr(self, key) or "")):
                raise ValueError(f"{key} holds a password or token; give it as ${{env:NAME}} and export NAME")
        return self


def tracking_uri(settings: TrackingSettings, *, home: Home) -> str:
    """The address that MLflow is given for runs, secrets resolved."""
    return _resolved(settings.uri) if settings.uri else f"sqlite:///{home.mlflow_database.absolute()}"


def registry_uri(settings: TrackingSettings, *, home: Home) -> str:
    """The address that MLflow is given for models: that of runs, unless another is configured."""
    return _resolved(settings.registry_uri) if settings.registry_uri else tracking_uri(settings, home=home)


def shown_uri(settings: TrackingSettings, *, home: Home) -> str:
    """The address without user and password, and with secrets unresolved: for records and messages."""
    return masked(settings.uri or tracking_uri(settings, home=home))


def uris(settings: TrackingSettings, *, home: Home) -> Addresses:
    """Both addresses, as the arguments of those who register and find models."""
    return Addresses(tracking_uri=tracking_uri(settings, home=home), registry_uri=registry_uri(settings, home=home))


def prepare_store(settings: TrackingSettings, *, home: Home) -> str:
    """Makes the store and the experiment if they are absent; the experiment's id. Safe to call from several threads.

    Raises:
        ConfigError: the experiment was deleted.
    """
    with _store_lock:
        if not settings.uri:
            home.root.mkdir(parents=True, exist_ok=True)
        store = client(tracking_uri(settings, home=home))
        from mlflow.exceptions import MlflowException

        found = store.get_experiment_by_name(settings.experiment)
        if found is None:
            location = _artifact_location(settings, home=home)
            try:
                return str(store.create_experiment(settings.experiment, artifact_location=location))
            except MlflowException as error:  # another process made it in this moment
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = store.get_experiment_by_name(settings.experiment)
        if found.lifecycle_stage == "deleted":
            raise ConfigError(
                f"MLflow's experiment {settings.experiment} was deleted; restore it, or name another: "
                "tracking.experiment"
            )
        return str(found.experiment_id)


@dataclass(frozen=True)
class TrackedRun:
    """One MLflow run, open for writing."""

    uri: str
    run_id: str

    def newest_step(self) -> int:
        """The last step whose metrics it has; -1 before the first."""
        return int(client(self.uri).get_run(self.run_id).data.metrics.get(STEP, -1))

    def log_steps(self, lines: Sequence[Mapping[str, float]]) -> None:
        """Adds the metrics of whole steps, oldest first.

        A call holds whole steps, and STEP is the last metric of its step. So whatever is lost, the steps up to
        `newest_step` are complete, and the others may be sent again: a store knows the same value of the same moment.
        Only for who sends all steps: other metrics go by `log_at`.

        Args:
            lines: each has `step` and `time` (Unix seconds); every other key is a metric.
        """
        from mlflow.entities import Metric

        batch: list[Any] = []
        for line in lines:
            step, stamp = int(line["step"]), int(line["time"] * 1000)
            values = {**{key: value for key, value in line.items() if key not in ("time", STEP)}, STEP: step}
            if len(batch) + len(values) > MAX_METRICS:
                self._log_metrics(batch)
                batch = []
            batch += [Metric(key, float(value), stamp, step) for key, value in values.items()]
        self._log_metrics(batch)

    def _log_metrics(self, metrics: Sequence[Any]) -> None:
        for low in range(0, len(metrics), MAX_METRICS):  # more than one call for a single step of over 1000 metrics
            client(self.uri).log_batch(self.run_id, metrics=metrics[low : low + MAX_METRICS])

    def log_at(self, step: int, *, time: float, metrics: Mapping[str, float], tags: Mapping[str, str]) -> None:
        """Adds metrics of a step that come from elsewhere than its training, and tags, in one call; no STEP.

        Args:
            time: Unix seconds; the same when it is sent again.
        """
        from mlflow.entities import Metric, RunTag

        assert STEP not in metrics
        values = [Metric(key, float(value), int(time * 1000), step) for key, value in metrics.items()]
        client(self.uri).log_batch(self.run_id, metrics=values, tags=[RunTag(*tag) for tag in tags.items()])

    def describe(self, *, params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Adds the configuration and lineage; a parameter that the run has already keeps its value."""
        from mlflow.entities import Param, RunTag

        store = client(self.uri)
        known = store.get_run(self.run_id).data.params
        new = [Param(key, value[:MAX_VALUE]) for key, value in flatten(params).items() if key not in known]
        for low in range(0, len(new), MAX_PARAMS):
            store.log_batch(self.run_id, params=new[low : low + MAX_PARAMS])
        store.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in tags.items()])

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
        client(self.uri).log_inputs(self.run_id, datasets=inputs)

    def end(self, status: str, *, time: float | None = None) -> None:
        """Closes the run: FINISHED, FAILED or KILLED, at `time` (Unix seconds) or now."""
        moment = int(time * 1000) if time is not None else None
        client(self.uri).set_terminated(self.run_id, status=status, end_time=moment)


def open_run(
    settings: TrackingSettings, *, home: Home, name: str, run_id: str | None, began: float | None = None
) -> TrackedRun:
    """Makes the run `name`, or goes on with it: the one with `run_id`, else the oldest whose RUN_TAG is `name`.

    A run that was deleted from MLflow is made anew.

    Args:
        began: when a run that is made here began, in Unix seconds; None means now.
    """
    uri = tracking_uri(settings, home=home)
    experiment = prepare_store(settings, home=home)
    store = client(uri)
    if run_id is None or not _is_there(store, run_id):
        found = store.search_runs(
            [experiment], filter_string=f"tags.`{RUN_TAG}` = '{name}'", max_results=1, order_by=["start_time ASC"]
        )
        run_id = str(found[0].info.run_id) if found else None
    if run_id is None:
        moment = int(began * 1000) if began is not None else None
        made = store.create_run(experiment, start_time=moment, run_name=name, tags={RUN_TAG: name})
        return TrackedRun(uri, str(made.info.run_id))
    store.update_run(run_id, status="RUNNING")
    return TrackedRun(uri, run_id)


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


def quiet() -> None:
    """Sets the environment that mlflow reads when it is imported; what the user has set stands.

    But for one: at a run's end mlflow prints the server's address to stdout, with the password in it.
    """
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    for key, value in {**QUIET, "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}.items():
        os.environ.setdefault(key, value)


@contextmanager
def patient() -> Iterator[None]:
    """Lets MLflow's calls take long while a model's files travel; a limit that the user has set stands."""
    quiet()
    before = {key: value for key, value in os.environ.items() if key in PATIENT}
    os.environ.update({key: value for key, value in PATIENT.items() if before[key] == QUIET[key]})
    try:
        yield
    finally:
        os.environ.update(before)


@lru_cache(maxsize=8)
def client(uri: str, *, registry: str | None = None) -> Any:
    """A client of these addresses, made once in a process.

    Raises:
        TrackingError: the database cannot be used; MLflow itself would try for two minutes.
    """
    quiet()
    from mlflow.tracking import MlflowClient

    for logger in ("mlflow", "alembic"):
        logging.getLogger(logger).setLevel(logging.WARNING)  # after the import, which sets levels of its own
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # statements with values and stack traces
    for address in {uri, registry or uri}:
        if "://" in address and not address.startswith(("http:", "https:", "file:", "databricks", "uc:")):
            _check_database(address)
    return MlflowClient(tracking_uri=uri, registry_uri=registry or uri)


def _is_there(store: Any, run_id: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        return bool(store.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False


def _artifact_location(settings: TrackingSettings, *, home: Home) -> str | None:
    """Of a new experiment: as configured; in the home for a database; None where a server decides."""
    if settings.artifacts:
        configured = resolve_secret(settings.artifacts)
        return configured if "://" in configured else Path(configured).absolute().as_uri()
    if settings.uri and settings.uri.startswith(("http:", "https:", "databricks")):
        return None
    return home.mlflow_artifacts.absolute().as_uri()


def _secrets_in(uri: str) -> list[str]:
    """What of an address is secret: a password, the user of a web address without one (a token), keys of its query."""
    matched = USER.match(uri)
    credentials = CREDENTIALS.fullmatch(matched["user"]) if matched else None
    user, password = credentials.groups(default="") if credentials else ("", "")
    token = user if not password and uri.lower().startswith("http") else ""
    return [secret for secret in (password, token, *SECRET_KEY.findall(uri)) if secret]


def _resolved(uri: str) -> str:
    """`uri` with its secrets; those of user and password are escaped, so that any character may stand in them."""
    matched = USER.match(uri)
    if not matched:
        return resolve_secret(uri)
    user = SECRET.sub(lambda secret: quote(resolve_secret(secret[0]), safe=""), matched["user"])
    return f"{matched['scheme']}{user}@{resolve_secret(matched['rest'])}"


def _check_database(uri: str) -> None:
    """Connects once, as MLflow will: it is there, takes user and password, and can be read."""
    import sqlalchemy

    _bound_statements()
    if uri.startswith("sqlite") and not Path(uri.partition(":///")[2]).is_file():
        return  # made by MLflow
    try:
        engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool)
        with engine.connect() as connection:
            sqlalchemy.inspect(connection).get_table_names()
    except (sqlalchemy.exc.SQLAlchemyError, ImportError, OSError) as error:
        raise TrackingError(
            f"MLflow's database {masked(uri)} cannot be used: {why(error)}; start it, or name another: tracking.uri"
        ) from None


@lru_cache(maxsize=1)
def _bound_statements() -> None:
    """Gives every pg8000 connection of this process DATABASE_SECONDS a statement."""
    import sqlalchemy

    @sqlalchemy.event.listens_for(sqlalchemy.Engine, "do_connect")
    def _bound(dialect: Any, record: Any, arguments: Any, parameters: Any) -> None:
        if dialect.driver == "pg8000":
            parameters.setdefault("timeout", DATABASE_SECONDS)
