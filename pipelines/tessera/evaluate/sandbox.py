"""Runs a program that a model wrote, with its test, in a process of its own: bounded time and memory, no network.

What holds by the kernel: wall and CPU seconds, memory, size of each file, open files; where it allows namespaces for
users, a network of its own without an interface, and processes of its own, which see no other and end with the first.
What holds by an audit hook inside the interpreter: sockets, other processes, foreign code (ctypes), files outside the
working folder and Python's own are refused, and with them modules that need these (asyncio, subprocess). The hook stops
what models write by accident or habit; it is no wall against someone who studies it, so evaluate models whose programs
you fear on a machine that may be lost. The environment is empty, the folder is removed, output is thrown away.

A verdict needs the test to have ended: leaving early passes nothing. The program cannot read the test, which runs after
it, but may spoil what the test relies on. Costs about 90 ms a program.
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
ENVIRONMENT = {"MALLOC_ARENA_MAX": "1"}
"""All of it; without it each thread would take 64 MB of the address space."""


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
    said = ""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)  # whoever still held the other end could make us wait
    folder = tempfile.mkdtemp(prefix="tessera-program-")
    try:
        timed_out = _run(json.dumps({**asked, "said": writing}), folder=folder, writing=writing, seconds=seconds)
        with suppress(BlockingIOError):
            said = os.read(reading, MAX_SAID).decode("ascii", "replace")
    finally:
        os.close(writing)
        os.close(reading)
        subprocess.run(["rm", "-rf", folder], check=False)  # however deep: rmtree recurses
    if said == token:
        return Verdict(passed=True, reason="passed")
    return Verdict(passed=False, reason="time" if timed_out else said if said.isidentifier() else "died")


def _run(asked: str, *, folder: str, writing: int, seconds: float) -> bool:
    """Whether it ran out of time; nothing of its group is left."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-B", "-X", "utf8", "-c", CHILD],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRONMENT, cwd=folder,
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
import json, os, signal, sys, types, _thread
asked = json.loads(sys.stdin.buffer.read().decode("utf-8", "surrogatepass"))

def apart():
    # In namespaces of its own a process sees no other and no network, and all of it ends with its first process.
    import ctypes
    NEWUSER, NEWNET, NEWPID, NO_NEW_PRIVS, DUMPABLE, DEATHSIG = 0x10000000, 0x40000000, 0x20000000, 38, 4, 1
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(NEWUSER | NEWNET | NEWPID) == 0 and (child := os.fork()):
        os.waitpid(child, 0)
        os._exit(0)
    libc.prctl(DEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(DUMPABLE, 0, 0, 0, 0)

def limit():
    import resource
    for name, most in (("AS", asked["memory"]), ("CPU", asked["cpu"]), ("FSIZE", asked["file"]),
                       ("NOFILE", asked["files"]), ("NPROC", 1), ("CORE", 0)):
        resource.setrlimit(getattr(resource, "RLIMIT_" + name), (most, most))

def disarm():
    import posix
    for name in ("fork", "forkpty", "kill", "killpg", "pidfd_open", "mkfifo", "mknod", "execv", "execve", "posix_spawn",
                 "posix_spawnp", "system", "ptrace", "setuid", "setns", "unshare", "chroot", "symlink", "link"):
        for module in (os, posix):
            if hasattr(module, name):
                delattr(module, name)
    for name in ("ctypes", "_ctypes", "resource"):
        sys.modules.pop(name, None)

def guard():
    real, here, inst, anyone = os.path.realpath, os.path.realpath(os.getcwd()), isinstance, any
    readable = tuple({real(path) for path in (here, sys.prefix, sys.base_prefix, *sys.path) if path})
    plain = ("/dev/null", "/dev/urandom")
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    refused = ("socket.", "subprocess.", "ctypes.", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.system",
               "os.kill", "os.chroot", "os.setxattr", "pty.", "fcntl.", "mmap.", "syslog.", "urllib.", "ftplib.",
               "smtplib.", "os.putenv", "os.symlink", "os.link", "os.chdir", "shutil.", "sys.setprofile",
               "sys.settrace", "gc.", "resource.", "signal.", "_thread.start", "sqlite3.", "sys._current", "os.fwalk")
    inside = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.chmod", "os.chown", "os.truncate", "os.utime",
              "os.listdir", "os.scandir", "glob.glob")
    modules = frozenset(("ctypes", "_ctypes", "resource", "_posixsubprocess", "multiprocessing",
                         "readline", "_sqlite3", "_testcapi", "_xxsubinterpreters"))

    def below(path, roots):
        if inst(path, bytes):
            path = os.fsdecode(path)
        found = real(path)
        return anyone(found == root or found.startswith(root + "/") for root in roots)

    def hook(event, values):
        if event == "open":
            path, mode, flags = values
            if inst(path, int) or path in plain:
                return
            if not below(path, (here,) if flags & writing else readable):
                raise PermissionError("a file outside")
        elif event == "import":
            if values[0].partition(".")[0] in modules:
                raise PermissionError("a module")
        elif event.startswith(refused):
            raise PermissionError(event)
        elif event.startswith(inside):
            roots = readable if "dir" in event else (here,)
            for path in values[:2] if event == "os.rename" else values[:1]:
                if not inst(path, int) and not below(here if path is None else path, roots):
                    raise PermissionError("a path outside")

    sys.addaudithook(hook)

def main():
    said, token = asked.pop("said"), asked.pop("token")
    source, test, entry_point = asked.pop("source"), asked.pop("test"), asked.pop("entry_point")
    program = types.ModuleType("program")
    sys.modules["program"] = program
    write, leave, run, build, named = os.write, os._exit, exec, compile, sys.exc_info
    start, lock = _thread.start_new_thread, _thread.allocate_lock
    apart()
    limit()

    def step(text, name):
        # In a thread of its own: what runs there finds no frame above it that knows the token or the other steps.
        go, done, failed = lock(), lock(), []
        go.acquire(), done.acquire()

        def work():
            go.acquire()
            try:
                run(build(text, name, "exec"), program.__dict__)
            except BaseException:
                kind = named()[0]
                failed.append(kind.__name__ if kind.__module__ == "builtins" else "Exception")
            done.release()

        start(work, ())
        return go, done, failed

    steps = [step(source, "program"), step(test, "test")]
    if entry_point:
        steps.append(step("check(" + entry_point + ")", "check"))
    disarm()
    guard()
    for go, done, failed in steps:
        go.release()
        done.acquire()
        if failed:
            write(said, failed[0][:100].encode("ascii", "replace"))
            leave(0)
    write(said, token.encode())
    leave(0)

main()
"""
"""What the process runs: it confines itself before it reads a line of the program."""
