"""The rooms as jobs: what a scheduler calls, with its arguments in `sys.argv`. Costs nothing over the command line.

A scheduler starts a job in one of three ways, and each ends here: `spark-submit jobs/ROOM.py`, a platform that runs the
same file inside its own interpreter, and a platform that calls an entry point of the wheel without arguments
(`tessera-ROOM`). The last two may take any SystemExit for a failure, 0 included: success returns, only failure raises.
"""

import sys


def sample() -> None:
    """`tessera sample`."""
    run("sample")


def prepare() -> None:
    """`tessera prepare`."""
    run("prepare")


def shard() -> None:
    """`tessera shard`."""
    run("shard")


def train() -> None:
    """`tessera train`."""
    run("train")


def evaluate() -> None:
    """`tessera evaluate`."""
    run("evaluate")


def serve() -> None:
    """`tessera serve`: registers the model and moves its aliases."""
    run("serve")


def score() -> None:
    """`tessera score`: a registered model's answers to the rows of a table."""
    run("score")


def explore() -> None:
    """`tessera explore`: the map of all runs."""
    run("explore")


def line() -> None:
    """`tessera run`: the whole line in one process, with one Spark session."""
    run("run")


def run(command: str) -> None:
    """Runs `tessera COMMAND` with the arguments of this process: `--target prod --set a.b=c`, or `--target=prod`.

    Raises:
        SystemExit: the command failed; never with status 0.
    """
    from tessera.cli import app

    try:
        app([command, *sys.argv[1:]], prog_name="tessera")
    except SystemExit as end:
        if end.code not in (None, 0):
            raise
