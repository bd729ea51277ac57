"""Where a home stands, from a real ledger and real tables; the whole command is tried in test_line."""

import fcntl
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import write_deltalake
from tests.test_garbage import make_run

from tessera import report, status
from tessera.home import Home
from tessera.lineage import (
    EvaluateRecord,
    PrepareRecord,
    Record,
    ShardRecord,
    SplitTotals,
    TableVersion,
    TokenizerRef,
    TrainRecord,
)
from tessera.results import Results
from tessera.settings import Settings
from tessera.train.metrics import Writer

SPLITS = {"train": SplitTotals(documents=1, tokens=1, num_bytes=1, sequences=1, padding=0, shards=1)}
TOKENIZER = TokenizerRef(path="t", sha256="t", vocab_size=1, end_id=0)


def at(name: str, version: int) -> TableVersion:
    return TableVersion(name=name, path=f"tables/{name}", version=version)


def prepared(source: int, *, version: int) -> PrepareRecord:
    return PrepareRecord(
        fingerprint="p", inputs=(at("tickets", source),), rows=1, documents=1, dropped={}, splits={}, num_bytes=1,
        table=at("documents", version),
    )  # fmt: skip


def sharded(documents: int, *, version: int) -> ShardRecord:
    return ShardRecord(
        fingerprint="s", inputs=(at("documents", documents),), name="docs", manifest=at("docs/manifest", version),
        spans=at("docs/documents", version), tokenizer=TOKENIZER, seq_len=8, tokens=1, shards=1, splits=SPLITS, fill=1,
    )  # fmt: skip


def trained(shards: int, *, weights: str) -> TrainRecord:
    manifest = at("docs/manifest", shards)
    return TrainRecord(
        fingerprint="t", inputs=(manifest,), run="runs/a", run_id="r", shard_set=manifest, tokenizer=TOKENIZER, steps=1,
        train_tokens=1, ranks=1, parameters=1, bits_per_byte_before=2, checkpoint="c", weights_sha256=weights,
    )  # fmt: skip


def evaluated(weights: str) -> EvaluateRecord:
    return EvaluateRecord(
        fingerprint="e", run_id="r", checkpoint="c", weights_sha256=weights, bits_per_byte=1, baselines={}, passed=True,
        reasons=(), table=at("evaluations", 0),
    )  # fmt: skip


@pytest.fixture
def tickets(home: Home) -> Path:
    path = home.tables / "tickets"
    write_deltalake(path, pa.table({"id": [1], "text": ["hello"]}))
    return path


def examine(home: Home) -> status.Status:
    settings = Settings.model_validate({"prepare": {"sources": [{"table": "tickets"}]}, "shard": {"name": "docs"}})
    return status.examine(home, settings=settings, results=Results(home))


def stale(home: Home) -> dict[str, str]:
    return {one.stage: one.stale for one in examine(home).stages}


def add(home: Home, *records: Record, outcome: str = "done") -> None:
    for record in records:
        Results(home).ledger.append(record, status=outcome)


def test_a_result_is_stale_when_its_inputs_have_newer_versions(home: Home, tickets: Path) -> None:
    add(home, prepared(0, version=0), sharded(0, version=0), trained(0, weights="w"), evaluated("w"))
    assert stale(home) == {"prepare": "", "shard": "", "train": "", "evaluate": ""}

    add(home, sharded(0, version=1))  # other settings, the same documents
    assert stale(home)["train"] == "shard has a newer result"
    assert stale(home)["evaluate"] == "train is stale"

    add(home, trained(1, weights="v"))
    assert stale(home) == {"prepare": "", "shard": "", "train": "", "evaluate": "train has a newer result"}

    write_deltalake(tickets, pa.table({"id": [2], "text": ["more"]}), mode="append")
    assert stale(home)["prepare"] == "tickets is at version 1, 0 was read"
    assert stale(home)["shard"] == "prepare is stale"


def test_a_source_that_cannot_be_asked_is_told(home: Home) -> None:
    add(home, prepared(0, version=0))  # tickets was never written here
    (found,) = examine(home).stages

    assert found.stale == ""
    assert "tickets was not asked: prepare.sources: there is no table tickets" in found.unknown


def test_what_failed_last_is_told_until_it_succeeds(home: Home, tickets: Path) -> None:
    add(home, prepared(0, version=0))
    add(home, Record(stage="train", fingerprint="t", error="rank 1 was killed"), outcome="failed")
    assert [(one.stage, one.said) for one in examine(home).failures] == [("train", "rank 1 was killed")]

    add(home, trained(0, weights="w"))
    assert examine(home).failures == ()


def test_runs_are_running_or_interrupted(home: Home) -> None:
    make_run(home, "finished", steps=(2,), finished=True)
    make_run(home, "interrupted", steps=(2,), finished=False)
    running = make_run(home, "running", steps=(2,), finished=False)
    Writer(running.metrics).write({"step": 7, "loss": 1.5})
    with running.lock.open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = examine(home).runs

    assert [(one.run, one.state, one.step, one.loss) for one in found] == [
        ("interrupted", "interrupted", 0, None), ("running", "running", 7, 1.5)
    ]  # fmt: skip


def test_an_empty_home_says_what_to_do(home: Home) -> None:
    from rich.console import Console

    console = Console(width=80)
    with console.capture() as capture:
        console.print(report.status(examine(home)))

    assert "tessera run" in capture.get()
