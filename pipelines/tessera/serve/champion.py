"""The champion: which version it is, and how another takes its place.

Only a version that passed its gate against the champion of now takes the place, or one that is forced there with a
reason. Either way `tables/audit` says so before the alias moves. With the local SQLite store finding the champion
imports no mlflow.
"""

import sqlite3
from collections.abc import Callable
from pathlib import Path

from tessera import audit, registry
from tessera.errors import GateRefused, ModelError
from tessera.evaluate.rival import Rival
from tessera.home import Home
from tessera.lineage import EvaluateRecord, TableVersion
from tessera.registry import RegisteredVersion
from tessera.serve import stage

CHALLENGER, CHAMPION = "challenger", "champion"
GATE_TAG, REASONS_TAG, MET_TAG = "tessera.gate", "tessera.gate_reasons", "tessera.gate_champion"
RUN_TAG = "tessera.run"
NOBODY = "none"
"""What MET_TAG holds where there was no champion to meet."""

CHAMPION_QUERY = """
    select a.version, w.value, coalesce(r.value, '')
    from registered_model_aliases a
    join model_version_tags w on w.name = a.name and w.version = a.version and w.key = ?
    left join model_version_tags r on r.name = a.name and r.version = a.version and r.key = ?
    where a.name = ? and a.alias = ?
"""


def find(
    name: str, *, fetch: Callable[[str], Path], tracking_uri: str, registry_uri: str | None = None
) -> Rival | None:  # fmt: skip
    """The champion of a registered model; None where there is none.

    Args:
        fetch: gives the checkpoint folder of `models:/NAME/VERSION`.

    Raises:
        TrackingError: the registry cannot be asked.
    """
    address = registry_uri or tracking_uri
    if address.startswith(stage.SQLITE):
        found = _in_sqlite(Path(address.removeprefix(stage.SQLITE)), name=name)
    else:
        found = _in_registry(name, tracking_uri=tracking_uri, registry_uri=registry_uri)
    if found is None:
        return None
    version, weights, run = found
    uri = f"models:/{name}/{version}"
    return Rival(f"{name} version {version}", weights_sha256=weights, run=run, checkpoint=lambda: fetch(uri))


def promote(
    home: Home, version: RegisteredVersion, *, evaluate: EvaluateRecord, tracking_uri: str,
    registry_uri: str | None = None,
) -> None:  # fmt: skip
    """Makes a version that passed its gate the champion; nothing happens where it is already.

    Raises:
        GateRefused: the champion is another one than the gate compared it with.
    """
    if CHAMPION in version.aliases:
        return
    if evaluate.met is not None:
        current = find(version.name, fetch=Path, tracking_uri=tracking_uri, registry_uri=registry_uri)
        _check_met(version, met=evaluate.met, current=current)
    why = f"gate passed: {'; '.join(evaluate.reasons)}"
    _move(home, version, why=why, fingerprint=evaluate.fingerprint, inputs=evaluate.inputs,
          tracking_uri=tracking_uri, registry_uri=registry_uri)  # fmt: skip


def promote_by_hand(
    home: Home, *, model: str, force: bool, reason: str, tracking_uri: str, registry_uri: str | None = None
) -> RegisteredVersion:
    """Makes a registered version the champion, as `tessera promote` does; the version.

    Raises:
        GateRefused: it did not pass its gate, or not against the champion of now, and `force` is not given with a
            reason.
        ModelError: there is no such version.
    """
    version = registry.get_version(tracking_uri, model=model, registry_uri=registry_uri)
    if CHAMPION in version.aliases:
        return version
    if force:
        if not reason.strip():
            raise GateRefused("--force wants a reason, which tables/audit keeps: --reason '...'")
        why = f"forced: {reason.strip()}"
    else:
        _check_passed(version, current=find(
            version.name, fetch=Path, tracking_uri=tracking_uri, registry_uri=registry_uri
        ))  # fmt: skip
        why = f"gate passed: {version.tags.get(REASONS_TAG, '')}"
    _move(home, version, why=why, fingerprint=version.tags.get("tessera.evaluation", ""), inputs=(),
          tracking_uri=tracking_uri, registry_uri=registry_uri)  # fmt: skip
    if force:
        registry.tag_version(
            tracking_uri, version=version, tags={"tessera.forced": reason.strip()[:500]}, registry_uri=registry_uri
        )
    return version


def _check_passed(version: RegisteredVersion, *, current: Rival | None) -> None:
    gate = version.tags.get(GATE_TAG)
    if gate != "passed":
        said = "did not pass its gate" if gate else "was never evaluated here"
        reasons = version.tags.get(REASONS_TAG, "")
        raise GateRefused(
            f"{version.uri} {said}{': ' + reasons if reasons else ''}. Evaluate a better one, or promote this one all "
            "the same: --force --reason '...'"
        )
    if MET_TAG in version.tags:
        met = version.tags[MET_TAG]
        _check_met(version, met="" if met == NOBODY else met, current=current)


def _check_met(version: RegisteredVersion, *, met: str, current: Rival | None) -> None:
    """Refuses when somebody else became champion since the gate compared."""
    now = current.weights_sha256 if current is not None else ""
    if now not in (met, version.tags.get(stage.WEIGHTS_TAG)):
        raise GateRefused(
            f"{version.uri} passed its gate against {'weights ' + met[:12] if met else 'no champion'}, and the "
            f"champion is {current.name if current else 'nobody'} now; evaluate again: tessera evaluate"
        )


def _move(
    home: Home, version: RegisteredVersion, *, why: str, fingerprint: str, inputs: tuple[TableVersion, ...],
    tracking_uri: str, registry_uri: str | None,
) -> None:  # fmt: skip
    audit.append(
        home, stage="promote", inputs=inputs, rows=0, purpose=why,
        output=TableVersion(name=f"{version.name}@{CHAMPION}", path=version.uri, version=version.version),
        fingerprint=fingerprint,
    )  # fmt: skip
    registry.set_alias(
        tracking_uri, name=version.name, alias=CHAMPION, version=version.version, registry_uri=registry_uri
    )


def _in_sqlite(database: Path, *, name: str) -> tuple[int, str, str] | None:
    """Version, weights and run of the champion, read from MLflow's own tables."""
    if not database.is_file():
        return None
    try:
        connection = sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)
        try:
            row = connection.execute(CHAMPION_QUERY, (stage.WEIGHTS_TAG, RUN_TAG, name, CHAMPION)).fetchone()
        finally:
            connection.close()
    except sqlite3.Error:
        return None
    return (int(row[0]), str(row[1]), str(row[2])) if row else None


def _in_registry(name: str, *, tracking_uri: str, registry_uri: str | None) -> tuple[int, str, str] | None:
    try:
        found = registry.get_version(tracking_uri, model=f"models:/{name}@{CHAMPION}", registry_uri=registry_uri)
    except ModelError:
        return None
    return found.version, found.tags.get(stage.WEIGHTS_TAG, ""), found.tags.get(RUN_TAG, "")
