"""What the records say that a model version was made of, and whether it is all there still. No JVM.

From the registry's tags to the ledger, and from there back through the commits that published each result; how it was
trained is in the run folder, the settings of prepare in the configuration that the run keeps for MLflow. That may be
another than the one of the command that prepared: the fingerprint of the documents says whether it is.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from tessera import erasures, registry, tables, tracking
from tessera.errors import ModelError, SourceError, TokenizerError, UserError
from tessera.home import Home
from tessera.lineage import PrepareRecord, ServeRecord, ShardRecord, TableVersion, TrainRecord
from tessera.prepare import sources as resolving
from tessera.prepare import stage as preparing
from tessera.prepare.settings import PrepareSettings, SourceSettings
from tessera.prepare.sources import Source
from tessera.results import Results
from tessera.serve.stage import FINGERPRINT_TAG
from tessera.settings import Settings
from tessera.shard import artefact
from tessera.train.run import STATE, RunFolder, RunSpec, read_json
from tessera.train.ship import ABOUT, read_about

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@dataclass(frozen=True)
class Recorded:
    """What the records say that a model version was made of, and how."""

    model: str
    prepare: PrepareRecord
    shards: ShardRecord
    train: TrainRecord
    spec: RunSpec
    config: Mapping[str, Any]
    """The whole configuration of the command that trained it."""
    environment: Mapping[str, Any]
    """What decides the last bits of its sums; empty where its checkpoint is gone."""


@dataclass(frozen=True)
class NotAsked:
    """Why documents are not made again."""

    why: str


@dataclass(frozen=True)
class Judging:
    """How documents are made again."""

    sources: tuple[Source, ...]
    settings: PrepareSettings
    as_recorded: bool
    """Whether the recorded fingerprint says that these are the settings."""


def find(home: Home, *, model: str, settings: Settings, results: Results) -> Recorded:
    """The records of a registered version, back to its sources.

    Raises:
        ModelError: no such version, or it was not registered from this home.
        UserError: a record of what it was made of is gone.
    """
    uris = tracking.uris(settings.tracking, home=home)
    version = registry.get_version(uris["tracking_uri"], model=model, registry_uri=uris["registry_uri"])
    found = results.ledger.find(stage="serve", fingerprint=version.tags.get(FINGERPRINT_TAG, ""))
    if found is None:
        raise ModelError(
            f"{version.uri} was not registered from {home.root}, whose ledger does not know it; name the home that "
            "trained it: export TESSERA_HOME=..."
        )
    train = results.train_of(results.evaluation_of(ServeRecord.from_json(found)))
    shards = results.shard_of(train)
    if not shards.settings:
        raise UserError(
            f"shard set {shards.name}@{shards.manifest.version} was written by an older Tessera, which did not record "
            "how; train a new model: tessera run"
        )
    folder = RunFolder(home.resolve(train.run))
    if not folder.spec.is_file():
        raise ModelError(
            f"{version.uri}: its run folder {train.run} is gone, which says how it was trained; restore it"
        )
    return Recorded(
        model=version.uri,
        prepare=results.prepare_of(shards),
        shards=shards,
        train=train,
        spec=folder.read_spec(),
        config=read_about(folder).get("params", {}),
        environment=environment(home.resolve(train.checkpoint)),
    )


def environment(checkpoint: Path) -> dict[str, Any]:
    """What decides the last bits of sums, as a checkpoint has it: see `train.opening`. Empty where it is gone."""
    return dict(read_json(checkpoint / STATE).get("environment", {}))


def refuse_gone(home: Home, recorded: Recorded) -> None:
    """What shards are written from must be there: the documents at their version, and the set's tokenizer.

    Raises:
        SourceError: the documents cannot be read at that version any more.
        UserError: rows of them were erased since.
        TokenizerError: the tokenizer is gone.
    """
    documents, tokenizer = recorded.shards.inputs[0], recorded.shards.tokenizer
    gone = why_gone(home.resolve(documents.path), version=documents.version)
    if gone is not None:
        since = _erased_since(home, recorded.prepare.created)
        erased = f"; {since} rows were erased since" if since else ""
        raise SourceError(
            f"{recorded.model} was made from {documents.path}@{documents.version}, which is gone: {gone}{erased}. "
            "Restore it, or train a new model: tessera run"
        )
    if held := num_erased(home, documents):
        raise UserError(
            f"documents that {recorded.model} was made from were erased since: {held}. One without them is another "
            "model: tessera run trains it"
        )
    if not artefact.holds(home, tokenizer):
        raise TokenizerError(
            f"{recorded.model} was made with the tokenizer {tokenizer.path}, {tokenizer.sha256[:12]}, which is gone or "
            "changed; restore it"
        )


def why_gone(place: Path, *, version: int) -> str | None:
    """Why a table on this machine cannot be read at a version; None when it can."""
    try:
        missing = tables.missing_files(place, version=version)
    except SourceError as error:
        return str(error)
    if not missing:
        return None
    return f"{len(missing)} of its data files are not there, removed by a vacuum or an erasure"


def _erased_since(home: Home, moment: str) -> int:
    """Rows that were erased after a moment."""
    path = erasures.path(home)
    if not tables.exists(path):
        return 0
    rows = tables.read(path, columns=["doc_id", "at"]).to_pylist()
    return len({row["doc_id"] for row in rows if row["at"] > moment})


def num_erased(home: Home, documents: TableVersion) -> int:
    """Documents of a version that were erased later."""
    erased = erasures.read(home)
    if not erased:
        return 0
    sql = f"SELECT count(*) AS held FROM rows WHERE {erased.condition()}"
    return int(tables.query(home.resolve(documents.path), version=documents.version, sql=sql)["held"][0].as_py())


def judging(home: Home, recorded: Recorded, *, spark: "Callable[[], SparkSession]") -> Judging | NotAsked:
    """The sources at their recorded versions, and the settings that the run keeps.

    Raises:
        SourceError: a source cannot be read at its version any more, or is another table.
    """
    tables_read = {table.name: table for table in recorded.prepare.inputs}
    try:
        settings = PrepareSettings.model_validate(recorded.config.get("prepare", {}))
    except ValidationError:
        return NotAsked(f"{recorded.train.run}/{ABOUT} does not hold its settings")
    if {source.name for source in settings.sources} != tables_read.keys():
        return NotAsked(f"the run was given other sources than documents@{recorded.prepare.table.version} came from")
    pinned = tuple(_pinned(source, table=tables_read[source.name], home=home) for source in settings.sources)
    settings = settings.model_copy(update={"sources": pinned})
    found = tuple(
        _resolve(source, table=tables_read[source.name], model=recorded.model, home=home, spark=spark)
        for source in settings.sources
    )
    base = recorded.prepare.base or recorded.prepare.fingerprint
    return Judging(
        sources=found, settings=settings,
        as_recorded=preparing.base_fingerprint(found, settings=settings) == base,
    )  # fmt: skip


def _pinned(source: SourceSettings, *, table: TableVersion, home: Home) -> SourceSettings:
    """A source at its recorded version and place, which does not hang on the folder that a command is given in."""
    elsewhere = table.path == source.table or "://" in table.path
    anchored = {} if elsewhere else {"table": None, "path": str(home.resolve(table.path))}
    return source.model_copy(update={"version": table.version, "timestamp": None, **anchored})


def _resolve(
    source: SourceSettings, *, table: TableVersion, model: str, home: Home, spark: "Callable[[], SparkSession]"
) -> Source:
    gone = None
    try:
        found = resolving.resolve(source, home=home, spark=spark)
        if not found.in_catalog and "://" not in found.location:
            gone = why_gone(Path(found.location), version=table.version)
        if table.table_id and found.pinned.table_id != table.table_id:
            gone = f"{found.location} is another table now"
    except SourceError as error:
        gone = str(error)
    if gone is not None:
        raise SourceError(
            f"{model} was made from {table.name}@{table.version}, which is gone: {gone}. Restore that version, or "
            "begin at the documents that were made of it: --from-documents"
        )
    return found
