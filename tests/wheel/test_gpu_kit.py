"""The GPU kit, made from a small set, unpacked and run on the CPU where there is only what a rank needs."""

import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from tests.train.conftest import set_home  # noqa: F401 - a fixture
from tests.train.test_bare_worker import FIVE
from tests.wheel import bare

from tessera.shard.run_manifest import read_run_manifest

pytestmark = pytest.mark.distributed

MAKER = Path(__file__).parents[2] / "benchmarks" / "gpu"
FAST = "fp32,bf16,ranks,throughput"


@pytest.fixture(scope="module")
def archive(set_home, tmp_path_factory) -> Path:  # noqa: F811
    sys.path.insert(0, str(MAKER))
    try:
        import kit
    finally:
        sys.path.remove(str(MAKER))
    out = tmp_path_factory.mktemp("kit") / "gpu-kit.tar.gz"
    table = read_run_manifest(set_home.root / "shards.arrow")
    kit.pack(set_home, manifest=table, tokenizer="tokenizers/small", out=out)
    return out


@pytest.fixture(scope="module")
def unpacked(archive, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    return folder / "gpu-kit"


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    return bare.make_environment(tmp_path_factory.mktemp("gpu") / "venv", holding=bare.closure(FIVE))


def check(python: Path, kit: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return bare.run(python, "check.py", "--device", "cpu", *arguments, cwd=kit)


def summary(done: "subprocess.CompletedProcess[str]") -> dict:
    assert done.stdout, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_kit_is_small_and_of_nobody_s_machine(archive, unpacked):
    with tarfile.open(archive) as file:
        members = file.getmembers()

    assert archive.stat().st_size < 60 * 2**20
    assert {(member.uid, member.uname) for member in members} == {(0, "")}
    assert not [member.name for member in members if "__pycache__" in member.name or member.name.startswith("/")]
    assert {path.name for path in unpacked.iterdir()} == {
        "check.py", "throughput.py", "expected.json", "tessera", "home"
    }  # fmt: skip


def test_its_checks_pass_where_there_is_nothing_else(python, unpacked):
    done = check(python, unpacked, "--only", FAST)
    found = summary(done)

    assert (done.returncode, found["ok"]) == (0, True), found
    losses = found["checks"]["fp32"]["loss"]
    assert losses == sorted(losses, reverse=True)
    assert found["checks"]["bf16"]["loss"] != losses
    assert found["checks"]["ranks"]["ranks"] == 2
    result = found["checks"]["throughput"]["results"][0]
    assert result["tokens_per_second"] > 0
    assert result["parameters"] == 139_712
    # 6 x (139,712 - 512 x 64 looked up - 448 gains) + 12 x 2 layers x 64 x 64 tokens
    assert result["tflops"] == pytest.approx(result["tokens_per_second"] * 737_280 / 1e12, rel=1e-3)


@pytest.mark.parametrize(
    ("step", "key", "factor"), [(1, "loss", 1.0001), (1, "gradient_norm", 0.999), (3, "loss", 1.01)]
)
def test_a_wrong_number_fails_the_check(python, unpacked, tmp_path, step, key, factor):
    other = tmp_path / "kit"
    shutil.copytree(unpacked, other)
    expected = json.loads((other / "expected.json").read_text())
    expected["lines"][step][key] *= factor
    (other / "expected.json").write_text(json.dumps(expected))
    done = check(python, other, "--only", "fp32")

    assert done.returncode == 1
    assert "relative differences" in summary(done)["checks"]["fp32"]["error"]


@pytest.mark.slow
def test_killed_and_gone_on_with_it_is_the_same_bit_by_bit(python, unpacked):
    found = summary(check(python, unpacked, "--only", "collective,resume"))

    assert found["ok"], found
    assert len(found["checks"]["resume"]["weights_sha256"]) == 64


@pytest.mark.slow
@pytest.mark.spark
def test_the_real_kit_comes_from_the_line(tmp_path):
    out = tmp_path / "gpu-kit.tar.gz"
    subprocess.run([sys.executable, str(MAKER / "kit.py"), "--out", str(out)], check=True, timeout=280)

    assert 2**20 < out.stat().st_size < 60 * 2**20
