"""`tables/audit`: who read which tables, for what purpose and into what. It only grows, and shows when it did not.

An entry a stage run, appended before the stage publishes: the rows were read by then. Each holds the hash of the entry
before, and with TESSERA_AUDIT_KEY in the environment a mac. The newest entry's hash, the head, goes into the stage's
record, so that a chain that was made anew or cut at its end differs from what the records say. Appending costs a tenth
of a second; verifying reads every entry once. No JVM, and never text of a row. See docs/audit.md.
"""

import getpass
import hmac
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import CommitProperties, DeltaTable
from deltalake.exceptions import CommitFailedError, DeltaError

from tessera import delta_log, lineage, publish, tables
from tessera.errors import Conflict, SourceError
from tessera.home import Home
from tessera.lineage import AuditHead, Record, TableVersion

FORMAT = 1
TABLE = "audit"
SCHEMA = pa.schema(
    [("format", pa.int64()), ("seq", pa.int64()), ("at", pa.string()), ("who", pa.string()), ("stage", pa.string()),
     ("inputs", pa.string()), ("rows", pa.int64()), ("purpose", pa.string()), ("output", pa.string()),
     ("fingerprint", pa.string()), ("previous", pa.string()), ("hash", pa.string()), ("mac", pa.string())]
)  # fmt: skip
SEALS = ("hash", "mac")
"""What is made of the other fields."""
PROPERTIES = {
    **publish.UNLOGGED_TEXT, "delta.appendOnly": "true", "delta.dataSkippingStatsColumns": "seq,at,who,stage,hash"
}  # fmt: skip
"""Of the table: Delta's own writers then refuse to delete or change rows."""

KEY, USER = "TESSERA_AUDIT_KEY", "TESSERA_USER"
"""Environment variables: the key of the macs, and a name that stands for the system's user."""
ZEROS = "0" * 64
"""What the first entry holds as the hash of the one before."""
ATTEMPTS = 100
"""To append. Each that fails means that another process got in."""
HARMLESS = ("CREATE TABLE", "WRITE Append", "OPTIMIZE", "VACUUM START", "VACUUM END")
"""Operations of Delta that take no row out."""


@dataclass(frozen=True)
class Audited:
    """What `verify` found."""

    entries: int
    head: AuditHead | None
    """The newest entry; null where there is none."""
    heads: int
    """Heads that the entries were compared with."""
    macs: int
    """Macs that were checked; none without the key."""
    problems: tuple[str, ...]
    """A line each: which entry, what was found, what was expected. None where nothing was tampered with."""


def path(home: Home) -> Path:
    return home.tables / TABLE


def append(
    home: Home,
    *,
    stage: str,
    inputs: Sequence[TableVersion],
    rows: int,
    purpose: str | None,
    output: TableVersion,
    fingerprint: str,
) -> AuditHead:
    """Adds the entry of a stage run in one commit. To be called when rows were read, before the stage publishes.

    A run that dies between the two leaves an entry whose output was never published: that is true, and stays.

    Args:
        rows: how many were read from the inputs.
        output: what the stage is about to publish.

    Returns:
        the entry's head, which belongs into the stage's record.

    Raises:
        Conflict: other processes appended first, ATTEMPTS times.
        PublishingFailed: the commit could not be written.
        FormatError: a newer Tessera wrote the newest entry.
        SourceError: the table cannot be read.
    """
    said = {
        "format": FORMAT,
        "who": who(),
        "stage": stage,
        "inputs": json.dumps([one.model_dump(include={"name", "path", "version"}) for one in inputs], sort_keys=True),
        "rows": rows,
        "purpose": purpose,
        "output": f"{output.name}@{output.version}",
        "fingerprint": fingerprint,
    }
    for _ in range(ATTEMPTS):
        with suppress(Conflict):
            return _append(path(home), said=said)
    raise Conflict(f"{path(home)}: other processes appended first, {ATTEMPTS} times; run the command again")


