"""What a machine with a GPU does with Tessera: `python check.py`, in the folder that gpu-kit.tar.gz unpacks to.

Needs Python 3.11 or 3.12, torch, transformers, numpy, safetensors and pydantic; takes about five minutes on one GPU. In
turn: the first steps of a real run in fp32 on the device, on the CPU and as the kit's maker computed them; the same in
bf16; all GPUs in one group, and as ranks of one run; a run that is killed and goes on, against one that was not; and
training throughput in bf16 (throughput.py). Says what it finds as it goes; the last line is everything, as JSON. Leaves
with 1 if a check fails. `--device cpu` does the same on the CPU, with a small model for the throughput.
"""

import argparse
import json
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tessera.model.cost import flops_per_token
from tessera.train import worker
from tessera.train.run import RunFolder, RunSpec, launcher_lock, to_json

HERE = Path(__file__).resolve().parent
KIT = HERE / "home"
RUN = "kit"
EXPECTED = HERE / "expected.json"
STEPS = 4
LOSS_TOLERANCE = 1e-5
"""Of step 1 in fp32, relative: nothing but the order of sums may differ, on any device. TF32 must be off, as it is."""
NORM_TOLERANCE = 1e-4
"""Of the gradient's norm of step 1, relative."""
LATER_TOLERANCE = 5e-3
"""Of the loss of steps 2 to 4: Muon turns small differences of small singular values into larger ones. Two ranks on a
CPU are off by 6e-8."""
BF16_TOLERANCE = 5e-3
"""Of the loss of steps 1 to 4 in bf16 against fp32: 8 bits of mantissa, averaged over thousands of tokens; a CPU is off
by 1e-4."""
LIMIT_SECONDS = 900

Line = dict[str, float]
Outcome = dict[str, Any]


class Failed(Exception):
    """A check found something else than it wants."""


def main() -> None:
    """Runs the checks that are asked for, or with --train or --collective is a process of one of them."""
    arguments = parse()
    if arguments.train:
        train_deterministic(Path(arguments.train))
        return
    if arguments.collective:
        collective(arguments.collective)
        return
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if arguments.record:
        with workplace() as home:
            EXPECTED.write_text(json.dumps({"torch": torch.__version__, "lines": first_steps(home, "cpu")}, indent=1))
        return
    checks: dict[str, Callable[[Path], Outcome]] = {
        "fp32": lambda home: check_fp32(home, device=device),
        "bf16": lambda home: check_bf16(home, device=device),
        "collective": lambda home: check_collective(device=device),
        "ranks": lambda home: check_ranks(home, device=device),
        "resume": lambda home: check_resume(home, device=device),
        "throughput": lambda home: check_throughput(device=device, compiled=arguments.compile),
    }
    chosen = arguments.only.split(",") if arguments.only else list(checks)
    with workplace() as home:
        found = {name: guarded(checks[name], home, name=name) for name in chosen}
    ok = all(outcome["ok"] for outcome in found.values())
    print(json.dumps({"ok": ok, "machine": machine(device), "checks": found}, sort_keys=True), flush=True)
    sys.exit(0 if ok else 1)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], help="what is checked; a GPU if there is one")
    parser.add_argument("--only", help="names of checks, with commas: fp32,bf16,collective,ranks,resume,throughput")
    parser.add_argument("--compile", action="store_true", help="torch.compile on the CPU too; on a GPU it always is")
    parser.add_argument("--record", action="store_true", help="write expected.json from this CPU and stop")
    parser.add_argument("--train", help=argparse.SUPPRESS)
    parser.add_argument("--collective", help=argparse.SUPPRESS)
    return parser.parse_args()


def guarded(check: Callable[[Path], Outcome], home: Path, *, name: str) -> Outcome:
    """The outcome of a check; an error is one too, and the others go on."""
    began = time.monotonic()
    try:
        outcome = {"ok": True, **check(home)}
    except Failed as error:
        outcome = {"ok": False, "error": str(error)}
    except Exception as error:
        outcome = {"ok": False, "error": f"{type(error).__name__}: {str(error)[:500]}"}
    outcome["seconds"] = round(time.monotonic() - began, 1)
    shown = {key: value for key, value in outcome.items() if key != "ok"}
    print(f"{'ok  ' if outcome['ok'] else 'FAIL'}  {name:<11} {json.dumps(shown)}", flush=True)
    return outcome


