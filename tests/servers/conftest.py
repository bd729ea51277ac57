"""Real servers on loopback: PostgreSQL, MLflow over it, and a proxy that fails on purpose. Stopped by process id.

PostgreSQL refuses root, so root starts it as the user `postgres`. MLflow's server takes 10 to 30 s to start: there is
one for the whole run, whose tests use experiments and models of their own.
"""

import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

PASSWORD = "p@ss/word:heliotrope?"
"""A password with every character that means something in an address."""
PASSWORD_NAME = "TESSERA_TEST_PASSWORD"
START_SECONDS = 120.0


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], object], *, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"after {seconds} s: {what}"
        time.sleep(0.1)


def find_postgres() -> Path | None:
    """The folder of initdb and postgres: on the PATH, or Debian's newest."""
    named = shutil.which("initdb")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    return Path(named).resolve().parent if named else found[-1].parent if found else None


@dataclass(frozen=True)
class Postgres:
    """A cluster of one superuser `tessera`, whose password is asked for (SCRAM)."""

    port: int

    def uri(self, database: str = "postgres", *, password: str = "${env:" + PASSWORD_NAME + "}") -> str:
        return f"postgresql+pg8000://tessera:{password}@127.0.0.1:{self.port}/{database}"

    def query(self, text: str, *values: Any, database: str = "postgres") -> list[tuple[Any, ...]]:
        import pg8000.dbapi

        with closing(
            pg8000.dbapi.connect(
                "tessera", host="127.0.0.1", port=self.port, password=PASSWORD, database=database, timeout=30
            )
        ) as connection:
            connection.autocommit = True
            cursor = connection.cursor()
            cursor.execute(text, values)
            return [tuple(row) for row in cursor.fetchall()] if cursor.description else []

    def make(self, database: str) -> str:
        """The address of a new, empty database."""
        self.query(f"create database {database}")
        return self.uri(database)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    binaries = find_postgres()
    if binaries is None:
        pytest.skip("PostgreSQL is not installed here (no initdb); Debian's package postgresql has it: make tools")
    user = "postgres" if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="tessera-pg-"))  # its path must be short: a socket lies in it
    try:
        password = folder / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        folder.chmod(0o755)
        cluster = folder / "cluster"
        cluster.mkdir()
        if user:
            shutil.chown(cluster, user)
        made = subprocess.run(
            [binaries / "initdb", "-D", cluster, "-U", "tessera", "--auth=scram-sha-256", f"--pwfile={password}",
             "--encoding=UTF8", "--no-locale", "--no-sync"],
            capture_output=True, text=True, check=False, user=user, cwd="/",
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
        port = free_port()
        options = ("listen_addresses=127.0.0.1", f"port={port}", "unix_socket_directories=", "fsync=off")
        server = subprocess.Popen(
            [binaries / "postgres", "-D", cluster, *[f"--{option}" for option in options]],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, user=user, cwd="/",
        )  # fmt: skip
        try:
            found = Postgres(port)
            wait_for(lambda: _answers(found), seconds=30, what="PostgreSQL does not answer")
            yield found
        finally:
            server.send_signal(signal.SIGINT)  # a fast shutdown: sessions are ended
            server.wait(timeout=30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _answers(postgres: Postgres) -> bool:
    try:
        return postgres.query("select 1") == [(1,)]
    except Exception:
        return False


@dataclass
class MlflowServer:
    """`mlflow server` over PostgreSQL; artifacts go through it."""

    postgres: Postgres
    database: str
    artifacts: Path
    log: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, *, wait: bool = True) -> None:
        from urllib.parse import quote

        store = self.postgres.uri(self.database, password=quote(PASSWORD, safe=""))
        command = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1",
            "--artifacts-destination", str(self.artifacts), "--serve-artifacts",
        ]  # fmt: skip
        environment = {
            **os.environ, "MLFLOW_BACKEND_STORE_URI": store, "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }  # fmt: skip
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True, cwd=self.artifacts
            )
        if wait:
            self.wait()

    def wait(self) -> None:
        wait_for(self.answers, seconds=START_SECONDS, what=f"MLflow's server does not answer; {self.log}")

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as reply:
                return bool(reply.status == 200)
        except OSError:
            return False

    def signal(self, number: int) -> None:
        """To the server and its worker."""
        assert self.process is not None
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        assert self.process is not None
        self.process.wait(timeout=30)

    def rows(self, text: str, *values: Any) -> list[tuple[Any, ...]]:
        return self.postgres.query(text, *values, database=self.database)


@pytest.fixture(scope="session")
def mlflow_server(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    folder = tmp_path_factory.mktemp("mlflow-server")
    postgres.make("mlflow_server")
    (folder / "artifacts").mkdir()
    server = MlflowServer(postgres, "mlflow_server", artifacts=folder / "artifacts", log=folder / "server.log")
    server.start()
    try:
        yield server
    finally:
        server.kill()


class Proxy:
    """Passes HTTP requests on to a server, or does not, as `fault` says.

    `500`: answers so itself. `drop`: passes the request on and throws the reply away (`drop:PATH`: of such requests
    only). `hang`: takes the request and is
    silent. `None`: passes everything on. `down` is `stop`.
    """

    def __init__(self, target_port: int) -> None:
        self.target_port = target_port
        self.port = free_port()
        self.fault: str | None = None
        self.faulty: list[str] = []
        """Paths of the requests that a fault met."""
        self._server: ThreadingHTTPServer | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _pass(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                proxy._answer(self, body)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _pass

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
        self._server = None

    def _answer(self, request: BaseHTTPRequestHandler, body: bytes) -> None:
        fault = self.fault if self._server is not None else "hang"
        if fault is not None and fault.startswith("drop:"):
            fault = "drop" if fault.removeprefix("drop:") in request.path else None
        request.close_connection = fault is not None or self._server is None
        if fault is not None:
            self.faulty.append(request.path.partition("?")[0])
        if fault == "500":
            request.send_response(500)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        if fault == "hang":
            while self.fault == "hang" and self._server is not None:
                time.sleep(0.05)
            return
        connection = http.client.HTTPConnection("127.0.0.1", self.target_port, timeout=60)
        headers = {key: value for key, value in request.headers.items() if key.lower() != "host"}
        with closing(connection):
            connection.request(request.command, request.path, body=body, headers=headers)
            reply = connection.getresponse()
            content = reply.read()
        if fault == "drop":
            return
        request.send_response(reply.status)
        for key, value in reply.getheaders():
            if key.lower() not in ("connection", "transfer-encoding", "content-length", "date", "server"):
                request.send_header(key, value)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)


@pytest.fixture
def proxy(mlflow_server: MlflowServer) -> Iterator[Proxy]:
    made = Proxy(mlflow_server.port)
    made.start()
    try:
        yield made
    finally:
        made.fault = None
        made.stop()
