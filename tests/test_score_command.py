"""`tessera score` as a user runs it: planned, killed with SIGKILL, run again, found again; and `tessera explore`.

One small line is run for all tests here. The prompt and its column lie outside Unicode's basic plane.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from tessera import publish, status, tables
from tessera.home import Home
from tessera.lineage import Record, ScoreRecord, TableVersion
from tessera.results import Results
from tessera.serve import answers
from tessera.settings import Settings

TESSERA = Path(sys.executable).with_name("tessera")
LINE = (
    "sample.packages=[click, pluggy]", "shard.seq_len=64", "shard.tokenizer.vocab_size=512",
    "shard.tokenizer.sample_bytes=200000", "train.steps=4", "train.batch_size=8", "train.heldout.sequences=8",
    "train.model={layers: 2, width: 32, heads: 2, kv_heads: 2, ffn_width: 64}",
    "evaluate.gate={max_bits_per_byte: 9.0, beat: []}", "serve.max_tokens=4",
)  # fmt: skip
COLUMN = "\U0001d465"  # a mathematical x
PROMPT = f"Say {{{COLUMN}}} \U0001f600\x85:"  # YAML takes U+0085 for a line's end
CANARY = "zq-vermilion"
ROWS = [{"number": n, COLUMN: f"{CANARY} {n}"} for n in range(24)]
SCORE = (
    "score", "--source", "tickets", "--id", "number", "--prompt", PROMPT, "--max-tokens", "3", "--json",
    "--set", "score.slice_rows=6",
)  # fmt: skip


@dataclass(frozen=True)
class Told:
    """What a command said."""

    exit_status: int
    stdout: str
    stderr: str

    @property
    def last(self) -> Any:
        assert self.exit_status == 0, self.stderr
        return json.loads(self.stdout.rstrip("\n").split("\n")[-1])


def tessera(*arguments: str, home: Home, **env: str) -> Told:
    done = subprocess.run(
        [str(TESSERA), *arguments], env={**os.environ, "TESSERA_HOME": str(home.root), **env},
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=280,
    )  # fmt: skip
    return Told(done.returncode, done.stdout, done.stderr)


def scorings(home: Home) -> list[tuple[str, int, int, int]]:
    """The history of scoring: status, answered, found before, still to go."""
    rows = tessera("history", "--json", home=home).last
    records = [(row["status"], json.loads(row["record"])) for row in rows if row["stage"] == "score"]
    return [(outcome, record["answered"], record["found"], record["remaining"]) for outcome, record in records]


def contents(home: Home) -> dict[str, tuple[int, int]]:
    """Every file of the home, with its size and the time of its last change."""
    files = [path for path in home.root.rglob("*") if path.is_file()]
    return {home.relative(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A home with a registered model, and a table to ask it about."""
    home = Home(tmp_path_factory.mktemp("score") / "home")
    done = tessera("run", "--json", *(part for one in LINE for part in ("--set", one)), home=home)
    assert done.last["version"] == 1
    write_deltalake(home.tables / "tickets", pa.Table.from_pylist(ROWS))
    return home


@pytest.fixture(scope="module")
def killed(line: Home) -> Told:
    """A scoring that dies by SIGKILL after its first commit."""
    return tessera(*SCORE, home=line, TESSERA_FAIL="score.after_slice:kill:1")


