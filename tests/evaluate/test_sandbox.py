"""Programs that pass, fail, and misbehave: the verdict comes in bounded time, and nothing is left."""

import os
import socket
import threading
import time
from pathlib import Path

import psutil
import pytest

from tessera.evaluate.sandbox import Verdict, run_program

ADD = "def add(a, b):\n    return a + b\n"
CHECK = "def check(candidate):\n    assert candidate(2, 3) == 5\n    assert candidate(-1, 1) == 0\n"


def run(source: str, test: str = "", *, seconds: float = 5.0, memory: int = 256 * 2**20, **given) -> Verdict:
    return run_program(source, test=test, seconds=seconds, memory_bytes=memory, **given)


def test_a_right_program_passes_and_a_wrong_one_does_not() -> None:
    assert run(ADD, CHECK, entry_point="add") == Verdict(passed=True, reason="passed")
    wrong = run(ADD.replace("+", "-"), CHECK, entry_point="add")
    assert wrong == Verdict(passed=False, reason="AssertionError")
    assert run("def add(a, b):", CHECK, entry_point="add").reason == "IndentationError"
    assert run("", CHECK, entry_point="add").reason == "NameError"


def test_ordinary_modules_can_be_used() -> None:
    source = "import math, re, collections, itertools, functools, heapq, json, random, datetime, typing, string\n"
    assert run(
        source + "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\n", "assert A(1).x == 1"
    ).passed


@pytest.mark.parametrize(
    "source",
    [
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "raise SystemExit",
        "import atexit, sys\natexit.register(print)\nsys.exit()",
        "quit = exit = None\nraise KeyboardInterrupt",
        "import os\nos.close(3)\nos.abort()",
    ],
)
def test_leaving_before_the_test_passes_nothing(source: str) -> None:
    assert not run(source, "assert False").passed
    assert not run(source, "assert True").passed


@pytest.mark.parametrize(
    "source", ["while True: pass", "import time\ntime.sleep(60)", "try:\n  while 1: pass\nfinally:\n  while 1: pass"]
)
def test_time_is_bounded(source: str) -> None:
    began = time.monotonic()

    assert run(source, seconds=1.0).reason == "time"

    assert time.monotonic() - began < 4


def test_memory_is_bounded() -> None:
    assert run("x = bytearray(2**30)").reason == "MemoryError"
    assert run("x = bytearray(2**27)").passed


def test_output_is_thrown_away_however_much() -> None:
    assert run("for i in range(10**5): print('x' * 100)", "assert True", seconds=20).passed


