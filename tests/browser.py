"""A real browser for tests: headless Chromium without a network, spoken to over a pipe (DevTools protocol).

Where the system lets it, Chromium runs in a network namespace of its own that has no interface at all; everywhere its
resolver finds nothing and its proxy is a closed port. What a page says on its console, throws, or asks for beyond
itself is kept, so that a test can demand that there is none. Starting costs about two seconds.
"""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run", "--no-default-browser-check", "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND", "--proxy-server=127.0.0.1:9", "--remote-debugging-pipe", "about:blank",
)  # fmt: skip
OWN_SCHEMES = ("file:", "data:", "blob:", "about:")
"""Addresses that need no network."""
PATIENCE = 60.0
"""Seconds that one answer may take on a busy machine."""


def find_chromium() -> str | None:
    """The path of Chromium or Chrome, or None: then a test skips, and says why."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Page:
    """One page in a running browser, and what was heard of it."""

    def __init__(self, reading: int, writing: int) -> None:
        self.errors: list[str] = []
        """What it logged as an error, threw and did not catch, or was refused: by its policy or for want of a file."""
        self.requests: list[str] = []
        """Addresses it asked for that are not its own: allowed, refused and failed ones."""
        self._reading, self._writing = reading, writing
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        self._loaded = False

    def attach(self) -> None:
        """Opens an empty page and begins to listen."""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def show(self, url: str, *, width: int = 1280, height: int = 1600, dark: bool = False) -> None:
        """Loads `url` in a window of this size, in CSS pixels, and waits until it is loaded."""
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self._call("Emulation.setEmulatedMedia", features=scheme)
        self._loaded = False
        self._call("Page.navigate", url=url)
        end = time.monotonic() + PATIENCE
        while not self._loaded:
            self._hear(end)

    def evaluate(self, expression: str) -> Any:
        """The JSON value of a JavaScript expression; a promise is awaited. Raises AssertionError when it throws."""
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def point_at(self, x: float, y: float) -> None:
        """Moves the mouse to a place of the window, in CSS pixels."""
        self._call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def screenshot(self, path: Path) -> None:
        """Writes what the window shows as PNG."""
        data = self._call("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(data))

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": params}
        if self._session and not method.startswith("Target."):
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._writing, data) :]
        end = time.monotonic() + PATIENCE
        while True:
            answer = self._hear(end)
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return dict(answer["result"])

    def _hear(self, end: float) -> dict[str, Any]:
        """The next message; events leave their mark before it is returned."""
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._reading], [], [], max(end - time.monotonic(), 0))
            assert ready, f"Chromium did not answer in {PATIENCE:.0f} s"
            read = os.read(self._reading, 1 << 20)
            assert read, "Chromium ended"
            self._buffer += read
        raw, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(raw)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, event: str, params: dict[str, Any]) -> None:
        match event:
            case "Page.loadEventFired":
                self._loaded = True
            case "Runtime.exceptionThrown":
                details = params["exceptionDetails"]
                self.errors.append(str(details.get("exception", {}).get("description") or details["text"]))
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "assert"):
                self.errors.append(" ".join(str(part.get("value", part)) for part in params["args"]))
            case "Log.entryAdded" if params["entry"]["level"] == "error":
                self.errors.append(str(params["entry"]["text"]))
            case "Network.requestWillBeSent" if not params["request"]["url"].startswith(OWN_SCHEMES):
                self.requests.append(str(params["request"]["url"]))


@contextmanager
def browser() -> Iterator[Page]:
    """A running Chromium with one page; ended, with its profile, when the block ends."""
    chromium = find_chromium()
    assert chromium is not None, "no Chromium: see find_chromium"
    (its_input, writing), (reading, its_output) = _pipe(), _pipe()
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        command = [*_without_network(), chromium, *FLAGS, f"--user-data-dir={profile}"]
        script = f'exec "$@" 3<&{its_input} 4>&{its_output}'
        process = subprocess.Popen(
            ["bash", "-c", script, "bash", *command], pass_fds=(its_input, its_output),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "HOME": profile},
        )  # fmt: skip
        os.close(its_input)
        os.close(its_output)
        try:
            page = Page(reading, writing)
            page.attach()
            yield page
        finally:
            os.close(writing)  # Chromium ends when its pipe does
            os.close(reading)
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@lru_cache(maxsize=1)
def _without_network() -> tuple[str, ...]:
    """The command prefix that takes the network away, where this user may do so."""
    prefix = ("unshare", "--user", "--map-root-user", "--net")
    if shutil.which("unshare") is None:
        return ()
    allowed = subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0
    return prefix if allowed else ()


def _pipe() -> tuple[int, int]:
    """A pipe whose ends are numbered above those that Chromium wants, 3 and 4."""
    ends = os.pipe()
    high = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
    for end in ends:
        os.close(end)
    return high[0], high[1]
