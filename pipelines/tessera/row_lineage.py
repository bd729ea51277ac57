"""Which runs and registered models were trained on a row, by `tables/rows_seen` and the registry."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from tessera import registry, tracking
from tessera.forgetting.target import Wanted, doc_ids_of, sources_of
from tessera.home import Home
from tessera.settings import Settings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@dataclass(frozen=True)
class TrainedOn:
    """A row and a run that saw it."""

    doc_id: str
    run: str
    """The run folder's name."""
    run_id: str
    """The MLflow run."""
    shard_set: str
    times: int
    """Sequences drawn that hold a piece of the row."""
    first_step: int
    models: tuple[str, ...]
    """URIs of the versions that came out of the run."""


def trained_on(
    home: Home, *, settings: Settings, wanted: Wanted, spark: "Callable[[], SparkSession]"
) -> tuple[list[str], list[TrainedOn]]:
    """The ids of rows, and the runs that saw each; Spark is needed for ids of row keys only.

    Raises:
        ConfigError: the rows are not named, or by what is no key of the source.
        TrackingError: MLflow cannot be asked now.
    """
    from tessera.train import seen

    named = sources_of(home, settings=settings, wanted=wanted, spark=spark) if wanted.source else []
    doc_ids = doc_ids_of(named, wanted=wanted, spark=spark)
    rows = seen.by_rows(home, doc_ids=doc_ids)
    models = _models(home, settings=settings, run_ids=sorted({row["run_id"] for row in rows if row["run_id"]}))
    found = [TrainedOn(**row, models=tuple(models.get(row["run_id"], ()))) for row in rows]
    return doc_ids, found


def show(doc_ids: Sequence[str], found: Sequence[TrainedOn], *, as_json: bool) -> None:
    if as_json:
        told = {"doc_ids": list(doc_ids), "trained_on": [dataclasses.asdict(one) for one in found]}
        print(json.dumps(told, sort_keys=True), flush=True)
    else:
        Console(highlight=False).print(render(doc_ids, found))


def render(doc_ids: Sequence[str], found: Sequence[TrainedOn]) -> RenderableType:
    """Fit for 80 columns."""
    if not found:
        return Text(f"no run was trained on {'this row' if len(doc_ids) == 1 else f'these {len(doc_ids)} rows'}")
    shown = Table(box=None, pad_edge=False)
    for name, justify in (("row", "left"), ("run", "left"), ("times", "right"), ("first step", "right"),
                          ("models", "left")):  # fmt: skip
        shown.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for one in found:
        shown.add_row(one.doc_id[:12], one.run, str(one.times), str(one.first_step), ", ".join(one.models))
    return shown


def _models(home: Home, *, settings: Settings, run_ids: Sequence[str]) -> dict[str, list[str]]:
    """MLflow run -> URIs of the versions that came out of it."""
    if not run_ids:
        return {}
    uris = tracking.uris(settings.tracking, home=home)
    versions = registry.versions_of_runs(uris["tracking_uri"], run_ids=run_ids, registry_uri=uris["registry_uri"])
    found: dict[str, list[str]] = {}
    for version in versions:
        found.setdefault(version.run_id, []).append(version.uri)
    return found
