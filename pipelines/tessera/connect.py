"""Spark Connect: a session whose Spark runs in a server, which this process speaks to over gRPC.

There is no JVM here, no context and no RDD. The server's workers must see the home at its path and have Tessera
installed, as on any cluster; Delta is the server's matter. What works is in docs/spark-connect.md. A server that is
absent is told after ANSWER_SECONDS: pyspark by itself would go on trying for ten minutes.
"""

import os
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

from tessera.errors import ConfigError, SetupError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

SCHEME = "sc://"
ANSWER_SECONDS = 10.0
RETRIES = 6
"""Of a call that is not answered: a good minute, each pause four times the one before. pyspark's 15 take ten minutes,
but a server that is back has lost the session."""

_opened: "SparkSession | None" = None
"""The session that was opened here."""


def address(conf: Mapping[str, str]) -> str | None:
    """The server that `spark.remote` or SPARK_REMOTE names; None when neither names one."""
    named = conf.get("spark.remote") or os.environ.get("SPARK_REMOTE") or ""
    return named if named.startswith(SCHEME) else None


def open_session(server: str, *, conf: Mapping[str, str]) -> "SparkSession":
    """A new session of the server; of `conf` it takes what may be set in a session.

    Args:
        server: sc://HOST:PORT, with /;key=value pairs behind it, one of which may be a token.

    Raises:
        SetupError: gRPC is not installed, or nothing answers.
        ConfigError: the address is none.
    """
    global _opened
    from pyspark.sql import SparkSession

    _check_answers(server)
    from pyspark.sql.connect.client.retries import DefaultPolicy  # needs gRPC

    warnings.filterwarnings("ignore", message="WARN WindowExpression: No Partition Defined")  # ours are of samples
    _opened = SparkSession.builder.config(map={**conf, "spark.remote": server}).getOrCreate()
    _opened.client.set_retry_policies([DefaultPolicy(max_retries=RETRIES)])
    return _opened


def is_open() -> bool:
    """Whether `open_session` opened one that is not given back."""
    return _opened is not None


def close_session() -> None:
    """Gives back to the server what `open_session` opened, and nothing else; the server lives on."""
    global _opened
    opened, _opened = _opened, None
    if opened is not None:
        opened.client.set_retry_policies(
            []
        )  # of a server that is gone nothing is asked twice; else it forgets us anyway
        opened.stop()


def is_gone(error: Exception) -> bool:
    """Whether `error` came because the server does not answer any more."""
    status_of = getattr(error, "getGrpcStatusCode", None)
    return status_of is not None and getattr(status_of(), "name", None) == "UNAVAILABLE"


def _check_answers(server: str) -> None:
    try:
        import grpc  # type: ignore[import-not-found, import-untyped]
        from pyspark.sql.connect.client import DefaultChannelBuilder
    except ImportError:
        raise SetupError(
            "Spark Connect speaks gRPC, which is not installed here: pip install 'tessera[connect]'"
        ) from None
    try:
        builder = DefaultChannelBuilder(server)
    except ValueError:  # its words hold the address, which may hold a token
        raise ConfigError(
            "SPARK_REMOTE, or spark.remote in spark.conf, is not an address of Spark Connect; wanted sc://HOST:PORT, "
            "then /; and key=value pairs"
        ) from None
    channel = builder.toChannel()
    try:
        grpc.channel_ready_future(channel).result(timeout=ANSWER_SECONDS)
    except grpc.FutureTimeoutError:
        raise SetupError(
            f"no Spark Connect server answers at {builder.endpoint} within {ANSWER_SECONDS:.0f} seconds; start it, or "
            "leave SPARK_REMOTE out and set spark.master"
        ) from None
    finally:
        channel.close()