def entries(home: Home) -> list[dict[str, Any]]:
    """All entries, oldest first.

    Raises:
        SourceError: the table cannot be read, or has other columns.
    """
    if not tables.exists(path(home)):
        return []
    version = tables.open_table(path(home)).version()
    found = tables.query(path(home), version=version, sql="SELECT * FROM rows ORDER BY seq")
    if {field.name: field.type for field in found.schema} != {field.name: field.type for field in SCHEMA}:
        raise SourceError(
            f"{path(home)} has the columns {', '.join(found.column_names)}, expected {', '.join(SCHEMA.names)}, of the "
            "types of an audit table; it was tampered with, or is of another Tessera"
        )
    rows: list[dict[str, Any]] = found.to_pylist()
    return rows


def verify(home: Home, *, heads: Iterable[AuditHead], keyed_from: int = 0) -> Audited:
    """Looks for every sign that an entry was changed, taken out, cut off or put in.

    Args:
        heads: which must be entries: those that records hold (`recorded_heads`), and copies from elsewhere.
        keyed_from: the first entry that must have a mac when the key is set. It has to come from outside the home:
            of macs that were taken away no trace is left in it.
    """
    known = sorted({(head.seq, head.hash) for head in heads})
    try:
        found = entries(home)
        problems = [*_of_log(path(home)), *_of_chain(found)]
    except SourceError as error:
        return Audited(entries=0, head=None, heads=len(known), macs=0, problems=(str(error),))
    keyed = [entry for entry in found if os.environ.get(KEY) and (entry["seq"] or 0) >= keyed_from]
    problems += [*_of_macs(keyed), *_of_heads(found, known=known)]
    newest = AuditHead(seq=found[-1]["seq"] or 0, hash=found[-1]["hash"] or "") if found else None
    return Audited(entries=len(found), head=newest, heads=len(known), macs=len(keyed), problems=tuple(problems))


def recorded_heads(home: Home) -> list[AuditHead]:
    """The heads in the records of all versions of documents and shard sets."""
    published = (home.documents, *sorted(home.shards.glob("*/manifest")))
    records = (record for table in published for record in publish.records(table))
    return [AuditHead.model_validate(record["audit"]) for record in records if record.get("audit")]


def who() -> str:
    """TESSERA_USER, else the user that the system knows; in a container without one its number."""
    try:
        name = os.environ.get(USER) or getpass.getuser()
    except (OSError, KeyError, ImportError):
        name = f"uid {os.getuid()}" if hasattr(os, "getuid") else "unknown"
    return os.fsencode(name).decode(errors="replace")


def _append(table: Path, *, said: Mapping[str, Any]) -> AuditHead:
    """One attempt; a Conflict when another process appended in between."""
    if not delta_log.commits(table):
        _create(table)
    publication = publish.begin(table, name=TABLE)
    before = _newest(table, version=publication.parent)
    place = {"seq": before["seq"] + 1, "previous": before["hash"]} if before else {"seq": 0, "previous": ZEROS}
    entry = {**said, **place, "at": lineage.now()}
    entry["hash"] = _digest(entry)
    entry["mac"] = _mac(entry["hash"])
    publish.commit(
        publication,
        pa.Table.from_pylist([entry], schema=SCHEMA),
        record=Record(stage="audit", fingerprint=entry["hash"], created=entry["at"]),
        stats_columns=PROPERTIES["delta.dataSkippingStatsColumns"],
        mode="append",
    )
    return AuditHead(seq=entry["seq"], hash=entry["hash"])


def _create(table: Path) -> None:
    """An empty table; nothing where another process was faster. What else goes wrong the first append says.

    Without `max_commit_retries` delta-rs makes the one that lost a second time, as version 1.
    """
    with suppress(CommitFailedError, DeltaError, OSError):
        DeltaTable.create(
            table, schema=SCHEMA, configuration=PROPERTIES, commit_properties=CommitProperties(max_commit_retries=0)
        )


