"""Runs a program that a model wrote, with its test, in a process of its own: bounded time and memory, no network.

What holds by the kernel: wall and CPU seconds, memory, size of files, open files; where it allows namespaces for users,
a network of its own without an interface, and no second process. What holds by an audit hook inside the interpreter:
sockets, other processes, foreign code (ctypes), files outside the working folder and Python's own are refused. The hook
stops what models write by accident or habit; it is no wall against someone who studies it, so evaluate models whose
programs you fear on a machine that may be lost. The environment is empty, the folder is removed, output is thrown away.

A verdict needs the test to have ended: leaving early passes nothing. Costs about 30 ms a program.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass

MAX_SAID = 200
FILE_BYTES = 2**20
OPEN_FILES = 32


@dataclass(frozen=True)
class Verdict:
    """What became of a program."""

    passed: bool
    reason: str
    """`passed`, the class of what was raised, `time`, or `died` where it left without a word."""


def run_program(source: str, *, test: str, entry_point: str = "", seconds: float, memory_bytes: int) -> Verdict:
    """Runs `source`, then `test` in its namespace, then `check(entry_point)` where one is named.

    Args:
        test: raises when the program is wrong.
        seconds: of wall time for all of it.
        memory_bytes: of address space.
    """
    token = secrets.token_hex(16)
    asked = {"source": source, "test": test, "entry_point": entry_point, "token": token, "cpu": int(seconds) + 1,
             "memory": memory_bytes, "file": FILE_BYTES, "files": OPEN_FILES}  # fmt: skip
    reading, writing = os.pipe()
    with tempfile.TemporaryDirectory(prefix="tessera-program-", ignore_cleanup_errors=True) as folder:
        try:
            timed_out = _run(json.dumps({**asked, "said": writing}), folder=folder, writing=writing, seconds=seconds)
        finally:
            os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            said = pipe.read(MAX_SAID).decode("ascii", "replace")
    if said == token:
        return Verdict(passed=True, reason="passed")
    return Verdict(passed=False, reason="time" if timed_out else said if said.isidentifier() else "died")


def _run(asked: str, *, folder: str, writing: int, seconds: float) -> bool:
    """Whether it ran out of time; nothing of its group is left."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-B", "-X", "utf8", "-c", CHILD],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={}, cwd=folder,
        pass_fds=(writing,), start_new_session=True,
    )  # fmt: skip
    try:
        process.communicate(asked.encode("utf-8", "surrogatepass"), timeout=seconds)
        return False
    except subprocess.TimeoutExpired:
        return True
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


CHILD = r"""
import json, os, sys
asked = json.loads(sys.stdin.buffer.read().decode("utf-8", "surrogatepass"))

def confine():
    import ctypes, resource
    CLONE_NEWUSER, CLONE_NEWNET, PR_SET_NO_NEW_PRIVS, PR_SET_DUMPABLE = 0x10000000, 0x40000000, 38, 4
    libc = ctypes.CDLL(None, use_errno=True)
    libc.unshare(CLONE_NEWUSER | CLONE_NEWNET)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    for name, most in (("AS", asked["memory"]), ("CPU", asked["cpu"]), ("FSIZE", asked["file"]),
                       ("NOFILE", asked["files"]), ("NPROC", 1), ("CORE", 0)):
        resource.setrlimit(getattr(resource, "RLIMIT_" + name), (most, most))
    for name in ("ctypes", "_ctypes", "resource"):
        sys.modules.pop(name, None)

def guard():
    real, here = os.path.realpath, os.path.realpath(os.getcwd())
    readable = tuple({real(path) for path in (here, sys.prefix, sys.base_prefix, *sys.path) if path})
    plain = ("/dev/null", "/dev/urandom")
    refused = ("socket.", "subprocess.", "ctypes.", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.system",
               "os.kill", "os.chroot", "os.setxattr", "pty.", "fcntl.", "mmap.", "syslog.", "urllib.", "ftplib.",
               "smtplib.", "os.putenv", "os.symlink", "os.link", "os.chdir", "shutil.", "sys.setprofile",
               "sys.settrace", "gc.", "resource.", "signal.pthread_kill", "_thread.start")
    inside = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.chmod", "os.chown", "os.truncate", "os.utime",
              "os.listdir", "os.scandir", "glob.glob")
    modules = frozenset(("ctypes", "_ctypes", "resource", "_posixsubprocess", "multiprocessing", "gc"))

    def below(path, roots):
        if isinstance(path, bytes):
            path = os.fsdecode(path)
        found = real(path)
        return any(found == root or found.startswith(root + os.sep) for root in roots)

    def hook(event, values):
        if event == "open":
            path, mode, flags = values
            if isinstance(path, int) or path in plain:
                return
            writes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND))
            if not below(path, (here,) if writes else readable):
                raise PermissionError("a file outside")
        elif event == "import":
            if values[0].partition(".")[0] in modules:
                raise PermissionError("a module")
        elif event.startswith(refused):
            raise PermissionError(event)
        elif event.startswith(inside) and values and not isinstance(values[0], int):
            if not below(values[0] if values[0] is not None else here, readable if "dir" in event else (here,)):
                raise PermissionError("a path outside")

    sys.addaudithook(hook)

def main():
    said, token = asked.pop("said"), asked.pop("token")
    source, test, entry_point = asked.pop("source"), asked.pop("test"), asked.pop("entry_point")
    write = os.write
    confine()
    guard()
    try:
        space = {"__name__": "program"}
        exec(compile(source, "program", "exec"), space)
        exec(compile(test, "test", "exec"), space)
        if entry_point:
            space["check"](space[entry_point])
    except BaseException as error:
        write(said, type(error).__name__[:100].encode("ascii", "replace"))
    else:
        write(said, token.encode())
    os._exit(0)

main()
"""
"""What the process runs: it confines itself before it reads a line of the program."""
