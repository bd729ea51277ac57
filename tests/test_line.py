"""The whole line as a user runs it: one command on a private table, again without work, and with no network at all."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from tessera import pandas as frames
from tessera import tables
from tessera.home import Home
from tessera.prepare import sample
from tessera.prepare.settings import SampleSettings
from tessera.train import seen

pytestmark = [pytest.mark.spark, pytest.mark.distributed]

TESSERA = Path(sys.executable).with_name("tessera")
CANARY = "zq-canary-{:04d}-vermilion-ocelot"
SMALL = (
    "shard.seq_len=64", "shard.tokenizer.vocab_size=512", "shard.tokenizer.sample_bytes=200000",
    "train.steps=12", "train.batch_size=8", "train.heldout.sequences=8",
    "train.model={layers: 2, width: 32, heads: 2, kv_heads: 2, ffn_width: 64}",
    "evaluate.gate={max_bits_per_byte: 9.0, beat: []}", "serve.model_name=private", "serve.max_tokens=8",
)  # fmt: skip

RAISE_LOOPBACK = """
import fcntl, os, socket, struct, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    fcntl.ioctl(s, 0x8914, struct.pack("16sh14x", b"lo", 0x49))  # SIOCSIFFLAGS: IFF_UP | IFF_LOOPBACK | IFF_RUNNING
os.execv(sys.argv[1], sys.argv[1:])
"""


@dataclass(frozen=True)
class Run:
    """One call of `tessera run --json` and what it left."""

    record: dict[str, Any]
    stdout: str
    stderr: str
    home: Home


def private_table(path: Path) -> int:
    """Hundreds of documents, some of 100 kB, each with a canary of its own; returns how many."""
    packages = sample.installed(SampleSettings(packages=("click",)))
    texts = [str(row["text"]) for row in sample.read_docstrings(packages)]
    rows = [
        {"number": i, "body": f"{text}\n{CANARY.format(i)}", "team": "a" if i % 3 else "b"}
        for i, text in enumerate([*texts, *[" ".join(texts)[:100_000] for _ in range(3)]])
    ]
    write_deltalake(path, pa.Table.from_pylist(rows), configuration={"delta.dataSkippingNumIndexedCols": "1"})
    return len(rows)


def tessera(
    *arguments: str, home: Home, prefix: tuple[str, ...] = (), env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*prefix, str(TESSERA), *arguments],
        env={**os.environ, "TESSERA_HOME": str(home.root), **(env or {})},
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=280,
    )  # fmt: skip


def settings(*assignments: str) -> list[str]:
    return [part for assignment in assignments for part in ("--set", assignment)]


def run_line(*assignments: str, home: Home, prefix: tuple[str, ...] = (), env: dict[str, str] | None = None) -> Run:
    done = tessera("run", "--json", *settings(*SMALL, *assignments), home=home, prefix=prefix, env=env)
    assert done.returncode == 0, done.stderr
    return Run(record=json.loads(done.stdout.splitlines()[-1]), stdout=done.stdout, stderr=done.stderr, home=home)


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, list[str], int]:
    folder = tmp_path_factory.mktemp("private")
    rows = private_table(folder / "memos")
    source = f"prepare.sources=[{{path: {folder / 'memos'}, id: number, text: body}}]"
    assignments = [source, "spark.partitions=3"]
    return run_line(*assignments, home=Home(folder / "home")), assignments, rows


def test_one_command_takes_a_table_to_an_answering_registered_model(private: tuple[Run, list[str], int]) -> None:
    run, _, rows = private
    record = run.record

    assert record["stage"] == "run"
    assert [stage["stage"] for stage in record["stages"]] == ["prepare", "shard", "train", "evaluate", "serve"]
    assert record["reused"] is False
    assert record["rows"] == rows == record["documents"] + sum(record["dropped"].values())
    assert record["steps"] == 12
    assert 0 < record["bits_per_byte"] < record["bits_per_byte_before"]
    assert set(record["baselines"]) == {"gzip", "unigram", "bigram", "trigram"}
    assert (record["model"], record["version"]) == ("private", 1)
    assert (run.home.resolve(record["checkpoint"]) / "model.safetensors").is_file()
    assert len(record["weights_sha256"]) == 64
    assert DeltaTable(run.home.documents).version() == 0
    rows_seen = {row["stage"]: row["status"] for row in tables.Ledger(run.home.ledger).rows()}
    assert rows_seen == dict.fromkeys(("prepare", "shard", "train", "evaluate", "serve"), "done")


def test_again_everything_is_found_and_no_jvm_starts(private: tuple[Run, list[str], int], tmp_path: Path) -> None:
    run, assignments, _ = private
    marker, java = tmp_path / "java-was-started", tmp_path / "jdk" / "bin" / "java"
    java.parent.mkdir(parents=True)
    java.write_text(f"#!/bin/sh\ntouch {marker}\nexit 1\n", encoding="utf-8")
    java.chmod(0o755)
    env = {"JAVA_HOME": str(java.parents[1]), "PATH": f"{java.parent}:{os.environ['PATH']}"}

    again = run_line(*assignments, "spark.partitions=5", home=run.home, env=env)

    assert not marker.exists()
    assert all(stage["reused"] for stage in again.record["stages"])
    for key in ("weights_sha256", "version", "bits_per_byte", "checkpoint", "tokens"):
        assert again.record[key] == run.record[key]


def test_no_private_text_in_any_log_record_or_in_mlflow(private: tuple[Run, list[str], int]) -> None:
    run, _, rows = private
    probe = CANARY.format(7).encode()
    needles = [CANARY.format(i)[:14].encode() for i in range(rows)]
    private_places = {"documents", "spark"}

    assert run.stdout.count("\n") == 1
    for needle in needles:
        assert needle not in run.stderr.encode()
    looked = 0
    for file in run.home.root.rglob("*"):
        inside = file.relative_to(run.home.root).parts
        if not file.is_file() or (inside[0] == "tables" and inside[1] in private_places and file.suffix == ".parquet"):
            continue
        content = file.read_bytes()
        looked += 1
        assert not any(needle in content for needle in needles), file
    assert looked > 40
    assert any(
        probe in row["text"].encode() for row in tables.read(run.home.documents, columns=["text"]).to_pylist()
    ), "the probe is not in the documents, so this test proves nothing"


def test_history_and_plan_speak_of_what_was_done(private: tuple[Run, list[str], int]) -> None:
    run, assignments, _ = private

    history = tessera("history", "--json", home=run.home)
    plan = tessera("run", "--dry-run", "--json", *settings(*SMALL, *assignments), home=run.home)
    changed = tessera("run", "--dry-run", "--json", *settings(*SMALL, *assignments, "train.seed=5"), home=run.home)

    stages = [row["stage"] for row in json.loads(history.stdout)]
    assert stages[:5] == ["prepare", "shard", "train", "evaluate", "serve"]
    assert set(json.loads(plan.stdout)["plan"].values()) == {"reuse"}
    assert json.loads(changed.stdout)["plan"] == {
        "prepare": "reuse", "shard": "reuse", "train": "run", "evaluate": "run", "serve": "run",
    }  # fmt: skip


def test_lineage_says_which_model_was_trained_on_a_row(private: tuple[Run, list[str], int]) -> None:
    run, assignments, rows = private
    given = settings(*SMALL, *assignments)
    documents = tables.read(run.home.documents).to_pylist()
    heldout = next(row["doc_id"] for row in documents if row["split"] == "heldout")
    noted = {row["doc_id"]: row for row in tables.read(seen.path(run.home)).to_pylist()}
    ids = {hashlib.sha256(f'memos\n{{"number":{number}}}'.encode()).hexdigest(): number for number in range(rows)}
    doc_id, number = next((doc_id, ids[doc_id]) for doc_id in noted)

    done = tessera("lineage", "--json", "--source", "memos", "--row", str(number), *given, home=run.home)
    never = tessera("lineage", "--doc-id", heldout, *given, home=run.home, env={"COLUMNS": "60"})
    wrong = tessera("lineage", "--row", str(number), *given, home=run.home)

    (told,) = json.loads(done.stdout.splitlines()[-1])["trained_on"]
    expected = {name: noted[doc_id][name] for name in ("doc_id", "run", "run_id", "shard_set", "times", "first_step")}
    assert told == {**expected, "models": ["models:/private/1"]}
    assert noted.keys() <= {row["doc_id"] for row in documents if row["split"] == "train"}
    assert never.stdout == "no run was trained on this row\n"
    assert (wrong.returncode, len(wrong.stderr.splitlines())) == (2, 1), wrong.stderr
    assert "--source" in wrong.stderr


def test_a_finished_run_is_gone_on_with_by_its_name(private: tuple[Run, list[str], int]) -> None:
    run, assignments, _ = private
    home = Home(run.home.root.with_name("further"))
    shutil.copytree(run.home.root, home.root)
    (first,) = [one.name for one in home.runs.iterdir()]
    steps = json.loads((home.runs / first / "record.json").read_text())["steps"]
    given = settings(*SMALL, *assignments)

    refused = tessera("train", "--resume", first, *given, home=home)
    done = tessera(
        "train", "--json", "--resume", first, *given, "--set", f"train.steps={steps + 3}", "--set",
        "train.methods.wsd.strength=0", home=home,
    )  # fmt: skip

    assert refused.returncode == 2
    assert f"has done {steps}, which count; set train.steps above {steps}" in refused.stderr
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout.splitlines()[-1])
    assert record["steps"] == steps + 3
    lines = [json.loads(line) for line in (home.resolve(record["run"]) / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(steps, steps + 4))
    noted = tables.read(seen.path(home)).to_pylist()
    times = {
        name: sum(row["times"] for row in noted if row["run"] == name) for name in (first, Path(record["run"]).name)
    }
    assert times[Path(record["run"]).name] > times[first], "what the first run saw, and more"


def test_status_says_current_and_gc_takes_nothing_that_is_needed(private: tuple[Run, list[str], int]) -> None:
    run, assignments, _ = private
    found = json.loads(tessera("status", "--json", *settings(*SMALL, *assignments), home=run.home).stdout)
    shown = tessera("status", *settings(*SMALL, *assignments), home=run.home, env={"COLUMNS": "80"})
    collected = tessera("gc", "--delete", "--older-than", "0", home=run.home)
    again = run_line(*assignments, home=run.home)

    assert {stage["stage"]: stage["stale"] for stage in found["stages"]} == dict.fromkeys(
        ("prepare", "shard", "train", "evaluate", "serve"), ""
    )
    assert (found["runs"], found["failures"]) == ([], [])
    assert shown.stdout.count("current") == 5
    assert max(map(len, shown.stdout.splitlines())) <= 80
    assert collected.returncode == 0, collected.stderr
    assert all(stage["reused"] for stage in again.record["stages"])


def test_frames_hold_what_the_tables_hold(private: tuple[Run, list[str], int]) -> None:
    run, _, rows = private
    documents = frames.documents(run.home)
    texts = dict(zip(documents.doc_id, documents.text, strict=True))
    samples = frames.samples(run.home, name="docs", count=50)
    lineage = frames.lineage(run.home, model="private")

    assert len(documents) == rows == len(set(documents.doc_id))
    assert list(frames.documents(run.home, columns=["doc_id"], limit=3).doc_id) == sorted(texts)[:3]
    assert samples.groupby(["file", "sample"]).tokens.sum().eq(64).all()
    assert all(any(text in whole for whole in texts.values()) for text in samples.query("not padding").text)
    (trained,) = frames.runs(run.home).itertuples()
    assert (trained.steps, trained.run_id) == (12, run.record["run_id"])
    assert list(frames.metrics(run.home, run=trained.run).loss.dropna().index) == list(range(1, 13))
    assert list(frames.evaluations(run.home).bits_per_byte) == [run.record["bits_per_byte"]]
    assert lineage.set_index("what").loc["source", ["name", "version"]].tolist() == ["memos", 0]
    assert lineage.set_index("what").loc["model", "identity"] == run.record["weights_sha256"]


def test_a_new_version_of_the_table_goes_down_the_line(private: tuple[Run, list[str], int], tmp_path: Path) -> None:
    run, assignments, rows = private
    copy = Home(tmp_path / "home")
    shutil.copytree(run.home.root, copy.root)
    table = Path(assignments[0].split("path: ")[1].split(",")[0])
    more = pa.Table.from_pylist(
        [{"number": 10_000 + i, "body": f"{'new words ' * 9}{i}", "team": "c"} for i in range(9)]
    )
    write_deltalake(table, more, mode="append")

    status = json.loads(tessera("status", "--json", *settings(*SMALL, *assignments), home=copy).stdout)
    done = tessera("shard", "--json", *settings(*SMALL, *assignments), home=copy)
    stale = json.loads(done.stdout.splitlines()[-1])
    tessera("prepare", *settings(*SMALL, *assignments), home=copy)
    done = tessera("shard", "--json", *settings(*SMALL, *assignments), home=copy)
    fresh = json.loads(done.stdout.splitlines()[-1])

    assert [stage["stale"] for stage in status["stages"]] == [
        "memos is at version 1, 0 was read", "prepare is stale", "shard is stale", "train is stale", "evaluate is stale"
    ]  # fmt: skip
    assert stale["reused"], "a home that was copied is as good as the one it was copied from"
    assert fresh["splits"]["train"]["documents"] + fresh["splits"]["heldout"]["documents"] == (
        stale["splits"]["train"]["documents"] + stale["splits"]["heldout"]["documents"] + 9
    )
    assert rows == tables.open_table(table, version=0).to_pyarrow_table().num_rows


def test_the_line_needs_no_network(tmp_path: Path) -> None:
    """The sample data's line in a network namespace that has a loopback device and nothing else."""
    prefix = ("unshare", "--net", "--map-root-user")
    if not shutil.which("unshare") or subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine does not permit network namespaces (unshare --net)")
    isolated = (*prefix, sys.executable, "-c", RAISE_LOOPBACK)

    run = run_line("sample.packages=[click, rich, typer, pluggy]", home=Home(tmp_path / "home"), prefix=isolated)

    assert run.record["stages"][0]["stage"] == "sample"
    assert run.record["version"] == 1
