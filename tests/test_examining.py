"""Any model on any file, by the command: scores, two models side by side, and what is said when something is wrong."""

import json
from pathlib import Path

import pytest
from tests.evaluate.subjects import make_subject
from typer.testing import CliRunner

from tessera.cli import app
from tessera.model import build

ROWS = [{"query": f"the cat {i}", "choices": ["sat on the mat", "went", f"made {i}"], "gold": i % 3} for i in range(24)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two folders with the same tokenizer."""
    found = {}
    for name, seed in (("one", 3), ("two", 4)):
        folder = found[name] = tmp_path_factory.mktemp(name)
        build.export(make_subject(folder, seed=seed).model, folder=folder)
    return found


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TESSERA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "80")
    (tmp_path / "cats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path / "cats.jsonl"


def run(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return done.exit_code, done.output


def test_a_folder_is_asked_a_file_and_the_second_time_looked_up(models, task: Path) -> None:
    status, said = run("evaluate", "--model", models["one"], "--task", task, "--json")
    assert status == 0, said
    told = json.loads(said.splitlines()[-1])

    score = told["scores"]["cats"]
    assert (score["n"], score["metric"], score["chance"]) == (24, "acc", pytest.approx(1 / 3))
    assert set(told["metrics"]["cats"]) == {"acc", "acc_norm", "acc_bytes", "acc_tokens"}
    assert score["low"] <= score["value"] <= score["high"]
    (models["one"] / "model.safetensors").rename(models["one"] / "away")
    try:
        status, said = run("evaluate", "--model", models["one"], "--task", task)
        assert status == 2
        assert "no folder with model.safetensors" in " ".join(said.split())
    finally:
        (models["one"] / "away").rename(models["one"] / "model.safetensors")
    status, said = run("evaluate", "--model", models["one"], "--task", task)
    assert status == 0
    assert f"{score['value']:.3f}" in said
    assert max(map(len, said.splitlines())) <= 80


def test_two_models_are_compared_on_the_same_items(models, task: Path) -> None:
    status, said = run("compare", models["one"], models["two"], "--task", task, "--json")
    assert status == 0, said
    told = json.loads(said.splitlines()[-1])

    (row,) = told["tasks"]
    assert (row["task"], row["n"], row["verdict"]) == ("cats", 24, "no difference shown")
    assert row["difference"] == pytest.approx(row["a"] - row["b"])
    page = Path(told["page"]).read_text()
    assert "the cat" not in page
    _, said = run("compare", models["one"], models["one"], "--task", task)
    assert "better on 0" in " ".join(said.split())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["evaluate", "--task", "x.jsonl"], "--task asks for --model"),
        (["evaluate", "--model", "nothing", "--task", "x.jsonl"], "nothing is no registered model"),
        (["evaluate", "--model", "models:/nobody/1", "--task", "x.jsonl"], "there is no registered model nobody"),
        (["promote", "models:/nobody/1"], "there is no registered model nobody"),
        (["compare", "a", "b"], "a is no registered model"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(task: Path, arguments, said: str) -> None:
    status, output = run(*arguments)
    assert (status, said in " ".join(output.split())) == (2, True), output


def test_an_empty_leaderboard_and_the_canaries(task: Path) -> None:
    status, said = run("leaderboard", "--json")
    assert (status, json.loads(said.splitlines()[-1])["versions"]) == (0, [])
    status, said = run("canaries")
    assert status == 0
    assert "tables/canaries@0" in said
