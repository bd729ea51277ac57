"""The sub-commands of evaluation: score a checkpoint or any model, compare two, list all, promote one, canaries."""

import json
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from tessera.command import (
    Assignments,
    DryRun,
    Fresh,
    Json,
    Target,
    Traceback,
    guarded,
    opened,
    print_plan,
    print_record,
)

if TYPE_CHECKING:
    from tessera.evaluate.compare import Comparison
    from tessera.lineage import EvaluateRecord, TaskScore

MODEL = "models:/NAME@ALIAS, models:/NAME/VERSION, a run, or a folder."
TaskFiles = Annotated[
    list[str] | None, typer.Option("--task", help="A JSON lines file or Delta table; may be given again.")
]


def register(app: typer.Typer) -> None:
    """Adds the sub-commands."""
    for command in (evaluate, compare, leaderboard, promote, canaries):
        app.command()(command)


def evaluate(
    target: Target = "local",
    assignments: Assignments = None,
    model: Annotated[str | None, typer.Option(help=f"Ask this one instead: {MODEL}")] = None,
    task: TaskFiles = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    fresh: Fresh = False,
    traceback: Traceback = False,
) -> None:
    """Score the checkpoint, decide at the gate.

    With --model any model is asked, the files of --task or the configured tasks; no gate, nothing is registered.
    """

    def work() -> None:
        from tessera.errors import ConfigError

        if task and model is None:
            raise ConfigError("--task asks for --model; tasks of the checkpoint stand in evaluate.tasks")
        with opened(target, assignments, fresh=fresh) as pipeline:
            if dry_run:
                print_plan(pipeline, as_json=as_json)
            elif model is None:
                record: Any = pipeline.do("evaluate")
                if not as_json:
                    Console(highlight=False).print(verdict(record))
                print_record(record, as_json=as_json)
            else:
                _show_examined(pipeline.examine(model, files=task or ()), as_json=as_json)

    guarded(work, show=traceback)


