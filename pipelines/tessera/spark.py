"""One Spark session: Delta, local defaults that suit two cores, and never a second session where one exists.

Starting a local session takes about twelve seconds and no network: the two Delta jars are fetched once by
`fetch_jars` and checked against their SHA-256. On a platform that brings its own session, that one is used as it is.
"""

import fcntl
import os
import shutil
import ssl
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar

from pydantic import Field

from tessera import connect
from tessera.config import EXECUTION, Section, resolve_secret
from tessera.errors import ConfigError, SetupError
from tessera.home import Home
from tessera.java import find_java
from tessera.lineage import sha256_file
from tessera.locks import is_shared_or_held

if TYPE_CHECKING:
    from pyspark import SparkContext
    from pyspark.sql import SparkSession

T = TypeVar("T")

JARS = {
    "io.delta:delta-spark_4.2_2.13:4.4.0": "27d4fd8b1f879535c573ed1c718177d6a27f24d3e626ba02e216369725721ead",
    "io.delta:delta-storage:4.4.0": "c46735481fa8e326b0957be02b4420cbcab4b325bb08009b7f2045a95133f1cc",
}
"""Maven coordinates and SHA-256 of what Delta needs beside pyspark 4.2.0."""

JVM_OPTIONS = "-XX:+UseSerialGC -XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=240m"
"""A local JVM lives for minutes: without its optimising compiler `prepare` took 25 instead of 47 CPU-seconds. For hours
of work on one machine, set spark.driver.extraJavaOptions in `spark.conf`."""

TRUST_PASSWORD = "public-certificates"  # Java asks for one; the store holds no secret

JVM_LOG = "jvm.log"
"""In the spill folder of the home: what the JVM prints, of this session only."""

PLATFORM_VARIABLES = ("PYSPARK_GATEWAY_PORT", "SPARK_REMOTE", "SPARK_CONF_DIR", "SPARK_HOME")
"""One of them is set where a platform, spark-submit or an installation says which master there is."""
QUERY_LOGGERS = ("SQLQueryContextLogger", "DataFrameQueryContextLogger")
"""Loggers by which pyspark itself prints a failed query, with the values of rows in it, to stderr."""

_started: "SparkContext | None" = None
"""The context that was started here. A platform's own is never stopped."""


_locks: list[IO[str]] = []
"""Of the spill folders of the homes whose session runs here; see `Home.spill_lock`."""


class SparkSettings(Section):
    """How Spark is started; none of it may change an output, so none of it enters a fingerprint."""

    master: str | None = Field("local[*]", json_schema_extra=EXECUTION)
    """`local[N]`, or `spark://HOST:PORT` of a cluster that sees the home at its path and has Tessera installed; null
    leaves it to the platform (spark-submit, a job's own session, the Spark Connect server of SPARK_REMOTE)."""
    partitions: int | None = Field(None, ge=1, json_schema_extra=EXECUTION)
    """Partitions of the input; null leaves it to Spark."""
    driver_memory: str = Field("4g", pattern=r"^\d+[mg]$", json_schema_extra=EXECUTION)
    """Most heap of the local JVM; the ranks need the rest of the machine. A document of 200 MB needs 4 GB."""
    conf: dict[str, str] = Field(default_factory=dict, json_schema_extra=EXECUTION)
    """Further Spark configuration, over the local defaults."""


def session(settings: SparkSettings, *, home: Home) -> "SparkSession":
    """The session that exists, as it is, whichever thread made it; else a new one with Delta.

    Raises:
        SetupError: no fitting Java, or the Delta jars are absent; over Spark Connect no gRPC, or no server.
        ConfigError: `spark.master` is null, and there is no platform to leave it to; or it is not, and a server is
            named as well.
    """
    from pyspark.sql import SparkSession

    _silence_queries()
    existing = _existing_session()
    if existing is not None:
        return existing
    server = connect.address(conf := _resolved(settings.conf))
    if settings.master is None and server is not None:
        return connect.open_session(server, conf=conf)
    if settings.master is None:
        _check_platform(settings)
        return _start(SparkSession.builder.config(map=conf).getOrCreate)
    if server is not None:
        raise ConfigError(
            f"spark.master is {settings.master}, and SPARK_REMOTE or spark.remote names a Spark Connect server as "
            "well; use the server: --set spark.master=null, or leave it out"
        )
    conf = {**_conf(settings, home=home), **conf}
    _start_jvm(conf, log=home.spill / JVM_LOG, loopback=_on_loopback(settings.master))
    return _start(SparkSession.builder.appName("tessera").master(settings.master).config(map=conf).getOrCreate)


