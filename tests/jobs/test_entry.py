"""How a scheduler starts a job: as a file, inside a running interpreter, or by an entry point without arguments."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tessera import jobs

SCRIPTS = sorted((Path(__file__).parents[2] / "jobs").glob("*.py"))
COMMANDS = {"line": "run"}
IN_IPYTHON = """
import sys
from IPython.core.interactiveshell import InteractiveShell
script, *sys.argv = sys.argv[1:]
found = InteractiveShell().run_cell(open(script).read())
print("ERROR" if found.error_before_exec or found.error_in_exec else "SUCCESS")
"""


def test_there_is_a_script_for_every_room_and_the_line():
    assert [script.stem for script in SCRIPTS] == [
        "evaluate", "explore", "line", "prepare", "sample", "score", "serve", "shard", "train",
    ]  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_runs_its_room_and_returns_without_an_exit(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])

    runpy.run_path(str(script), run_name="__main__")

    assert f"Usage: tessera {COMMANDS.get(script.stem, script.stem)} " in capsys.readouterr().out


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_does_nothing_when_it_is_imported(script, capsys):
    runpy.run_path(str(script), run_name="not_main")

    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_an_entry_point_reads_its_arguments_from_the_process(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tessera", "--no-such-option"])

    with pytest.raises(SystemExit) as caught:
        getattr(jobs, script.stem)()

    assert caught.value.code == 2
    assert "--no-such-option" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [["--target=local", "--set=sample.packages=[click]"], ["--target", "local", "--set", "sample.packages=[click]"]],
    ids=["named", "positional"],
)
def test_parameters_come_named_or_as_a_list(arguments, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("TESSERA_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sys, "argv", ["tessera", *arguments, "--dry-run"])

    assert jobs.sample() is None

    assert yaml.safe_load(capsys.readouterr().out)["sample"] == {"packages": ["click"]}


@pytest.mark.parametrize(("target", "status"), [("local", 0), ("nowhere", 2)])
def test_a_script_ends_with_the_status_of_its_room(target, status, tmp_path):
    done = subprocess.run(
        [sys.executable, SCRIPTS[0].with_name("sample.py"), f"--target={target}", "--dry-run"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip

    assert done.returncode == status
    assert ("tessera: --target nowhere" in done.stderr) == bool(status)


@pytest.mark.parametrize(("target", "expected"), [("local", "SUCCESS"), ("nowhere", "ERROR")])
def test_inside_an_interpreter_success_is_no_exception_and_failure_is_one(target, expected, tmp_path):
    """IPython, as a platform runs a job's file: any SystemExit would count as a failed run."""
    done = subprocess.run(
        [sys.executable, "-c", IN_IPYTHON, SCRIPTS[0].with_name("sample.py"), "job", f"--target={target}", "--dry-run"],
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "IPYTHONDIR": str(tmp_path)},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip

    assert done.stdout.splitlines()[-1] == expected, done.stderr