def compare(
    first: Annotated[str, typer.Argument(help=MODEL)],
    second: Annotated[str, typer.Argument(help="The one that it is held against.")],
    target: Target = "local",
    assignments: Assignments = None,
    task: TaskFiles = None,
    as_json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Tell whether one model is better than another.

    Paired tests over the same items; a page with intervals, kept in MLflow too.
    """

    def work() -> None:
        with opened(target, assignments) as pipeline:
            done = pipeline.compare(first, second, files=task or ())
            if as_json:
                told = {"stage": "compare", "page": str(done.page), "run_id": done.run_id,
                        "tasks": done.comparison.to_rows(), "missing": dict(done.comparison.missing)}  # fmt: skip
                print(json.dumps(told, sort_keys=True), flush=True)
                return
            Console(highlight=False).print(compared(done.comparison))
            print(done.page)

    guarded(work, show=traceback)


def leaderboard(
    target: Target = "local", assignments: Assignments = None, as_json: Json = False, traceback: Traceback = False
) -> None:
    """List all versions of the model with their scores."""

    def work() -> None:
        with opened(target, assignments) as pipeline:
            board = pipeline.leaderboard()
            rows = [
                {"name": row.name, "bits_per_byte": row.bits_per_byte, "gate": row.gate, "champion": row.champion,
                 "scores": {name: score.value for name, score in row.scores.items() if hasattr(score, "value")}}
                for row in board.rows
            ]  # fmt: skip
            if as_json:
                print(json.dumps({"stage": "leaderboard", "page": str(board.page), "versions": rows}, sort_keys=True))
                return
            Console(highlight=False).print(_versions(rows))
            print(board.page)

    guarded(work, show=traceback)


def promote(
    model: Annotated[str, typer.Argument(help="models:/NAME/VERSION or models:/NAME@ALIAS.")],
    target: Target = "local",
    assignments: Assignments = None,
    force: Annotated[bool, typer.Option("--force", help="Although the gate did not pass it.")] = False,
    reason: Annotated[str, typer.Option(help="Why it is forced; tables/audit keeps it.")] = "",
    as_json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Make a version the champion, if its gate passed it."""

    def work() -> None:
        with opened(target, assignments) as pipeline:
            uri = pipeline.promote(model, force=force, reason=reason)
            print(json.dumps({"stage": "promote", "model": uri, "forced": force}) if as_json else f"{uri} is champion")

    guarded(work, show=traceback)


def canaries(
    target: Target = "local", assignments: Assignments = None, as_json: Json = False, traceback: Traceback = False
) -> None:
    """Write the table of canaries, to measure what models remember.

    List it in prepare.sources, and set evaluate.safety.canaries.
    """

    def work() -> None:
        with opened(target, assignments) as pipeline:
            table = pipeline.canaries()
            if as_json:
                print(table.model_dump_json())
                return
            print(f"{table.path}@{table.version}: add it to prepare.sources (table: {table.name}, id: id, text: text)")

    guarded(work, show=traceback)


def verdict(record: "EvaluateRecord") -> RenderableType:
    """Scores, categories and the gate's sentences, fit for 80 columns."""
    parts: list[RenderableType] = []
    if record.scores or record.failures:
        parts.append(_scores(record.scores, record.failures))
    if record.gauntlet:
        shown = (
            f"{name} {'incomplete' if value is None else f'{value:.3f}'}" for name, value in record.gauntlet.items()
        )
        parts.append(Text(f"\nabove chance: {', '.join(shown)}", overflow="fold"))
    if found := {name: count for name, count in record.contaminated.items() if count}:
        listed = ", ".join(f"{name} {count:,}" for name, count in found.items())
        parts.append(Text(f"items that stand in the training split: {listed}", overflow="fold"))
    if record.safety:
        listed = ", ".join(f"{name} {value:g}" for name, value in record.safety.items())
        parts.append(Text(f"safety: {listed}", overflow="fold"))
    parts.append(Text(f"\nthe gate: {'passed' if record.passed else 'did not pass'}"))
    parts += [Text(f"  {reason}", overflow="fold") for reason in record.reasons]
    return Group(*parts)


def compared(comparison: "Comparison") -> RenderableType:
    """A line a task, fit for 80 columns."""
    grid = _grid("task", "items", comparison.a.name, comparison.b.name, "difference", "p", "")
    for one in comparison.tasks:
        interval = f"{one.paired.difference:+.3f} ({one.paired.low:+.3f} to {one.paired.high:+.3f})"
        grid.add_row(one.task, f"{one.n:,}", f"{one.a.value:.3f}", f"{one.b.value:.3f}", interval, f"{one.holm_p:.3g}",
                     one.verdict)  # fmt: skip
    rest = [Text(f"{name}: {why}", overflow="fold") for name, why in comparison.missing.items()]
    return Group(grid, *rest, Text(f"\n{comparison.sentence()}", overflow="fold"))


def _show_examined(found: Any, *, as_json: bool) -> None:
    scores, failures = found.task_scores(), {name: failure.why for name, failure in found.failures.items()}
    if as_json:
        more = {name: _means(outcomes.values) for name, outcomes in found.outcomes.items()}
        told = {"stage": "evaluate", "weights_sha256": found.weights_sha256, "failures": failures, "metrics": more,
                "scores": {name: score.model_dump() for name, score in scores.items()}}  # fmt: skip
        print(json.dumps(told, sort_keys=True), flush=True)
        return
    Console(highlight=False).print(_scores(scores, failures))


def _means(values: Mapping[str, tuple[float, ...]]) -> dict[str, float]:
    """Of every metric, over all items alike."""
    return {metric: math.fsum(of_items) / len(of_items) for metric, of_items in values.items() if of_items}


def _scores(scores: "Mapping[str, TaskScore]", failures: Mapping[str, str]) -> RenderableType:
    grid = _grid("task", "items", "metric", "score", "95 %", "chance")
    for name, score in scores.items():
        below = score.chance > 0 and score.low <= score.chance
        chance = f"{score.chance:.3f}" if score.chance else ""
        items = f"{score.n:,}" + (f" (-{score.left_out:,})" if score.left_out else "")
        grid.add_row(name, items, score.metric, f"{score.value:.3f}", f"{score.low:.3f} to {score.high:.3f}",
                     f"{chance} not above" if below else chance)  # fmt: skip
    rest = [Text(f"{name} has no score: {why}", overflow="fold") for name, why in failures.items()]
    return Group(grid, *rest)


def _versions(rows: Iterable[Mapping[str, Any]]) -> RenderableType:
    grid = _grid("version", "bits per byte", "gate", "scores")
    for row in rows:
        bits = "" if row["bits_per_byte"] is None else f"{row['bits_per_byte']:.3f}"
        name = f"{row['name']}{' *' if row['champion'] else ''}"
        grid.add_row(name, bits, row["gate"], ", ".join(f"{task} {value:.3f}" for task, value in row["scores"].items()))
    return Group(grid, Text("* champion"))


def _grid(*names: str) -> Table:
    grid = Table(box=None, pad_edge=False)
    for place, name in enumerate(names):
        grid.add_column(name, overflow="fold", justify="left" if place == 0 else "right" if name in NUMBERS else "left")
    return grid


NUMBERS = ("items", "score", "difference", "p", "bits per byte")
