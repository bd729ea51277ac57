"""What a user gets for a wrong input: one line that says what, where and what next; exit status 2; no stack trace."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import write_deltalake

TESSERA = Path(sys.executable).with_name("tessera")
SECRET = "row-text-that-no-error-may-repeat"


def tessera(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(TESSERA), *arguments],
        env={**os.environ, "TESSERA_HOME": str(home)},
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=120,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    data = pa.table({"id": ["a", "b"], "text": [SECRET, SECRET + "!"], "n": [1, 2]})
    for _ in range(2):
        write_deltalake(folder / "good", data, mode="overwrite")
    write_deltalake(folder / "gap", data)
    for _ in range(2):
        write_deltalake(folder / "gap", data, mode="overwrite")
    (folder / "gap" / "_delta_log" / f"{1:020}.json").unlink()
    write_deltalake(folder / "torn", data)
    (folder / "torn" / "_delta_log" / f"{0:020}.json").write_text('{"commitInfo":{"times', encoding="utf-8")
    (folder / "plain").mkdir()
    (folder / "tokenizer").mkdir()
    return folder


BAD = {
    "unknown key": (("train.stepz=3",), "--set: unknown key train.stepz; did you mean 'steps'?"),
    "unknown section": (("trian.steps=3",), "unknown key trian; did you mean 'train'?"),
    "wrong type": (("train.steps=many",), "train.steps: found 'many'"),
    "not YAML": (("prepare.sources=[{",), "--set prepare.sources"),
    "a key twice": (("prepare.sources=[{table: a, table: b}]",), "given twice"),
    "NaN rate": (("train.optimizer.matrix_lr=.nan",), "train.optimizer.matrix_lr"),
    "negative rate": (("train.optimizer.matrix_lr=-1",), "train.optimizer.matrix_lr: found -1"),
    "indivisible batch": (("train.batch_size=15",), "train.batch_size is 15, which train.ranks (2) does not divide"),
    "no such table": (("prepare.sources=[{table: nothing}]",), "there is no table nothing"),
    "not a Delta table": (("prepare.sources=[{path: FOLDER/plain}]",), "is not a Delta table"),
    "absent path": (("prepare.sources=[{path: FOLDER/nowhere}]",), "is not a Delta table"),
    "version too new": (("prepare.sources=[{path: FOLDER/good, version: 9}]",), "has versions 0 to 1, wanted 9"),
    "gap in the log": (("prepare.sources=[{path: FOLDER/gap, version: 0}]",), "FOLDER/gap"),
    "torn log": (("prepare.sources=[{path: FOLDER/torn}]",), "FOLDER/torn"),
    "missing column": (("prepare.sources=[{path: FOLDER/good, text: body}]",), "no column 'body'"),
    "text is no string": (("prepare.sources=[{path: FOLDER/good, text: n}]",), "is of type long, wanted string"),
    "model name": (("serve.model_name=a/b",), "serve.model_name"),
    "set name": (("shard.name=../x",), "shard.name"),
}


@pytest.mark.parametrize(("assignments", "expected"), BAD.values(), ids=BAD)
def test_a_bad_input_gives_one_clear_line_and_status_2(
    folder: Path, tmp_path: Path, assignments: tuple[str, ...], expected: str
) -> None:
    given = [part for value in assignments for part in ("--set", value.replace("FOLDER", str(folder)))]

    done = tessera("run", "--json", *given, home=tmp_path / "home")

    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("tessera: ")
    assert expected.replace("FOLDER", str(folder)) in done.stderr
    assert SECRET not in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "home").exists(), "nothing may be written for an input that is refused"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("run", "--target", "moon"), "--target moon: wanted one of local, dev, staging, prod"),
        (("run", "--set", "train.steps"), "wanted section.key=value"),
        (("shard",), "tessera prepare"),
        (("train",), "tessera shard"),
        (("evaluate",), "tessera train"),
        (("serve",), "tessera evaluate"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_a_command_out_of_place_says_what_comes_first(
    tmp_path: Path, arguments: tuple[str, ...], expected: str
) -> None:
    done = tessera(*arguments, home=tmp_path / "home")

    assert done.returncode == 2, done.stderr
    assert expected in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_traceback_shows_the_rest_and_the_line_stays_last(tmp_path: Path) -> None:
    done = tessera("train", "--traceback", home=tmp_path / "home")

    assert done.returncode == 2
    assert "Traceback (most recent call last)" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("tessera: ")
