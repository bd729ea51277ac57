"""What keeps a store of runs and models away, how long to try again, and how to say it in a sentence.

Needs neither mlflow nor a database's library: errors are known by their names, and by those that they arose from.
"""

import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from tessera.errors import TesseraError, TrackingError

T = TypeVar("T")

DENIED = ("UNAUTHENTICATED", "PERMISSION_DENIED")
"""MLflow's error codes of a store that does not want this user: asking again does not help."""
FAILED_CALLS = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", *DENIED)
"""MLflow's error codes of a store that cannot be used now; other codes are answers."""
BROKEN = (ConnectionError, TimeoutError, socket.gaierror, ssl.SSLError)
"""What the system says of a connection; its other errors, such as a full disk, are ours and not the store's."""
CARRIERS = ("sqlalchemy", "pg8000", "sqlite3", "requests", "urllib3", "psycopg2", "pymysql")
"""Libraries that bring a call to its store: an error of theirs means that it did not arrive, or its answer did not."""

USER = re.compile(r"^(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)(?P<user>.*)@(?P<rest>[^@]*)$", re.DOTALL)
"""An address with a user, and perhaps a password, before its host."""


def masked(uri: str) -> str:
    """`uri` without user, password and query, which may hold either."""
    matched = USER.match(uri)
    return re.split(r"[?#]", f"{matched['scheme']}{matched['rest']}" if matched else uri)[0]


def insist(call: Callable[[], T], *, seconds: float) -> T:
    """What `call` returns, tried again while the store cannot be used, for `seconds` from the first try.

    `call` must be one that may be done twice. Where the store denies it, it is not tried again.
    """
    deadline, pause = time.monotonic() + seconds, 0.5
    while True:
        try:
            return call()
        except Exception as error:
            if not is_away(error) or is_denied(error) or time.monotonic() + pause > deadline:
                raise
        time.sleep(pause)
        pause = min(2 * pause, 5.0)


@contextmanager
def answering(uri: str) -> Iterator[None]:
    """Makes one sentence of whatever keeps the store away in the block; other errors pass.

    Raises:
        TrackingError: naming the address without its password, and why.
    """
    try:
        yield
    except TesseraError:
        raise
    except Exception as error:
        if not is_away(error):
            raise
        raise TrackingError(
            f"MLflow at {masked(uri)} cannot be used: {why(error)}; start it, or name another: tracking.uri"
        ) from None


def is_away(error: BaseException) -> bool:
    """Whether the store was not reached, did not answer, or says that it cannot: not whether it gave a plain no."""
    if getattr(error, "error_code", None) in FAILED_CALLS or isinstance(error, TrackingError):
        return True
    return any(isinstance(one, BROKEN) or type(one).__module__.split(".")[0] in CARRIERS for one in _chain(error))


def is_denied(error: BaseException) -> bool:
    """Whether the store answers, and not to this user."""
    return any(getattr(one, "error_code", None) in DENIED for one in _chain(error))


def is_answer(error: BaseException) -> bool:
    """Whether the store gave a plain no, which another call may not get."""
    return getattr(error, "error_code", None) is not None and not is_away(error)


def why(error: BaseException) -> str:
    """The reason in a few words, free of addresses, statements and values; a word of our own errors is kept whole."""
    if isinstance(error, TesseraError) and not isinstance(error, TrackingError):
        return str(error)
    causes = [one for one in _chain(error) if not isinstance(one, TrackingError)] or [error]
    kinds, text = {type(one).__name__ for one in causes}, " ".join(str(one) for one in causes)
    known = {
        "the connection was refused": "ConnectionRefusedError" in kinds or "Connection refused" in text,
        "it does not answer in time": bool(kinds & {"ReadTimeout", "ConnectTimeout", "TimeoutError"}),
        "the host name is unknown": "gaierror" in kinds or "Name or service not known" in text,
        "the database is locked": "database is locked" in text,
        "it refuses user or password": bool(re.search(r"28P01|28000|error code 40[13]", text)),
        "there is no such database": "3D000" in text,
        "the connection broke": bool(kinds & {"ConnectionResetError", "RemoteDisconnected", "BrokenPipeError"}),
    }
    status = re.search(r"error code ([45]\d\d)\b|too many (5\d\d) error", text)
    answered = next((f"it answers {code}" for code in status.groups() if code), "") if status else ""
    codes = [str(getattr(one, "error_code", "")) for one in causes]
    coded = next((f"it says {code}" for code in codes if code not in ("", "INTERNAL_ERROR")), "")  # its client's too
    found = next((words for words, holds in known.items() if holds), "")
    return found or answered or coded or type(causes[-1]).__name__


def _chain(error: BaseException) -> list[BaseException]:
    """`error` and what it arose from, outermost first."""
    found: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in found:
        found.append(one)
        one = one.__cause__ or one.__context__
    return found