def test_no_connection_leaves_it() -> None:
    """A server on loopback hears nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        heard: list[object] = []

        def listen() -> None:
            while not done.is_set():
                try:
                    heard.append(server.accept())
                except TimeoutError:
                    continue

        done = threading.Event()
        thread = threading.Thread(target=listen)
        thread.start()
        found = [
            run(f"import socket\nsocket.create_connection(('127.0.0.1', {port}), timeout=1)"),
            run(f"import urllib.request\nurllib.request.urlopen('http://127.0.0.1:{port}', timeout=1)"),
            run(f"import _socket\ns = _socket.socket()\ns.connect(('127.0.0.1', {port}))"),
        ]
        done.set()
        thread.join()
    assert heard == []
    assert not any(one.passed for one in found)


@pytest.mark.parametrize(
    "source",
    [
        "open({path!r}, 'w').write('x')",
        "import os\nos.close(os.open({path!r}, os.O_CREAT | os.O_WRONLY))",
        "import pathlib\npathlib.Path({path!r}).write_text('x')",
        "import os\nos.mkdir({path!r})",
        "import os\nos.symlink('/', 'root')\nopen('root' + {path!r}, 'w').write('x')",
        "import subprocess\nsubprocess.run(['touch', {path!r}])",
        "import os\nos.system('touch ' + {path!r})",
        "import os\nif os.fork() == 0:\n  open({path!r}, 'w')",
        "import ctypes\nctypes.CDLL(None).system(b'touch ' + {path!r}.encode())",
        "import multiprocessing\nmultiprocessing.Process(target=print).start()",
    ],
)
def test_nothing_outside_its_folder_is_written(source: str, tmp_path: Path) -> None:
    target = tmp_path / "written"

    assert not run(source.format(path=str(target)), "assert True").passed

    assert not target.exists()


def test_files_outside_are_not_read_and_the_environment_is_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_text("x")
    monkeypatch.setenv("TESSERA_SECRET", "x")
    assert run(f"open({str(tmp_path / 'secret')!r}).read()").reason == "PermissionError"
    assert run(f"import os\nos.listdir({str(tmp_path)!r})").reason == "PermissionError"
    assert run("import os", "assert 'TESSERA_SECRET' not in os.environ").passed
    assert run("open('own', 'w').write('x')", "assert open('own').read() == 'x'").passed


def test_nothing_is_left_running_and_no_folder() -> None:
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    fork_bomb = "import os\nwhile True:\n  try: os.fork()\n  except Exception: break\nwhile True: pass"

    run(fork_bomb, seconds=1.0)

    assert {process.pid for process in psutil.Process().children(recursive=True)} == before
    assert not [*Path(os.environ.get("TMPDIR", "/tmp")).glob("tessera-program-*")]


FRAMES = (
    "{first}\nimport os\nwhile f:\n  if 'token' in f.f_locals:\n"
    "    os.write(f.f_locals['said'], f.f_locals['token'].encode())\n    os._exit(0)\n  f = f.f_back"
)
"""Looks for the token in all frames above, and passes itself."""


@pytest.mark.parametrize(
    "source",
    [
        FRAMES.format(first="import sys\nf = sys._getframe()"),
        FRAMES.format(first="try:\n  1 / 0\nexcept Exception as e:\n  f = e.__traceback__.tb_frame"),
        "import sys\nsys._current_frames()",
        "import builtins\nbuiltins.exec = builtins.compile = lambda *a, **k: None",
        "class passed(Exception): pass\nraise passed",
    ],
)
def test_a_program_cannot_pass_by_itself(source: str) -> None:
    assert not run(source, "assert False").passed


def test_the_evaluator_cannot_be_reached() -> None:
    """Through names that the guard does not know: by the kernel's own process numbers."""
    source = (
        "import importlib.machinery as m\nimport signal\nspec = m.BuiltinImporter.find_spec('posix')\n"
        f"p = m.BuiltinImporter.create_module(spec)\nm.BuiltinImporter.exec_module(p)\np.kill({os.getpid()}, 9)"
    )
    assert not run(source).passed  # and this process lives


def test_nested_folders_and_files_outside_by_other_ways(tmp_path: Path) -> None:
    target = tmp_path / "written"
    deep = (
        "import os\nfor _ in range(3000):\n  os.mkdir('a')\n  fd = os.open('a', os.O_RDONLY)\n"
        "  os.fchdir(fd)\n  os.close(fd)"
    )
    for source in (
        deep,
        f"open('x', 'w').close()\nimport os\nos.replace('x', {str(target)!r})",
        f"import sqlite3\nsqlite3.connect({str(target)!r})",
        f"import builtins\nbuiltins.isinstance = lambda a, b: True\nopen({str(target)!r}, 'w')",
        f"import os\nos.mkfifo({str(target)!r})",
        f"import readline\nreadline.write_history_file({str(target)!r})",
    ):
        run(source, seconds=10)
    assert not target.exists()
    assert not [*Path(os.environ.get("TMPDIR", "/tmp")).glob("tessera-program-*")]


def test_dataclasses_with_late_annotations_and_timing(tmp_path: Path) -> None:
    source = (
        "from __future__ import annotations\nimport timeit\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass A:\n    x: int\n"
    )
    assert run(source, "assert A(1).x == 1").passed
