"""MLflow model versions: create one, find one by tag, resolve `models:/` to a folder, move aliases.

mlflow takes seconds to import, so it is imported inside the functions that speak to it; names are checked without it.
A version is made with its tags in one call, so whoever sees it sees them. Models may be registered elsewhere than runs
are recorded: `registry_uri`, by default the same. A store that is away is one sentence: TrackingError.
"""

import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import unquote, urlparse

from tessera import lineage, tracking
from tessera.away import answering
from tessera.errors import ConfigError, ModelError

NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
MAX_NAME = 128
ALIAS = re.compile(r"[A-Za-z0-9_-]+")
URI = re.compile(r"models:/(?P<name>[^@/]+)(@(?P<alias>[^@/]+)|/(?P<version>[0-9]+))")
UNITY_CATALOG = ("databricks-uc", "uc:")
WANTED_NAME = f"up to {MAX_NAME} letters, digits, '_' and '-', with single dots between them"


@dataclass(frozen=True)
class RegisteredVersion:
    """One version of a registered model."""

    name: str
    version: int
    run_id: str
    source: str
    """Where MLflow keeps it: `models:/m-...` for a logged model."""
    tags: Mapping[str, str]
    aliases: tuple[str, ...]

    @property
    def uri(self) -> str:
        return f"models:/{self.name}/{self.version}"


def name_fault(name: str) -> str | None:
    """What is wrong with a model name, or None: `/`, `..`, `#`, `:`, `@` and blanks would change what a URI means."""
    if len(name) <= MAX_NAME and NAME.fullmatch(name):
        return None
    return f"found {name[:MAX_NAME]!r}, wanted {WANTED_NAME}, such as tessera-docs"


def check_name(name: str) -> str:
    """`name`, when it may name a registered model.

    Raises:
        ConfigError: it may not, with what is allowed.
    """
    if fault := name_fault(name):
        raise ConfigError(f"model name: {fault}")
    return name


def create_version(
    uri: str, *, name: str, run_id: str, experiment_id: str, model: Path, tags: Mapping[str, str],
    registry_uri: str | None = None,
) -> RegisteredVersion:  # fmt: skip
    """Copies the MLflow model folder `model` into the artifact store and makes it the next version of `name`.

    A process killed in between leaves a logged model that no version points to.

    Args:
        uri: of the tracking server.
        run_id: the run that trained it; the model is shown as its output.
        tags: set with the version, in one call; at most 100,000 characters a value.
    """
    check_name(name)
    with answering(uri):
        client = tracking.client(uri, registry=registry_uri)
        from mlflow.entities import LoggedModelOutput

        _ensure_registered(client, name)
        logged = client.create_logged_model(
            experiment_id=experiment_id, name=name.replace(".", "-"), source_run_id=run_id, tags=dict(tags)
        )
        _stamp(model, model_id=logged.model_id, run_id=run_id)
        with tracking.patient():
            client.log_model_artifacts(logged.model_id, str(model))
        client.finalize_logged_model(logged.model_id, "READY")
        client.log_outputs(run_id=run_id, models=[LoggedModelOutput(logged.model_id, step=0)])
        with tracked_at(uri, registry_uri=registry_uri), tracking.patient():
            made = client.create_model_version(
                name, f"models:/{logged.model_id}", run_id=run_id, tags=dict(tags), model_id=logged.model_id
            )
        return _version(client, made)


def find_version(
    uri: str, *, name: str, tags: Mapping[str, str], registry_uri: str | None = None
) -> RegisteredVersion | None:
    """The newest version of `name` that has all of these tags, or None."""
    check_name(name)
    with answering(registry_uri or uri):
        client = tracking.client(uri, registry=registry_uri)
        search = _search_one_by_one if (registry_uri or uri).startswith(UNITY_CATALOG) else _search_tags
        found = search(client, name=name, tags=tags)
        return _version(client, found) if found else None


def get_version(uri: str, *, model: str, registry_uri: str | None = None) -> RegisteredVersion:
    """The version that `models:/name@alias` or `models:/name/3` means now.

    Raises:
        ModelError: not of one of these forms, or no such model, version or alias.
    """
    name, alias, version = _parse(model)
    with answering(registry_uri or uri):
        client = tracking.client(uri, registry=registry_uri)
        from mlflow.exceptions import MlflowException

        try:
            if alias is not None:
                found = client.get_model_version_by_alias(name, alias)
            else:
                found = client.get_model_version(name, str(version))
        except MlflowException as error:
            _absent(client, error=error, model=model, name=name)
        return _version(client, found)


