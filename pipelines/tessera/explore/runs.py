"""Training runs as the map sees them: read from MLflow, each once; what is not shown is counted with its reason.

Costs one query a thousand runs and four a run, of its metrics: about 10 ms a run from SQLite. Runs of several homes
that share one MLflow server are all here; what only this home's ledger knows, the number of parameters, is handed in.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tessera.explore.recipe import mask, recipe_of
from tessera.explore.settings import ExploreSettings
from tessera.registry import name_fault
from tessera.tracking import RUN_TAG

KIND_TAG = "tessera.kind"
"""What a run is, when it is no training run; the map's own is `map`."""
MAP = "map"
BESIDES = (MAP, "prepare")
"""Kinds of runs that are no training runs, and are not told of: the map's own, and reports of documents."""
PARAMETERS_TAG = "tessera.parameters"
TABLE = "tessera.table."
HELDOUT, LOSS = "heldout_bits_per_byte", "loss"
HISTORIES = ("seconds", "tokens", HELDOUT, LOSS)
ENDLESS = 1e300
"""MLflow stores an infinite metric as the largest float."""
PAGE = 1000

Curve = tuple[tuple[float, float], ...]
"""(training seconds, value), by seconds."""


@dataclass(frozen=True)
class Run:
    """One training run: recipe, cost and quality, all texts masked."""

    run_id: str
    name: str
    state: str
    """`finished`, `running`, `failed` or `killed`."""
    recipe: Mapping[str, str]
    quality: float | None
    """Bits per byte, the newest; None before the first measurement after a step."""
    seconds: float
    """Training seconds when that was measured, or until now without a measurement; so with tokens and steps."""
    tokens: float
    steps: int
    ranks: int
    parameters: int | None
    gzip: float | None
    """Bits per byte of gzip on the same held-out text: tells two texts apart."""
    gate: str
    """`passed`, `failed`, or '' before an evaluation."""
    gate_reasons: str
    models: tuple[str, ...]
    """Registered model versions, with their aliases."""
    tables: tuple[str, ...]
    """`name path@version` of all that went in."""
    tokenizer: str
    heldout_curve: Curve
    loss_curve: Curve

    @property
    def on_chart(self) -> bool:
        return self.quality is not None and self.seconds > 0

    @property
    def competes(self) -> bool:
        """Whether it may lie on the front: only what was trained to its end."""
        return self.on_chart and self.state == "finished"

    @property
    def processor_seconds(self) -> float:
        return self.seconds * self.ranks

    @property
    def tokens_per_second(self) -> float | None:
        return self.tokens / self.seconds if self.seconds > 0 else None


@dataclass(frozen=True)
class LeftOut:
    """Runs that are not on the page, and why."""

    reason: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Found:
    """An experiment's runs."""

    runs: list[Run]
    """Training runs, oldest first."""
    left_out: list[LeftOut]
    names: set[str]
    """The run folders of all runs of the experiment, shown or not."""
    fingerprints: set[str]
    """Their training fingerprints."""


def read_runs(client: Any, *, experiment_id: str, settings: ExploreSettings, parameters: Mapping[str, int]) -> Found:
    """All training runs of an experiment, and what else is there.

    Args:
        client: an MlflowClient.
        parameters: number of parameters by run folder, for runs that have no tag of it.
    """
    training: list[Any] = []
    others: dict[str, list[str]] = {}
    names: set[str] = set()
    fingerprints: set[str] = set()
    for run in _search(client, experiment_id):
        names.add(run.data.tags.get(RUN_TAG, ""))
        fingerprints.add(run.data.tags.get("tessera.fingerprint", ""))
        reason = _not_shown(run)
        if reason is None:
            training.append(run)
        elif reason not in BESIDES:
            others.setdefault(reason, []).append(_name(run))
    training.sort(key=lambda run: (run.info.start_time or 0, run.info.run_id))
    older, newest = training[: -settings.max_runs], training[-settings.max_runs :]
    if older:
        others[f"older than the newest {settings.max_runs:,} (explore.max_runs)"] = [_name(run) for run in older]
    models = _models(client, names={run.data.params["serve.model_name"] for run in newest if _serves(run)})
    runs = [_read_run(run, client=client, settings=settings, parameters=parameters, models=models) for run in newest]
    left_out = [LeftOut(reason, tuple(sorted(names))) for reason, names in sorted(others.items())]
    return Found(runs, left_out, names, fingerprints)


def _search(client: Any, experiment_id: str) -> Iterator[Any]:
    from mlflow.entities import ViewType

    token: str | None = None
    while True:
        found = client.search_runs([experiment_id], run_view_type=ViewType.ALL, max_results=PAGE, page_token=token)
        yield from found
        token = found.token
        if not token:
            return