def import_client() -> None:
    """Imports pyspark whole, before a thread needs it: of two that import it at once, one may be given half of it."""
    import pyspark.sql  # noqa: F401


def start_early(settings: SparkSettings, *, home: Home) -> None:
    """Starts a local JVM and its context, for a thread beside work that needs no Spark; `session` then takes a second.

    What fails here fails again in `session`, which says so.
    """
    from pyspark import SparkConf, SparkContext

    if settings.master is None or SparkContext._active_spark_context is not None:
        return
    conf = {**_conf(settings, home=home), **_resolved(settings.conf)}
    with suppress(Exception):
        _start_jvm(conf, log=home.spill / JVM_LOG, loopback=_on_loopback(settings.master))
        asked = SparkConf().setMaster(settings.master).setAppName("tessera").setAll(list(conf.items()))
        _start(lambda: SparkContext.getOrCreate(asked))


def has_started() -> bool:
    """Whether there is a session that `session` or `start_early` started."""
    return _started is not None or connect.is_open()


def stop() -> None:
    """Stops what `session` or `start_early` started and nothing else: a platform's session lives on."""
    global _started
    connect.close_session()
    started, _started = _started, None
    if started is None:
        return
    from pyspark import SparkContext

    if started is SparkContext._active_spark_context:
        (_existing_session() or started).stop()


def end_jvm() -> None:
    """Ends the JVM of this process, and waits for its end."""
    from pyspark import SparkContext

    stop()
    gateway, SparkContext._gateway, SparkContext._jvm = SparkContext._gateway, None, None
    if gateway is not None:
        gateway.shutdown()
        gateway.proc.stdin.close()
        gateway.proc.wait()


def let_go(home: Home) -> bool:
    """Ends the session of this process that spills into the home, if there is one: whether now none does."""
    ours = [file for file in _locks if Path(file.name) == home.spill_lock]
    if ours:
        stop()
    for file in ours:
        _locks.remove(file)
        file.close()
    return not is_shared_or_held(home.spill_lock)


def _check_platform(settings: SparkSettings) -> None:
    named = {"spark.master", "spark.remote"} & set(settings.conf)
    if not named and not any(os.environ.get(variable) for variable in PLATFORM_VARIABLES):
        raise ConfigError(
            "spark.master is null, which leaves Spark to the platform, but there is no session, spark-submit or "
            "SPARK_HOME here; run it there, or give a master: --set 'spark.master=local[*]'"
        )


def _silence_queries() -> None:
    from pyspark.logger import PySparkLogger

    for name in QUERY_LOGGERS:
        PySparkLogger.getLogger(name).disabled = True


def _start(make: Callable[[], T]) -> T:
    """Calls `make`, and notes the context that it starts, if there was none before."""
    global _started
    from pyspark import SparkContext

    before = SparkContext._active_spark_context
    made = make()
    if before is None:
        _started = SparkContext._active_spark_context
    return made


def _existing_session() -> "SparkSession | None":
    """The session of this thread, or of the whole process."""
    from pyspark.errors import PySparkRuntimeError
    from pyspark.sql import SparkSession

    try:
        return SparkSession.active()
    except PySparkRuntimeError:
        return None


