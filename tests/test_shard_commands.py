"""`tessera shard` and its sub-commands, as a person types them: import, verify, inspect, export, and their errors."""

import json
from pathlib import Path

import pytest
from tests.shard.foreign_folders import text_folder
from typer.testing import CliRunner, Result

from tessera.cli import app


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TESSERA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "80")
    text_folder(tmp_path / "folder")
    return tmp_path


SMALL = [f"--set=shard.{one}" for one in ("seq_len=64", "shard_bytes=65536", "bucket_bytes=15000",
                                         "tokenizer.vocab_size=320")]  # fmt: skip


def tessera(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_import_verify_inspect_and_export(work: Path) -> None:
    done = tessera(
        "shard", "import", work / "folder", "--name", "mine", "--set", "prepare.holdout=0.2", "--json", *SMALL
    )
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout.splitlines()[-1])
    assert (record["name"], record["stage"], record["splits"]["train"]["documents"] > 200) == ("mine", "shard", True)
    assert "2 blank" in done.stderr
    again = tessera(
        "shard", "import", work / "folder", "--name", "mine", "--set", "prepare.holdout=0.2", "--json", *SMALL
    )
    assert json.loads(again.stdout.splitlines()[-1])["reused"]
    history = json.loads(tessera("history", "--json").stdout)
    assert [(row["stage"], row["status"]) for row in history] == [("shard", "done"), ("shard", "reused")]

    verified = tessera("shard", "verify", "mine")
    assert verified.exit_code == 0
    assert "all as the manifest says" in verified.stdout
    assert "GB/s" in verified.stdout
    found = json.loads(tessera("shard", "inspect", "mine", "--json").stdout)
    assert {split["split"] for split in found["splits"]} == {"train", "heldout"}
    shard = tessera("shard", "inspect", "mine", "--shard", "heldout/000000-0000")
    assert "documents in a sample" in shard.stdout
    text = tessera("shard", "inspect", "mine", "--shard", "heldout/000000-0000", "--sample", "0", "--text", "--json")
    assert json.loads(text.stdout)["text"]
    exported = tessera("shard", "export", "mine", "--to", work / "out", "--compression", "zstd")
    assert exported.exit_code == 0, exported.output
    assert (work / "out" / "train" / "shard.00000.mds.zstd").is_file()

    file = next((work / "home" / "shards" / "mine" / "train").glob("*.mds"))
    file.write_bytes(file.read_bytes()[:-1])
    damaged = tessera("shard", "verify", "mine")
    assert damaged.exit_code == 1
    assert file.name in damaged.stdout.replace("\n", "")
    assert "1 damaged" in damaged.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("verify", "nothing"), "shard set nothing is not published"),
        (("inspect", "--sample", "0"), "shard set docs is not published"),
        (("export", "nothing", "--to", "x"), "shard set nothing is not published"),
        (("import", "nowhere", "--name", "mine"), "has no index.json"),
        (("import", "nowhere", "--name", "../mine"), "shard.name"),
        (("--fresh", "verify", "mine"), "options go behind verify"),
        (("compact",), "has no result of prepare yet"),
    ],
)
def test_what_is_wrong_is_one_line_and_status_2(work: Path, arguments: tuple[str, ...], words: str) -> None:
    done = tessera("shard", *arguments)

    assert done.exit_code == 2
    assert words in " ".join(done.output.replace("│", " ").split())
    assert "Traceback" not in done.output


def test_shard_alone_is_the_stage_still(work: Path) -> None:
    done = tessera("shard", "--dry-run", "--json")

    assert done.exit_code in (0, 2)
    assert "No such command" not in done.output
    assert "prepare" in done.output
