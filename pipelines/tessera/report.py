"""What a person reads of records: a line a stage, and the table at the end of a run. Numbers only, never row text."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tessera.garbage import Garbage
from tessera.home import Home
from tessera.lineage import (
    KINDS,
    EvaluateRecord,
    PrepareRecord,
    Record,
    SampleRecord,
    ScoreRecord,
    ServeRecord,
    ShardRecord,
    TrainRecord,
)

if TYPE_CHECKING:
    from tessera.status import Status


MANY_GENERATIONS = 32
"""Of a set: as many small files, each with a sequence that is not full, as are worth a word."""


def line(record: Record) -> str:
    """`stage  seconds  what came out`, for the moment a stage ends."""
    seconds = "found" if record.reused else f"{record.seconds:.1f} s"
    return f"{record.stage:<8} {seconds:>8}  {outcome(record)}"


def outcome(record: Record) -> str:
    """What a stage made, in one line."""
    match record:
        case SampleRecord():
            return f"{record.rows:,} rows in {record.table.path}@{record.table.version}"
        case PrepareRecord():
            dropped = ", ".join(f"{count:,} {reason}" for reason, count in record.dropped.items()) or "none"
            return f"{record.documents:,} documents@{record.table.version} of {record.rows:,} rows; dropped: {dropped}"
        case ShardRecord():
            where = f"{_plural(record.shards, 'shard')} of {record.name}@{record.manifest.version}"
            kept = f"; {record.kept_shards:,} kept, {record.written:,} documents packed" if record.kept_shards else ""
            return f"{record.tokens:,} tokens in {where}, {record.fill:.1%} full{kept}{_advice(record)}"
        case TrainRecord():
            return f"{record.steps:,} steps, {record.train_tokens:,} tokens, {record.parameters:,} parameters"
        case EvaluateRecord():
            verdict = "passed" if record.passed else "did not pass"
            return f"{record.bits_per_byte:.3f} bits per byte held out; the gate: {verdict}"
        case ServeRecord():
            return f"{record.model} version {record.version}: {', '.join(record.aliases)}"
        case ScoreRecord():
            left = f", {record.remaining:,} to go" if record.remaining else ""
            by = f"{record.model} version {record.version}"
            return f"{_plural(record.answered, 'row')} answered by {by}, {record.found:,} before{left}"
    return ""


def _advice(record: ShardRecord) -> str:
    many = len(record.generations) > MANY_GENERATIONS
    return f"\n{'':18} {len(record.generations)} generations: tessera shard compact makes them one" if many else ""


def table(records: Sequence[Record], *, mlflow_command: str) -> RenderableType:
    """The whole run at a glance, fit for 80 columns."""
    by_stage = {record.stage: record for record in records}
    grid = Table(box=None, show_header=False, pad_edge=False)
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in _facts(by_stage).items():
        grid.add_row(name, value)
    seconds = Table(box=None, pad_edge=False, title=None)
    seconds.add_column("stage", no_wrap=True)
    seconds.add_column("seconds", justify="right")
    seconds.add_column("")
    for record in records:
        seconds.add_row(record.stage, f"{record.seconds:.1f}", "found" if record.reused else "")
    seconds.add_row("all", f"{sum(record.seconds for record in records):.1f}", "")
    look = Text(f"look around: {mlflow_command}", overflow="fold")
    return Group(Text(), grid, Text(), seconds, Text(), look)


def _facts(by_stage: dict[str, Record]) -> dict[str, str]:
    facts: dict[str, str] = {}
    prepare, shard, train, evaluate, serve = (
        by_stage.get(stage) for stage in ("prepare", "shard", "train", "evaluate", "serve")
    )
    if isinstance(prepare, PrepareRecord):
        facts["rows"] = f"{prepare.rows:,}"
        facts["documents"] = f"{prepare.documents:,} ({prepare.splits.get('heldout', 0):,} held out)"
        facts["dropped"] = ", ".join(f"{count:,} {reason}" for reason, count in prepare.dropped.items()) or "none"
    if isinstance(shard, ShardRecord):
        facts["tokens"] = f"{shard.tokens:,}, sequences {shard.fill:.1%} full"
        facts["shards"] = f"{shard.shards:,}"
    if isinstance(train, TrainRecord):
        facts["steps"] = f"{train.steps:,} on {_plural(train.ranks, 'rank')}, {train.train_tokens:,} tokens"
    if isinstance(evaluate, EvaluateRecord):
        before = f" (untrained {train.bits_per_byte_before:.3f})" if isinstance(train, TrainRecord) else ""
        facts["bits per byte"] = f"{evaluate.bits_per_byte:.3f}{before}"
        worst_first = sorted(evaluate.baselines.items(), key=lambda item: -item[1])
        facts["baselines"] = ", ".join(f"{name} {value:.3f}" for name, value in worst_first)
        facts["gate"] = "passed" if evaluate.passed else "did not pass:\n" + "\n".join(evaluate.reasons)
    if isinstance(serve, ServeRecord):
        facts["model"] = f"{serve.model} version {serve.version} ({', '.join(serve.aliases)})"
    return facts


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def status(found: "Status") -> RenderableType:
    """Where the home stands, fit for 80 columns."""
    stages = Table(box=None, pad_edge=False)
    for name in ("stage", "since (UTC)", "state"):
        stages.add_column(name, no_wrap=name != "state", overflow="fold")
    for one in found.stages:
        state = f"stale: {one.stale}" if one.stale else "current"
        if one.unknown:
            state = f"current as far as is known; {one.unknown}"
        stages.add_row(one.stage, _moment(one.at), f"{state}\n{outcome(one.record)}")
    parts: list[RenderableType] = [stages if found.stages else Text("nothing was made here yet; begin: tessera run")]
    for run in found.runs:
        loss = f", loss {run.loss:.3f}" if run.loss is not None else ""
        advice = "; go on: tessera train" if run.state == "interrupted" else ""
        parts.append(Text(f"\nrun {run.run} {run.state}: step {run.step:,} of {run.steps:,}{loss}{advice}"))
    for failed in found.failures:
        parts.append(Text(f"\n{failed.stage} failed last, {_moment(failed.at)}: {failed.said}", overflow="fold"))
    return Group(*parts)


def garbage(found: Sequence[Garbage], *, home: Home, freed: int | None) -> RenderableType:
    """What nothing needs, with sizes, and the bytes that were freed, if any were to be; fit for 80 columns."""
    shown = Table(box=None, pad_edge=False)
    shown.add_column("what nothing needs", overflow="fold")
    shown.add_column("size", justify="right", no_wrap=True)
    shown.add_column("why", overflow="fold")
    for one in found:
        shown.add_row(home.relative(one.path), size(one.num_bytes), f"{one.kind}: {one.why}")
    total = size(sum(one.num_bytes for one in found))
    if not found:
        return Text("nothing to remove")
    last = f"{total} could be removed; nothing was: tessera gc --delete"
    if freed is not None:
        last = f"{size(freed)} of {total} removed"
    return Group(shown, Text(f"\n{last}"))


def size(num_bytes: int) -> str:
    """A size as people read it, in binary units."""
    value, unit = float(num_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:,.0f} {unit}" if unit == "B" else f"{value:,.1f} {unit}"


def _moment(at: str) -> str:
    return at[:19].replace("T", " ")


def history(rows: Sequence[dict[str, Any]]) -> RenderableType:
    """The ledger as a table, oldest first, fit for 80 columns."""
    shown = Table(box=None, pad_edge=False)
    for name in ("at (UTC)", "stage", "status"):
        shown.add_column(name, no_wrap=True)
    shown.add_column("seconds", justify="right")
    shown.add_column("outcome", overflow="fold")
    for row in rows:
        record = (Record if row["status"] == "failed" else KINDS[row["stage"]]).from_json(row["record"])
        what = record.error or outcome(record)
        shown.add_row(_moment(row["at"]), row["stage"], row["status"], f"{row['seconds']:.1f}", what)
    return shown