def _start_jvm(conf: dict[str, str], *, log: Path, loopback: bool) -> None:
    """Starts the JVM that the session will use, its chatter in `log` instead of the terminal."""
    from pyspark import SparkConf, SparkContext
    from pyspark.errors import PySparkRuntimeError
    from pyspark.java_gateway import launch_gateway

    if SparkContext._gateway is not None:
        _hold(log.parent / ".lock")
        return
    _prepare_environment(loopback=loopback)
    _hold(log.parent / ".lock")
    with log.open("wb") as file:
        try:
            gateway = launch_gateway(SparkConf().setAll(list(conf.items())), popen_kwargs={"stderr": file})
        except PySparkRuntimeError:
            raise SetupError(
                f"the Java of Spark did not start; {log} has its reason; see also: tessera doctor"
            ) from None
    SparkContext._ensure_initialized(gateway=gateway)


def _hold(lock: Path) -> None:
    """Says to `tessera gc`, for as long as this process or its session lives, that the spill folder is in use."""
    if any(file.name == str(lock) for file in _locks):
        return
    file = lock.open("a")
    fcntl.flock(file, fcntl.LOCK_SH)
    _locks.append(file)


def jars_folder() -> Path:
    """Where the Delta jars lie: `TESSERA_JARS`, or a folder of the Python environment."""
    return Path(os.environ.get("TESSERA_JARS") or Path(sys.prefix) / "share" / "tessera" / "jars")


def jar_files() -> list[Path]:
    """The Delta jars, each present and with its checked-in SHA-256.

    Raises:
        SetupError: one is absent or differs.
    """
    files = []
    for coordinate, expected in JARS.items():
        file = jars_folder() / _jar_name(coordinate)
        if not file.is_file():
            raise SetupError(f"{file} is absent; fetch the Delta jars once: tessera jars")
        if (found := sha256_file(file)) != expected:
            raise SetupError(f"{file} has SHA-256 {found}, wanted {expected}; delete it and run: tessera jars")
        files.append(file)
    return files


def fetch_jars() -> list[Path]:
    """Fetches what `jar_files` wants through Ivy, with the machine's own repository settings; once.

    Spark's own resolver is asked for these artefacts alone: Delta needs none of its other declared dependencies.
    """
    try:
        return jar_files()
    except SetupError:
        pass
    _prepare_environment()
    folder = jars_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        for name, path in _resolve(scratch=Path(scratch)).items():
            partial = folder / f".{name}.{os.getpid()}"
            shutil.copyfile(path, partial)
            partial.replace(folder / name)
    return jar_files()


def archive_path() -> Path | None:
    """Where the archive of the classes that this Java loads for this pyspark and these jars is, or would be; None where
    the Java has none of its own classes to build on. See `class_archive`."""
    import pyspark

    java = find_java()
    if not (java / "lib" / "server" / "classes.jsa").exists():
        return None
    release = (java / "release").read_bytes() if (java / "release").exists() else b""
    place = str((java, Path(pyspark.__file__).parent, jars_folder()))
    known = sha256(release + "\n".join([place, pyspark.__version__, *JARS.values()]).encode()).hexdigest()
    return jars_folder() / f"classes-{known[:16]}.jsa"


def _resolved(conf: Mapping[str, str]) -> dict[str, str]:
    return {key: resolve_secret(value) for key, value in conf.items()}


def _prepare_environment(*, loopback: bool = True) -> None:
    """What a JVM of ours and its Python workers read from the environment."""
    os.environ["JAVA_HOME"] = str(find_java())
    os.environ["PYSPARK_PYTHON"] = sys.executable
    os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable
    if loopback:
        os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    package_root = str(Path(__file__).parents[1])
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if package_root not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [package_root, *paths]))


def _on_loopback(master: str) -> bool:
    """Whether driver and executors are all on this machine."""
    return master.startswith(("local", "spark://127.0.0.1:", "spark://localhost:"))