def _not_shown(run: Any) -> str | None:
    """Why a run of the experiment is not on the page: None for one that is, its kind for one of BESIDES."""
    tags = run.data.tags
    kind = tags.get(KIND_TAG)
    if kind in BESIDES:
        return str(kind)
    if run.info.lifecycle_stage != "active":
        return "deleted in MLflow"
    if kind not in (None, "train"):
        return f"of kind {mask(kind)}, not training"
    return None if RUN_TAG in tags else f"not made by Tessera (no tag {RUN_TAG})"


def _read_run(
    run: Any, *, client: Any, settings: ExploreSettings, parameters: Mapping[str, int],
    models: Mapping[str, Sequence[str]],
) -> Run:  # fmt: skip
    run_id = run.info.run_id
    params = {key: mask(value) for key, value in run.data.params.items()}
    tags = {key: mask(value) for key, value in run.data.tags.items()}
    by_step = {key: _history(client, run_id, key) for key in {*HISTORIES, settings.quality}}
    seconds = {0: 0.0} | by_step["seconds"]
    measured = {step: value for step, value in by_step[settings.quality].items() if step > 0}
    last = max(measured or seconds)
    return Run(
        run_id=run_id,
        name=_name(run),
        state={"FINISHED": "finished", "FAILED": "failed", "KILLED": "killed"}.get(run.info.status, "running"),
        recipe=recipe_of(params, tags=tags),
        quality=measured.get(last),
        seconds=_until(last, values=seconds),
        tokens=_until(last, values=by_step["tokens"]),
        steps=last,
        ranks=_whole(params.get("train.ranks")) or 1,
        parameters=_whole(tags.get(PARAMETERS_TAG)) or parameters.get(run.data.tags[RUN_TAG]),
        gzip=_usable(run.data.metrics.get("eval/gzip_bits_per_byte")),
        gate=tags.get("tessera.gate", ""),
        gate_reasons=tags.get("tessera.gate_reasons", ""),
        models=tuple(models.get(run_id, ())),
        tables=tuple(sorted(f"{key[len(TABLE) :]} {value}" for key, value in tags.items() if key.startswith(TABLE))),
        tokenizer=tags.get("tessera.tokenizer_sha256", ""),
        heldout_curve=_curve(by_step[HELDOUT], seconds=seconds, limit=settings.curve_points),
        loss_curve=_curve(by_step[LOSS], seconds=seconds, limit=settings.curve_points),
    )


def thin(points: Sequence[tuple[float, float]], *, limit: int) -> Curve:
    """At most `limit` points: means of as many neighbours each as that needs, the last group what remains."""
    size = -(-len(points) // limit) if points else 1
    groups = (points[first : first + size] for first in range(0, len(points), size))
    return tuple((_mean(x for x, _ in group), _mean(y for _, y in group)) for group in groups)


def _curve(values: Mapping[int, float], *, seconds: Mapping[int, float], limit: int) -> Curve:
    return thin([(seconds[step], values[step]) for step in sorted(values) if step in seconds], limit=limit)


def _history(client: Any, run_id: str, key: str) -> dict[int, float]:
    """A metric by step, without what is not a number; the value sent last wins."""
    found = sorted(client.get_metric_history(run_id, key), key=lambda metric: (metric.step, metric.timestamp))
    return {metric.step: metric.value for metric in found if _usable(metric.value) is not None}


def _models(client: Any, *, names: Iterable[str]) -> dict[str, list[str]]:
    """Registered versions by the run that trained them: `tessera-docs 3 (champion)`."""
    from mlflow.exceptions import MlflowException

    found: dict[str, list[str]] = {}
    for name in sorted(names):
        try:
            aliases = client.get_registered_model(name).aliases
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            continue  # nothing was registered under this name
        versions = client.search_model_versions(f"name = '{name}'")
        for version in sorted(versions, key=lambda version: int(version.version)):
            called = sorted(alias for alias, number in aliases.items() if int(number) == int(version.version))
            shown = f"{name} {version.version}" + (f" ({', '.join(called)})" if called else "")
            found.setdefault(version.run_id, []).append(mask(shown))
    return found


def _serves(run: Any) -> bool:
    """Whether it names a model that a query can hold."""
    name = run.data.params.get("serve.model_name", "")
    return name_fault(name) is None


def _name(run: Any) -> str:
    return mask(run.info.run_name or run.data.tags.get(RUN_TAG) or run.info.run_id)


def _until(step: int, *, values: Mapping[int, float]) -> float:
    """A running total after a step, or after the last one before it that is known; 0 when there is none."""
    return max((value for key, value in values.items() if key <= step), default=0.0)


def _usable(value: float | None) -> float | None:
    return value if value is not None and abs(value) < ENDLESS else None  # a NaN is not smaller than anything


def _whole(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)