def resolve(
    uri: str, *, model: str, artifacts: Path | None = None, registry_uri: str | None = None, cache: Path | None = None
) -> Path:
    """The MLflow model folder of `models:/name@alias` or `models:/name/3`, on this machine.

    Unity Catalog lends credentials for a version's storage to who asks for `models:/name/3`, and not for the storage's
    own address: MLflow's UnityCatalogModelsArtifactRepository. That way was read in its source, and run with a
    database only: none of the tests has a Unity Catalog.

    Args:
        artifacts: the home's artifact folder, for `relocate`.
        cache: where a model that lies elsewhere is fetched to, once a version; None fetches it to a temporary folder.

    Raises:
        ModelError: as `get_version`, or its files are gone.
    """
    version = get_version(uri, model=model, registry_uri=registry_uri)
    with answering(registry_uri or uri):
        client = tracking.client(uri, registry=registry_uri)
        location = client.get_model_version_download_uri(version.name, str(version.version))
        if location.startswith("models:/m-"):
            location = client.get_logged_model(location.removeprefix("models:/").split("/")[0]).artifact_location
        local = local_path(location)
        if local is None:
            source = version.uri if (registry_uri or uri).startswith(UNITY_CATALOG) else location
            local = _fetch(
                source, location=location, uri=uri, registry_uri=registry_uri, cache=cache,
                name=f"{version.name}-{version.version}",
            )  # fmt: skip
    if artifacts is not None:
        local = relocate(local, artifacts=artifacts)
    if not (local / "MLmodel").is_file():
        raise ModelError(f"{model}: its files are not at {local}; register the run again: tessera serve --fresh")
    return local


def local_path(location: str) -> Path | None:
    """The path that an artifact location means on this machine; None when it lies elsewhere."""
    parsed = urlparse(location)
    if parsed.scheme == "file":
        return Path(unquote(parsed.path))
    return None if parsed.scheme else Path(location)


def relocate(path: Path, *, artifacts: Path) -> Path:
    """`path`, or when it is absent the same place below `artifacts`: MLflow stores absolute paths, homes move."""
    if path.is_dir() or artifacts.name not in path.parts:
        return path
    at = len(path.parts) - 1 - path.parts[::-1].index(artifacts.name)
    return artifacts.joinpath(*path.parts[at + 1 :])


def set_alias(uri: str, *, name: str, alias: str, version: int, registry_uri: str | None = None) -> None:
    """Points `alias` to `version`; nothing happens when it does already."""
    if not ALIAS.fullmatch(alias):
        raise ModelError(f"alias: found {alias!r}, wanted letters, digits, '_' and '-'")
    check_name(name)
    with answering(registry_uri or uri):
        tracking.client(uri, registry=registry_uri).set_registered_model_alias(name, alias, str(version))


def versions(uri: str, *, name: str, registry_uri: str | None = None) -> list[RegisteredVersion]:
    """All versions of a registered model, the oldest first; none where there is no such model."""
    check_name(name)
    with answering(registry_uri or uri):
        client = tracking.client(uri, registry=registry_uri)
        found = client.search_model_versions(f"name = '{name}'")
        asked = [client.get_model_version(name, one.version) for one in sorted(found, key=lambda one: int(one.version))]
        return [_version(client, one) for one in asked]


def versions_of_runs(uri: str, *, run_ids: Iterable[str], registry_uri: str | None = None) -> list[RegisteredVersion]:
    """All versions, of any model, that these runs made."""
    with answering(registry_uri or uri):
        client = tracking.client(uri, registry=registry_uri)
        found = [one for run_id in run_ids for one in client.search_model_versions(f"run_id = '{run_id}'")]
        return [_version(client, one) for one in found]


def tag_version(
    uri: str, *, version: RegisteredVersion, tags: Mapping[str, str], registry_uri: str | None = None
) -> None:
    """Adds tags to a version, or changes them."""
    with answering(registry_uri or uri):
        client = tracking.client(uri, registry=registry_uri)
        for key, value in tags.items():
            client.set_model_version_tag(version.name, str(version.version), key, value)