def check_fp32(home: Path, *, device: str) -> Outcome:
    """The first steps on the device, on this CPU and as recorded: loss and gradient norm."""
    recorded = json.loads(EXPECTED.read_text())
    here = first_steps(home, "cpu", name="fp32-cpu")
    found = {f"cpu against the kit's (torch {recorded['torch']})": compare(here, recorded["lines"])}
    if device != "cpu":
        there = first_steps(home, device, name="fp32-device")
        found[f"{device} against cpu"] = compare(there, here)
        here = there
    for pair, differences in found.items():
        limits = {"loss_step_1": LOSS_TOLERANCE, "gradient_norm_step_1": NORM_TOLERANCE, "loss": LATER_TOLERANCE}
        over = {key: value for key, value in differences.items() if not value <= limits[key]}
        if over:
            raise Failed(f"{pair}: relative differences {over}, wanted at most {limits}; {found}")
    return {"loss": [line["loss"] for line in here[1:]], "relative_differences": found}


def check_bf16(home: Path, *, device: str) -> Outcome:
    """The same steps in bf16 against fp32, both on the device."""
    exact = first_steps(home, device, name="bf16-exact")
    rough = first_steps(home, device, name="bf16-rough", precision="bf16")
    difference = compare(rough, exact)["loss"]
    if not difference <= BF16_TOLERANCE:
        raise Failed(f"the loss in bf16 is off by {difference:.2e}, wanted at most {BF16_TOLERANCE}")
    if [line["loss"] for line in rough] == [line["loss"] for line in exact]:
        raise Failed("bf16 gave the very losses of fp32: it was not used")
    return {"loss": [line["loss"] for line in rough[1:]], "relative_difference": difference}


def check_collective(*, device: str) -> Outcome:
    """A group of one, and of all GPUs (two processes on a CPU): sums and gathers have the right values."""
    everyone = 2 if device == "cpu" else torch.cuda.device_count()
    found = {}
    for ranks in sorted({1, everyone}):
        command = [*torchrun(ranks), str(Path(__file__).resolve()), "--collective", device]
        done = subprocess.run(command, env=lean_environment(), capture_output=True, text=True, timeout=LIMIT_SECONDS)
        if done.returncode:
            raise Failed(f"{ranks} ranks: status {done.returncode}: {done.stderr.strip()[-500:]}")
        found[f"{ranks} ranks"] = done.stdout.strip().splitlines()[-1]
    return found


def collective(device: str) -> None:
    """A process of `check_collective`."""
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    place = torch.device(device, int(os.environ["LOCAL_RANK"])) if device == "cuda" else torch.device("cpu")
    if device == "cuda":
        torch.cuda.set_device(place)
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend)
    value = torch.full((2**20,), float(rank + 1), device=place)
    dist.all_reduce(value)
    assert torch.equal(value.cpu(), torch.full((2**20,), world * (world + 1) / 2))
    gathered = torch.empty(world * 3, device=place)
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # as in tessera.train.ranks
    gather(gathered, torch.full((3,), float(rank), device=place))
    assert gathered.tolist() == [float(one) for one in range(world) for _ in range(3)]
    dist.barrier()
    dist.destroy_process_group()
    if rank == 0:
        print(f"{backend}: sum and gather right")


def check_ranks(home: Path, *, device: str) -> Outcome:
    """A run under torchrun of a rank a GPU, as many as divide its batch (two on a CPU): the losses of one process."""
    ranks = 2 if device == "cpu" else max(n for n in (1, 2, 4, 8) if n <= torch.cuda.device_count())
    alone = first_steps(home, device, name="ranks-alone")
    folder = make_run(home, "ranks", device=device, ranks=ranks)
    command = [*torchrun(ranks), "-m", "tessera.train.worker", str(folder.root)]
    with launcher_lock(folder):
        done = subprocess.run(command, env=lean_environment(), capture_output=True, text=True, timeout=LIMIT_SECONDS)
    if folder.read_result() is None:
        said = [file.read_text() for file in sorted(folder.errors.glob("*.json"))]
        raise Failed(f"{ranks} ranks ended with {done.returncode}: {' '.join(said)[:500] or done.stderr[-500:]}")
    differences = compare(lines_of(folder), alone)
    if not (differences["loss_step_1"] <= LOSS_TOLERANCE and differences["loss"] <= LATER_TOLERANCE):
        raise Failed(f"{ranks} ranks are off one process by {differences}")
    return {"ranks": ranks, "relative_differences": differences}


def check_resume(home: Path, *, device: str) -> Outcome:
    """A run killed while it saves its second checkpoint goes on to the weights of one that was not, bit by bit."""
    every_step = {"every_steps": 1, "every_seconds": None}
    whole = make_run(home, "whole", device=device, checkpoint=every_step)
    killed = make_run(home, "killed", device=device, checkpoint=every_step)
    deterministic(whole)
    status = deterministic(killed, fail="checkpoint.before_record:kill:2")
    if status != -signal.SIGKILL or killed.read_result() is not None:
        raise Failed(f"the run that was to be killed ended with status {status}")
    deterministic(killed)
    results = [folder.read_result() for folder in (whole, killed)]
    if None in results:
        raise Failed("a run did not finish; see its error above")
    weights = [result.weights_sha256 for result in results if result]
    if weights[0] != weights[1]:
        raise Failed(f"weights {weights[1][:12]} after the kill, {weights[0][:12]} without")
    return {"weights_sha256": weights[0]}