def _newest(table: Path, *, version: int) -> dict[str, Any] | None:
    """The entry of the largest seq: Delta's statistics say in which file it is, and no other is read."""
    files = pa.table(tables.open_table(table, version=version).get_add_actions(flatten=True))
    newest = pc.max(files["max.seq"]).as_py() if "max.seq" in files.column_names else None
    if newest is None:
        return None
    entry: dict[str, Any]
    entry, *_ = tables.query(table, version=version, sql=f"SELECT * FROM rows WHERE seq = {newest:d}").to_pylist()
    lineage.check_format(entry["format"], known=FORMAT, what=f"the newest entry of {table}")
    return entry


def _digest(entry: Mapping[str, Any]) -> str:
    """SHA-256, hex, over the canonical JSON of an entry's fields but the seals."""
    return lineage.sha256_json({name: entry[name] for name in SCHEMA.names if name not in SEALS})


def _mac(digest: str) -> str | None:
    """HMAC-SHA256 (RFC 2104), hex, of the hash's hex digits; None without a key."""
    key = os.environ.get(KEY)
    return hmac.new(os.fsencode(key), digest.encode(), "sha256").hexdigest() if key else None


def _of_log(table: Path) -> Iterator[str]:
    """What Delta's log says was done beside appending."""
    known = delta_log.commits(table)
    for version in sorted(set(range(max(known, default=-1) + 1)) - set(known)):
        yield f"log version {version}: found no commit, expected one: logs of our tables are never cut"
    for version in known:
        info = delta_log.commit_info(table, version=version) or {}
        operation = str(info.get("operation", "nothing said"))
        if operation == "WRITE":
            operation = f"WRITE {info.get('operationParameters', {}).get('mode', '')}"
        if operation not in HARMLESS:
            yield f"log version {version}: found {_plain(operation)}, expected an append"


def _of_chain(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Entries that are missing or too many, or are not what their hash, or the next one's `previous`, says."""
    seq, before = 0, ZEROS
    for entry in found:
        here = entry["seq"] or 0
        name = f"entry {here}"
        if here > seq:
            yield f"{_span(seq, here - 1)}: found none, expected {here - seq}"
        elif here < seq:
            yield f"{name}: found more than one of this seq, expected entry {seq}"
        if here == seq and entry["previous"] != before:
            yield f"{name}: found previous hash {_short(entry['previous'])}, expected {_short(before)}"
        if entry["format"] not in (FORMAT, FORMAT - 1):
            yield f"{name}: found format {entry['format']}, expected {FORMAT}"
        if entry["hash"] != (digest := _digest(entry)):
            yield f"{name}: found fields of hash {_short(digest)}, expected {_short(entry['hash'])}"
        seq, before = here + 1, entry["hash"]


def _of_macs(keyed: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Macs that are absent or not of the key. The right one is never shown: it would sign a forged entry."""
    absent = [entry["seq"] or 0 for entry in keyed if entry["mac"] is None]
    for _, run in groupby(enumerate(absent), key=lambda pair: pair[1] - pair[0]):
        seqs = [seq for _, seq in run]
        yield f"{_span(seqs[0], seqs[-1])}: found no mac, expected one by {KEY}"
    for entry in keyed:
        right = _mac(_digest(entry)) or ""
        if entry["mac"] is not None and not hmac.compare_digest(entry["mac"].encode(), right.encode()):
            yield f"entry {entry['seq'] or 0}: found another mac, expected that of its fields by {KEY}"


def _of_heads(found: Sequence[Mapping[str, Any]], *, known: Sequence[tuple[int, str]]) -> Iterator[str]:
    """Heads that are no entries: the table was cut or made anew since."""
    hashes = {entry["seq"]: entry["hash"] for entry in found}
    for seq, expected in known:
        if hashes.get(seq) != expected:
            there = f"hash {_short(hashes[seq])}" if seq in hashes else "none"
            yield f"entry {seq}: found {there}, expected hash {_short(expected)}, which a record or a copy holds"


def _span(first: int, last: int) -> str:
    return f"entry {first}" if first == last else f"entries {first} to {last}"


def _short(digest: str | None) -> str:
    return _plain(digest or "none")[:16]


def _plain(text: str) -> str:
    """Text of others for one line of a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:100]