@contextmanager
def tracked_at(uri: str, *, registry_uri: str | None = None) -> Iterator[None]:
    """Makes these MLflow's process-wide addresses for a while: some of its calls know no others."""
    import mlflow

    before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
    registry_before = mlflow.get_registry_uri() if before is not None else None
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(registry_uri or uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)
        mlflow.set_registry_uri(registry_before)


def _parse(model: str) -> tuple[str, str | None, int | None]:
    matched = URI.fullmatch(model)
    if not matched or name_fault(matched["name"]) or (matched["alias"] and not ALIAS.fullmatch(matched["alias"])):
        raise ModelError(
            f"model: found {model[:200]!r}, wanted models:/NAME@ALIAS or models:/NAME/VERSION, NAME of {WANTED_NAME}"
        )
    return matched["name"], matched["alias"], int(matched["version"]) if matched["version"] else None


def _search_tags(client: Any, *, name: str, tags: Mapping[str, str]) -> Any:
    wanted = " and ".join(f"tag.`{key}` = '{value}'" for key, value in tags.items())
    found = client.search_model_versions(f"name = '{name}' and {wanted}")
    return max((one for one in found if one.status == "READY"), key=lambda one: int(one.version), default=None)


def _search_one_by_one(client: Any, *, name: str, tags: Mapping[str, str]) -> Any:
    """The same for Unity Catalog, which finds versions by name only and lists them without tags."""
    versions = sorted((int(one.version) for one in client.search_model_versions(f"name = '{name}'")), reverse=True)
    asked = (client.get_model_version(name, str(version)) for version in versions)
    return next((one for one in asked if one.status == "READY" and tags.items() <= one.tags.items()), None)


def _fetch(
    source: str, *, location: str, uri: str, registry_uri: str | None, name: str, cache: Path | None
) -> Path:  # fmt: skip
    """Copies a model's files to this machine; a folder in `cache` is complete once it has its name.

    Args:
        source: what MLflow is asked for.
        location: where the files lie, which tells two models of one name apart.
    """
    if cache is None:
        return _download(source, uri=uri, registry_uri=registry_uri, to=None)
    kept = cache / f"{name}-{lineage.sha256_json(location)[:12]}"
    if not kept.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=cache))
        try:
            fetched = _download(source, uri=uri, registry_uri=registry_uri, to=partial)
            with suppress(OSError):  # another process was first
                fetched.rename(kept)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return kept


def _download(source: str, *, uri: str, registry_uri: str | None, to: Path | None) -> Path:
    from mlflow.artifacts import download_artifacts

    with tracked_at(uri, registry_uri=registry_uri), tracking.patient():
        return Path(download_artifacts(artifact_uri=source, dst_path=str(to) if to else None, tracking_uri=uri))


def _ensure_registered(client: Any, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _stamp(folder: Path, *, model_id: str, run_id: str) -> None:
    """Writes the identity of the logged model into its MLmodel file, as MLflow's own logging does.

    Where the files lay before is taken out: MLflow only looks at their place in the folder.
    """
    from mlflow.models import Model

    model = Model.load(str(folder))
    model.model_id, model.model_uuid, model.run_id = model_id, model_id, run_id
    flavor = model.flavors.get("python_function", {})
    for artifact in flavor.get("artifacts", {}).values():
        artifact["uri"] = artifact["path"]
    if "model_code_path" in flavor:
        flavor["model_code_path"] = Path(flavor["model_code_path"]).name
    model.save(str(folder / "MLmodel"))


def _version(client: Any, found: Any) -> RegisteredVersion:
    aliases = client.get_registered_model(found.name).aliases
    return RegisteredVersion(
        name=found.name,
        version=int(found.version),
        run_id=found.run_id or "",
        source=found.source,
        tags=dict(found.tags),
        aliases=tuple(sorted(alias for alias, version in aliases.items() if int(version) == int(found.version))),
    )


def _absent(client: Any, *, error: Any, model: str, name: str) -> NoReturn:
    if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
        raise error
    versions = sorted(int(version.version) for version in client.search_model_versions(f"name = '{name}'"))
    if not versions:
        raise ModelError(f"{model}: there is no registered model {name}; register a run: tessera serve") from None
    aliases = ", ".join(sorted(client.get_registered_model(name).aliases)) or "none"
    raise ModelError(
        f"{model} does not exist; {name} has versions {versions[0]} to {versions[-1]} and aliases {aliases}"
    ) from None