def deterministic(folder: RunFolder, *, fail: str = "") -> int:
    """Trains in a process of its own with torch's deterministic algorithms; its exit status."""
    environment = {**lean_environment(), "TESSERA_FAIL": fail, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    command = [sys.executable, str(Path(__file__).resolve()), "--train", str(folder.root)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_SECONDS)
    if done.returncode > 0:
        raise Failed(f"training in deterministic mode: {done.stderr.strip()[-500:]}")
    return done.returncode


def train_deterministic(folder: Path) -> None:
    """A process of `check_resume`."""
    torch.use_deterministic_algorithms(True)
    worker.run(folder, attempt=1)


def check_throughput(*, device: str, compiled: bool) -> Outcome:
    """Tokens a second, peak memory and utilisation of whole training steps."""
    import throughput

    sizes = throughput.SIZES if device == "cuda" else throughput.SMALL
    ways = [False, True] if compiled or device == "cuda" else [False]
    return {
        "formula": flops_per_token.__doc__,
        "results": [throughput.measure(size, device=device, compiled=way) for size in sizes for way in ways],
    }


def first_steps(home: Path, device: str, *, name: str = "first", precision: str = "fp32") -> list[Line]:
    """The lines of the metrics of a run of STEPS steps in this process: step 0 measures the held-out text only."""
    folder = make_run(home, name, device=device, precision=precision)
    worker.run(folder.root, attempt=1)
    return lines_of(folder)


def make_run(home: Path, name: str, **changed: Any) -> RunFolder:
    """A fresh run folder over the kit's shards, with other settings."""
    given = RunFolder(home / "runs" / RUN)
    folder = RunFolder(home / "runs" / f"check-{name}")
    shutil.rmtree(folder.root, ignore_errors=True)
    folder.checkpoints.mkdir(parents=True)
    for file in ("shards.arrow", "shards.json"):
        shutil.copyfile(given.root / file, folder.root / file)
    values = given.read_spec().model_dump(mode="json")
    values["settings"] |= {"steps": STEPS, "ranks": 1, **changed}
    folder.spec.write_text(to_json(RunSpec.model_validate(values).model_dump(mode="json")))
    folder.attempt.write_text("1\n")
    return folder


def lines_of(folder: RunFolder) -> list[Line]:
    """Step and loss of each line, the gradient's norm too; the loss of step 0 is the held-out one."""
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    first, *others = [{"step": line["step"], "loss": line.get("loss", line.get("heldout_loss"))} for line in lines]
    norms = [{"gradient_norm": line["gradient_norm"]} for line in lines[1:]]
    return [first, *[line | norm for line, norm in zip(others, norms, strict=True)]]


def compare(found: list[Line], wanted: list[Line]) -> dict[str, float]:
    """The largest relative differences of loss and gradient norm; infinite if a step is missing."""
    if [line["step"] for line in found] != list(range(STEPS + 1)) or len(found) != len(wanted):
        return dict.fromkeys(("loss_step_1", "gradient_norm_step_1", "loss"), math.inf)

    def off(step: int, key: str) -> float:
        return abs(found[step][key] / wanted[step][key] - 1)

    return {
        "loss_step_1": off(1, "loss"),
        "gradient_norm_step_1": off(1, "gradient_norm"),
        "loss": max(off(step, "loss") for step in range(STEPS + 1)),
    }


@contextmanager
def workplace() -> Iterator[Path]:
    """A home of its own for runs, over the kit's shards and tokenizer, removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="tessera-check-") as folder:
        home = Path(folder)
        for name in ("shards", "tokenizers"):
            (home / name).symlink_to(KIT / name)
        (home / "runs").mkdir()
        (home / "runs" / RUN).symlink_to(KIT / "runs" / RUN)
        yield home


def torchrun(ranks: int) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]


def lean_environment() -> dict[str, str]:
    """The caller's, with the package of the kit found first."""
    paths = [str(HERE), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "GLOO_SOCKET_IFNAME": "lo"}


def machine(device: str) -> dict[str, Any]:
    import numpy
    import transformers

    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {
        "device": device, "gpus": gpus, "cores": len(os.sched_getaffinity(0)), "python": platform.python_version(),
        "torch": torch.__version__, "cuda": torch.version.cuda, "transformers": transformers.__version__,
        "numpy": numpy.__version__,
    }  # fmt: skip


if __name__ == "__main__":
    main()
