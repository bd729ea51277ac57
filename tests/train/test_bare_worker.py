"""A rank where there is torch, transformers, numpy, safetensors and pydantic, and nothing else: the same weights."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.train.conftest import metric_lines, run_ranks
from tests.wheel import bare

import tessera
from tessera.shard.read.manifest import index_path
from tessera.train.run import RunFolder, launcher_lock

pytestmark = pytest.mark.distributed

FIVE = ("torch", "transformers", "numpy", "safetensors", "pydantic")
ABSENT = [
    "pyarrow",
    "pyspark",
    "delta",
    "deltalake",
    "mlflow",
    "pandas",
    "psutil",
    "fastapi",
    "sklearn",
    "pytest",
    "pip",
]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone")


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """An environment of the five and what they declare, with our package beside it as a plain folder."""
    folder = tmp_path_factory.mktemp("bare")
    python = bare.make_environment(folder / "venv", holding=bare.closure(FIVE))
    shutil.copytree(Path(tessera.__file__).parent, folder / "venv" / bare.LIBRARIES / "tessera")
    return python


@pytest.fixture
def make_bare_run(make_run, set_home):
    """A run folder with all that a launcher leaves in it, the index for readers without Arrow too."""

    def make(name: str, **changed) -> RunFolder:
        folder = make_run(name, **changed)
        shutil.copyfile(index_path(set_home.root / "shards.arrow"), index_path(folder.manifest))
        return folder

    return make


def run_bare(python: Path, folder: RunFolder, *, ranks: int, fail: str = "") -> "subprocess.CompletedProcess[str]":
    """Runs ranks there to their end, this process being their launcher; one rank runs without torchrun."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    environment = {**kept, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "TESSERA_FAIL": fail}
    start = (*TORCHRUN, f"--nproc_per_node={ranks}") if ranks > 1 else ()
    with launcher_lock(folder):
        return bare.run(python, *start, "-m", "tessera.train.worker", str(folder.root), env=environment)


def test_nothing_else_is_there(python):
    assert bare.cannot_import(python, [*ABSENT, *FIVE]) == ABSENT


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_bare_rank_ends_with_the_same_weights(python, make_bare_run, ranks):
    full, lean = make_bare_run("full", ranks=ranks), make_bare_run("bare", ranks=ranks)
    run_ranks(full, ranks=ranks)
    done = run_bare(python, lean, ranks=ranks)

    assert done.returncode == 0, (done.stderr[-2000:], [file.read_text() for file in lean.errors.glob("*")])
    assert lean.read_result().weights_sha256 == full.read_result().weights_sha256
    assert lean.read_result().ranks == ranks
    assert metric_lines(lean) == metric_lines(full)


def test_a_bare_rank_that_was_killed_goes_on(python, make_bare_run):
    whole, killed = make_bare_run("whole", ranks=1), make_bare_run("killed", ranks=1)
    run_bare(python, whole, ranks=1)
    run_bare(python, killed, ranks=1, fail="checkpoint.before_record:kill:2")
    assert killed.read_result() is None
    run_bare(python, make_bare_run("killed", ranks=1), ranks=1)

    assert killed.read_result().weights_sha256 == whole.read_result().weights_sha256
    assert "resumed after step 2" in killed.notices.read_text()


IMPORTED = """
import sys
from tessera.train import job, loop, worker
from tessera.model.lean import model_code
model_code("qwen3")
print(*sorted({name.split(".")[0] for name in sys.modules} & set(sys.argv[1:])))
"""


def test_a_rank_does_not_use_the_command_line_s_library(python):
    """transformers declares typer for a command of its own, and so brings it; no rank of ours may need it."""
    done = bare.run(python, "-c", IMPORTED, "typer", "torch")

    assert done.stdout.split() == ["torch"], done.stderr


def test_a_run_folder_without_its_index_says_so(python, make_run):
    folder = make_run("old", ranks=1)
    index_path(folder.manifest).unlink(missing_ok=True)
    assert run_bare(python, folder, ranks=1).returncode == 1

    assert "shards.json cannot be read" in (folder.errors / "rank-0.json").read_text()