@pytest.fixture(scope="module")
def tripwire(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JAVA_HOME that leaves a mark beside its folders when it is used."""
    home = tmp_path_factory.mktemp("jdk")
    java = home / "bin" / "java"
    java.parent.mkdir()
    java.write_text(f"#!/bin/sh\ntouch {home / 'started'}\nexit 1\n", encoding="utf-8")
    java.chmod(0o755)
    return home


def java_of(tripwire: Path) -> dict[str, str]:
    return {"JAVA_HOME": str(tripwire), "PATH": f"{tripwire / 'bin'}:{os.environ['PATH']}"}


@pytest.mark.spark
@pytest.mark.distributed
def test_a_dry_run_needs_no_files_of_the_model_and_writes_nothing(line: Home, tripwire: Path) -> None:
    aside = line.mlflow_artifacts.rename(line.root / "aside")
    before = contents(line)
    plan = tessera(*SCORE, "--dry-run", home=line, **java_of(tripwire)).last
    after = contents(line)
    aside.rename(line.mlflow_artifacts)

    assert plan["plan"] == {"score": "run"}
    assert (plan["config"]["score"]["prompt"], plan["config"]["score"]["id"]) == (PROMPT, ["number"])
    assert after == before
    assert not (tripwire / "started").exists()


@pytest.mark.spark
@pytest.mark.distributed
def test_a_killed_scoring_leaves_whole_slices_and_no_false_row_in_the_history(line: Home, killed: Told) -> None:
    found = answers_of(line)

    assert killed.exit_status == -9, killed.stderr
    assert 0 < len(found) < len(ROWS)
    assert scorings(line) == []
    assert tessera("status", "--json", home=line).last["failures"] == []


@pytest.mark.spark
@pytest.mark.distributed
def test_run_again_each_row_is_answered_exactly_once_and_then_found(line: Home, killed: Told, tripwire: Path) -> None:
    have = len(answers_of(line))
    again = tessera(*SCORE, home=line)
    third = tessera(*SCORE, home=line, **java_of(tripwire))
    rest = len(ROWS) - have

    asked = Counter(hashlib.sha256(PROMPT.format(**row).encode()).hexdigest() for row in ROWS)
    assert Counter(row["prompt_sha256"] for row in answers_of(line)) == asked
    assert len({row["doc_id"] for row in answers_of(line)}) == len(ROWS)
    assert {(row["model"], row["model_version"]) for row in answers_of(line)} == {("tessera-docs", 1)}
    assert (again.last["found"], again.last["answered"], again.last["reused"]) == (have, rest, False)
    assert (third.last["table"], third.last["reused"]) == (again.last["table"], True)
    assert not (tripwire / "started").exists(), "what is recorded needs no JVM"
    assert scorings(line) == [("done", rest, have, 0), ("reused", rest, have, 0)]
    assert tessera("status", "--json", home=line).last["failures"] == []
    assert sorted(path.name for path in line.spill.glob("spark-score-*/slice=*")) != [], "of the killed one, for gc"
    tessera("gc", "--delete", "--older-than", "0", home=line)
    assert list(line.spill.glob("spark-score-*")) == []
    assert all(CANARY not in said for told in (killed, again, third) for said in (told.stdout, told.stderr))


def answers_of(home: Home) -> list[dict[str, Any]]:
    return tables.read(home.answers).to_pylist()


@pytest.mark.spark
@pytest.mark.distributed
def test_explore_prints_where_its_page_is(line: Home) -> None:
    told = tessera("explore", home=line)

    assert told.exit_status == 0, told.stderr
    page = Path(told.stdout.splitlines()[0])
    assert page.is_relative_to(line.root)
    assert page.read_text(encoding="utf-8").lstrip().lower().startswith("<!doctype html")


def scored(version: int, *, remaining: int) -> ScoreRecord:
    return ScoreRecord(
        fingerprint="s", created=f"2026-01-0{version + 1}", model="m", version=1, weights_sha256="w", prompt="{x}",
        request="r", rows=8, skipped={}, found=0, answered=8 - remaining, remaining=remaining,
        table=TableVersion(name="answers", path="tables/answers", version=version),
    )  # fmt: skip


def test_a_slice_of_a_failed_or_running_scoring_is_no_result(home: Home) -> None:
    """The ledger says that it failed, and repairing adds nothing to that; only a run's lost end is added."""
    results, told = Results(home), []
    settings = Settings.model_validate({"prepare": {"sources": [{"table": "tickets"}]}})

    def commit(record: ScoreRecord) -> None:
        publication = publish.begin(home.answers, name="answers")
        publish.commit(publication, answers.SCHEMA.empty_table(), record=record, stats_columns="at", mode="append")

    commit(scored(0, remaining=4))
    results.ledger.append(Record(stage="score", fingerprint="s", error="a worker failed"), status="failed")
    results.repair(told.append)

    assert [row["status"] for row in results.ledger.rows()] == ["failed"]
    (failure,) = status.examine(home, settings=settings, results=results).failures
    assert failure.said == "a worker failed"
    commit(scored(1, remaining=0))
    results.repair(told.append)
    results.repair(told.append)
    assert [row["status"] for row in results.ledger.rows()] == ["failed", "done"]
    assert told == ["ledger: the row of a published score was missing and is added"]
    assert DeltaTable(home.answers).version() == 1
