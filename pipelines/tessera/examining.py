"""Models that are asked beside the line: any model on any tasks, two models against each other, all registered ones.

A model is named as people name it: `models:/NAME@ALIAS`, `models:/NAME/VERSION`, a run of the home (`RUN` or
`RUN@STEP`), or a folder in Hugging Face format. What each did is kept in `tables/scores`. No JVM.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tessera import registry, tracking
from tessera.away import why
from tessera.errors import ConfigError, ModelError
from tessera.files import write_whole
from tessera.home import Home
from tessera.lineage import sha256_file
from tessera.progress import Tell
from tessera.settings import Settings

if TYPE_CHECKING:
    from tessera.evaluate.compare import Comparison
    from tessera.evaluate.compare_page import LeaderRow
    from tessera.evaluate.examination import Examination
    from tessera.evaluate.gathering import Gathering, Tasks
    from tessera.evaluate.rival import Rival
    from tessera.evaluate.scoring import Examiner

COMPARISON, LEADERBOARD = "comparison.html", "leaderboard.html"


@dataclass(frozen=True)
class Compared:
    """Two models, and the page that shows them."""

    comparison: "Comparison"
    page: Path
    run_id: str
    """The MLflow run that keeps the page: that of the first model; empty where there is none, or MLflow is away."""


@dataclass(frozen=True)
class Leaderboard:
    """All registered versions, and the page that shows them."""

    rows: tuple["LeaderRow", ...]
    page: Path


def find_model(given: str, *, home: Home, settings: Settings, fetch: Callable[[str], Path]) -> "Rival":
    """Who is meant.

    Args:
        fetch: gives the checkpoint folder of a registered version.

    Raises:
        ConfigError: nothing is called so.
        ModelError: there is no such version.
    """
    from tessera.evaluate.rival import Rival
    from tessera.model.build import WEIGHTS
    from tessera.train.run import RunFolder, committed, named

    if given.startswith("models:/"):
        return _registered(given, home=home, settings=settings, fetch=fetch)
    name, _, step = given.partition("@")
    if "/" not in name and (home.runs / name).is_dir():
        folders = committed(RunFolder(home.runs / name).checkpoints)
        saved = {str(int(path.name.removeprefix("step-"))): path for path in folders}
        if not saved or (step and step not in saved):
            raise ConfigError(f"{given}: the run has checkpoints of these steps: {', '.join(saved) or 'none'}")
        folder, run = saved[step] if step else [*saved.values()][-1], f"runs/{name}"
    else:
        folder, run = Path(given).expanduser().absolute(), ""
    if not (folder / WEIGHTS).is_file():
        raise ConfigError(
            f"{given} is no registered model (models:/NAME@ALIAS), no run of this home (there are: {named(home)}), and "
            f"no folder with {WEIGHTS}"
        )
    return Rival(given, weights_sha256=sha256_file(folder / WEIGHTS), run=run, checkpoint=lambda: folder)


def examine(model: "Rival", *, examiner: "Examiner", tasks: "Gathering | None", files: Sequence[str]) -> "Examination":
    """What a model does on task files, or without any on the configured tasks.

    Raises:
        ConfigError, SourceError: a file is no task.
    """
    from tessera.evaluate.settings import TaskSettings
    from tessera.evaluate.task_files import read_task

    given = [TaskSettings(name=Path(file).stem, path=file) for file in files]
    asked: Tasks = {one.name: read_task(one, home=examiner.home) for one in given}
    if tasks is not None and not asked:
        asked = tasks.tasks()
    if not asked:
        raise ConfigError(
            "nothing to ask; give --task FILE, or set evaluate.tasks, evaluate.gauntlet, evaluate.problem"
        )
    return examiner.examine(model, tasks=asked)


def compare(
    first: "Rival", second: "Rival", *, examiner: "Examiner", settings: Settings, tasks: "Gathering | None",
    files: Sequence[str],
) -> Compared:  # fmt: skip
    """`first` against `second` on task files, or on the configured tasks and held-out text."""
    from tessera.evaluate import compare as sides
    from tessera.evaluate.compare_page import comparison_page

    home = examiner.home
    a = examine(first, examiner=examiner, tasks=tasks, files=files)
    b = examiner.examine(second, tasks=a.tasks)
    found = sides.compare(a.side(first.name), b.side(second.name), tasks=a.tasks)
    text = comparison_page(found)
    page = _write(home.reports / COMPARISON, text=text)
    return Compared(found, page=page, run_id=_keep(first, text=text, home=home, settings=settings, tell=examiner.tell))


def leaderboard(*, home: Home, settings: Settings) -> Leaderboard:
    """Every version of the registered model with the scores that are known, the champion marked; nothing is asked.

    Raises:
        TrackingError: the registry cannot be asked.
    """
    from tessera.evaluate import score_table
    from tessera.evaluate.compare_page import LeaderRow, leaderboard_page
    from tessera.evaluate.task import Score
    from tessera.serve.champion import CHAMPION, GATE_TAG
    from tessera.serve.stage import WEIGHTS_TAG

    scores: dict[str, dict[str, Score]] = {}
    for row in score_table.newest(home):
        score = Score(row["metric"], row["value"], row["low"], row["high"], n=row["n"], chance=row["chance"])
        scores.setdefault(row["weights_sha256"], {})[row["task"]] = score
    uris = tracking.uris(settings.tracking, home=home)
    rows = [
        LeaderRow(
            name=f"{one.name} version {one.version}",
            bits_per_byte=float(bits) if (bits := one.tags.get("tessera.bits_per_byte")) else None,
            scores=scores.get(one.tags.get(WEIGHTS_TAG, ""), {}),
            gate=one.tags.get(GATE_TAG, ""),
            champion=CHAMPION in one.aliases,
        )
        for one in registry.versions(
            uris["tracking_uri"], name=settings.serve.model_name, registry_uri=uris["registry_uri"]
        )
    ]
    return Leaderboard(tuple(rows), page=_write(home.reports / LEADERBOARD, text=leaderboard_page(rows)))


def _registered(given: str, *, home: Home, settings: Settings, fetch: Callable[[str], Path]) -> "Rival":
    from tessera.evaluate.rival import Rival
    from tessera.serve.champion import RUN_TAG
    from tessera.serve.stage import WEIGHTS_TAG

    uris = tracking.uris(settings.tracking, home=home)
    version = registry.get_version(uris["tracking_uri"], model=given, registry_uri=uris["registry_uri"])
    weights = version.tags.get(WEIGHTS_TAG)
    if not weights:
        raise ModelError(f"{version.uri} was not registered by Tessera; name a version that tessera serve made")
    return Rival(
        f"{version.name} version {version.version}", weights_sha256=weights, run=version.tags.get(RUN_TAG, ""),
        checkpoint=lambda: fetch(version.uri),
    )  # fmt: skip


def _keep(model: "Rival", *, text: str, home: Home, settings: Settings, tell: Tell) -> str:
    """Keeps the page with the run that trained the model; the run's id."""
    from tessera.train.run import RunFolder
    from tessera.train.ship import known_run_id

    run_id = known_run_id(RunFolder(home.resolve(model.run))) if model.run and home.resolve(model.run).is_dir() else ""
    if not run_id:
        return ""
    try:
        with tracking.patient():
            tracking.client(tracking.tracking_uri(settings.tracking, home=home)).log_text(run_id, text, COMPARISON)
    except Exception as error:  # whatever keeps MLflow away, the page is there
        tell(f"MLflow did not take the page ({why(error)}); it is in {home.relative(home.reports / COMPARISON)}")
        return ""
    return run_id


def _write(path: Path, *, text: str) -> Path:
    write_whole(path, text.encode())
    return path