def _conf(settings: SparkSettings, *, home: Home) -> dict[str, str]:
    """Delta and quiet for any master; for one machine also few partitions, spill inside the home, loopback only."""
    home.spill.mkdir(parents=True, exist_ok=True)
    jars = [str(file) for file in jar_files()]
    conf = {
        "spark.jars": ",".join(jars),
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        "spark.driver.memory": settings.driver_memory,
        "spark.sql.execution.arrow.maxRecordsPerBatch": "2000",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.warehouse.dir": str(home.spill / "warehouse"),
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.log.level": "ERROR",
    }
    if settings.master is None or not _on_loopback(settings.master):
        return conf
    return conf | {
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.extraJavaOptions": jvm_options(home, archive=_archive_option()),
        "spark.driver.extraClassPath": os.pathsep.join(jars),
        "spark.default.parallelism": "4",
        "spark.sql.shuffle.partitions": "4",
        "spark.databricks.delta.snapshotPartitions": "2",
        "spark.sql.sources.parallelPartitionDiscovery.parallelism": "2",
        "spark.databricks.delta.vacuum.parallelDelete.parallelism": "2",
        "spark.local.dir": str(home.spill),
    }


def jvm_options(home: Home, *, archive: str) -> str:
    """Options of a local JVM.

    Args:
        archive: those that say which archive of classes it maps, or writes.
    """
    return f"{JVM_OPTIONS} {archive} -Dderby.system.home={home.spill}"


def _archive_option() -> str:
    """Without the warning of a JVM that cannot use the archive, as one with more on its class path cannot."""
    archive = archive_path()
    if archive is None or not archive.exists():
        return ""
    return f"-XX:SharedArchiveFile={archive} -Xlog:disable -Xlog:all=warning:stderr"


def _resolve(*, scratch: Path) -> dict[str, Path]:
    """Asks Spark's Ivy for JARS without their dependencies; file name -> file in `scratch`."""
    from pyspark import SparkConf
    from pyspark.java_gateway import launch_gateway

    trust = f"-Djavax.net.ssl.trustStore={_trust_store(scratch)} -Djavax.net.ssl.trustStorePassword={TRUST_PASSWORD}"
    conf = SparkConf().set("spark.driver.extraJavaOptions", trust)
    log = scratch / "ivy.log"
    gateway = launch_gateway(conf, popen_kwargs={"stderr": subprocess.DEVNULL})
    try:
        jvm = gateway.jvm
        stream = jvm.java.io.PrintStream(str(log))
        utils = jvm.org.apache.spark.util.MavenUtils
        nothing = jvm.scala.Option.empty()
        no_exclusions = getattr(utils, "resolveMavenCoordinates$default$5")()
        settings = utils.buildIvySettings(nothing, jvm.scala.Option.apply(str(scratch)), False, stream)
        utils.resolveMavenCoordinates(",".join(JARS), settings, nothing, False, no_exclusions, False, stream)
    except Exception as error:
        said = log.read_text(encoding="utf-8") if log.exists() else str(error)
        reason = next((line.strip() for line in said.splitlines() if "error" in line and "::" not in line), "no reason")
        names = ", ".join(_jar_name(coordinate) for coordinate in JARS)
        raise SetupError(
            f"the Delta jars could not be fetched ({reason[:300]}); put {names} into {jars_folder()}"
        ) from None
    finally:
        gateway.shutdown()
        gateway.proc.stdin.close()
    found = {}
    for coordinate in JARS:
        name = _jar_name(coordinate)
        matches = list(scratch.rglob(f"*{name}"))
        if not matches:
            raise SetupError(f"{coordinate} was not found by Ivy; put {name} into {jars_folder()}")
        found[name] = matches[0]
    return found


def _trust_store(folder: Path) -> Path:
    """The authorities that this machine's own TLS trusts, as a key store that Java reads: the wheel's Java has its own
    list, and would refuse an organisation's mirror or proxy that everything else here accepts."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, pkcs12

    entries = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some authorities have numbers that today's rules forbid
        for number, authority in enumerate(ssl.create_default_context().get_ca_certs(binary_form=True)):
            with suppress(ValueError):
                certificate = x509.load_der_x509_certificate(authority)
                entries.append(pkcs12.PKCS12Certificate(certificate, str(number).encode()))
    store = folder / "trust.p12"
    store.write_bytes(pkcs12.serialize_java_truststore(entries, BestAvailableEncryption(TRUST_PASSWORD.encode())))
    return store


def _jar_name(coordinate: str) -> str:
    _, artefact, version = coordinate.split(":")
    return f"{artefact}-{version}.jar"
