"""Documents, decoded samples, runs, metrics and evaluations as pandas frames, for notebooks. No JVM, no torch.

Every function takes a home and, where something has versions, the newest by default. What is returned is read whole
into memory: give `limit` where a table is large. Frames of documents and samples hold private text; nothing is logged.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from tessera import tables
from tessera.errors import UserError
from tessera.home import Home
from tessera.lineage import ServeRecord, TrainRecord
from tessera.results import Results
from tessera.shard import manifest, tokenizer
from tessera.shard.format import mds
from tessera.shard.run_manifest import shard_files
from tessera.train.metrics import Tail
from tessera.train.run import RunFolder


def documents(
    home: Home, *, version: int | None = None, columns: Sequence[str] | None = None, limit: int | None = None
) -> pd.DataFrame:
    """The documents at a version, by doc_id; the first `limit` of them.

    Raises:
        SourceError: no documents yet, or no such version.
    """
    table = tables.open_table(home.documents, version=version)
    chosen = ", ".join(f'"{name}"' for name in columns) if columns else "*"
    cut = f" LIMIT {int(limit)}" if limit is not None else ""
    sql = f"SELECT {chosen} FROM rows ORDER BY doc_id{cut}"
    return _frame(tables.query(home.documents, version=table.version(), sql=sql))


def samples(home: Home, *, name: str, version: int | None = None, split: str = "train", count: int = 4) -> pd.DataFrame:
    """The first `count` packed sequences of a shard set, decoded: a row for each document in them.

    Returns:
        columns `file`, `sample` (in that file), `document` (in the sequence), `first` and `tokens` (its place and
        length in the sequence, the end-of-document token counted), `padding` (whether it is the padding), `text`.

    Raises:
        ShardSetError: there is no such set or version.
    """
    record = manifest.read_record(home, name=name, version=version)
    words = tokenizer.load(home.resolve(record.tokenizer.path))
    folder = manifest.set_folder(home, name=name)
    rows: list[dict[str, Any]] = []
    left = count
    for file in shard_files(manifest.read_manifest(home, name, record.manifest.version), split=split):
        for number, sample in enumerate(mds.read_samples(folder / file.file)):
            if left == 0:
                return pd.DataFrame(rows)
            place = {"file": file.file, "sample": number}
            rows += [{**place, **part} for part in _parts(sample, words=words)]
            left -= 1
    return pd.DataFrame(rows)


def runs(home: Home) -> pd.DataFrame:
    """The finished runs of the ledger, oldest first, with their size, outcome and model settings."""
    rows = [
        {"at": row["at"], **_facts(TrainRecord.from_json(row["record"])), **_recipe(home, row)}
        for row in Results(home).ledger.rows()
        if row["stage"] == "train" and row["status"] == "done"
    ]
    return pd.DataFrame(rows)


def metrics(home: Home, *, run: str) -> pd.DataFrame:
    """What a run logged at each step, by step; `run` is the folder's name or a record's `run`.

    Raises:
        UserError: there is no such run.
    """
    folder = RunFolder(home.runs / run.rpartition("/")[2])
    if not folder.metrics.is_file():
        known = ", ".join(sorted(path.name for path in home.runs.glob("*"))) or "none"
        raise UserError(f"{home.runs} holds no run {run!r} with metrics; it holds: {known}")
    return pd.DataFrame(list(Tail(folder.metrics).read())).set_index("step")


def evaluations(home: Home) -> pd.DataFrame:
    """The verdicts in `tables/evaluations`."""
    return _frame(tables.read(home.evaluations))


def lineage(home: Home, *, model: str, version: int | None = None) -> pd.DataFrame:
    """From a registered model back to the tables: a row a step, with the name, the version and what identifies it.

    Raises:
        UserError: this home registered no such model version.
    """
    results = Results(home)
    serve = _served(results, model=model, version=version)
    evaluate = results.evaluation_of(serve)
    train = results.train_of(evaluate)
    shard = results.shard_of(train)
    prepare = results.prepare_of(shard)
    steps = [
        ("model", serve.model, serve.version, serve.weights_sha256),
        ("evaluation", evaluate.table.name, evaluate.table.version, evaluate.fingerprint),
        ("run", train.run.rpartition("/")[2], None, train.fingerprint),
        ("tokenizer", train.tokenizer.path, None, train.tokenizer.sha256),
        ("shard set", shard.name, shard.manifest.version, shard.fingerprint),
        ("documents", prepare.table.name, prepare.table.version, prepare.fingerprint),
        *(("source", table.name, table.version, table.table_id) for table in prepare.inputs),
    ]
    frame = pd.DataFrame(steps, columns=["what", "name", "version", "identity"])
    return frame.astype({"version": "Int64"})


def ledger(home: Home) -> pd.DataFrame:
    """Every stage run: what went in, what came out, how long it took; oldest first."""
    return pd.DataFrame(Results(home).ledger.rows())


def _served(results: Results, *, model: str, version: int | None) -> ServeRecord:
    for row in reversed(results.ledger.rows()):
        if row["stage"] == "serve" and row["status"] == "done":
            record = ServeRecord.from_json(row["record"])
            if record.model == model and version in (None, record.version):
                return record
    wanted = model if version is None else f"{model} version {version}"
    raise UserError(f"{results.home.root} registered no {wanted}; register a run: tessera serve")


def _frame(table: pa.Table) -> pd.DataFrame:
    return table.to_pandas()


def _parts(sample: dict[str, Any], *, words: tokenizer.Tokenizer) -> list[dict[str, Any]]:
    """The documents of one packed sequence, and its padding: end tokens from the last start on."""
    tokens, starts = sample["tokens"], [int(start) for start in sample["starts"]]
    parts = []
    for number, (first, last) in enumerate(zip(starts, [*starts[1:], len(tokens)], strict=True)):
        piece = tokens[first:last]
        padding = bool(np.all(piece == words.end_id))
        text = "" if padding else words.decode([int(token) for token in piece if token != words.end_id])
        parts.append({"document": number, "first": first, "tokens": last - first, "padding": padding, "text": text})
    return parts


def _facts(record: TrainRecord) -> dict[str, Any]:
    return {
        "run": record.run.rpartition("/")[2], "shard_set": f"{record.shard_set.name}@{record.shard_set.version}",
        "steps": record.steps, "train_tokens": record.train_tokens, "parameters": record.parameters,
        "ranks": record.ranks, "seconds": record.seconds, "run_id": record.run_id,
    }  # fmt: skip


def _recipe(home: Home, row: dict[str, Any]) -> dict[str, Any]:
    """Held-out bits per byte and the settings of a run whose folder is still here."""
    folder = RunFolder(home.resolve(json.loads(row["record"])["run"]))
    result = folder.read_result()
    if result is None:
        return {}
    settings = folder.read_spec().settings.model_dump(mode="json")
    chosen = {f"model.{key}": value for key, value in settings["model"].items() if value is not None}
    return {"bits_per_byte": result.bits_per_byte_after, "batch_size": settings["batch_size"], **chosen}
