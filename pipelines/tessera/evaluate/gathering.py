"""All that a model is asked: files and tables, built-in benchmarks, the one problem, held-out text.

A task that cannot be made is a failure with its reason, so that a gauntlet can say that it is incomplete. Held-out
documents are read once, without a JVM, at the version that the model's shard set was written from.
"""

import heapq
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from tessera import lineage, tables
from tessera.errors import ConfigError, TesseraError
from tessera.evaluate.builtin.document import Document, Unavailable
from tessera.evaluate.builtin.make import make
from tessera.evaluate.contamination import Contamination, find
from tessera.evaluate.gauntlet import Failure, read_gauntlet
from tessera.evaluate.problem import read_problem
from tessera.evaluate.settings import BUILT_IN, PROBLEM, BuiltIn, EvaluateSettings, TaskSettings
from tessera.evaluate.source_rows import SourceTable, attributes
from tessera.evaluate.task import Passage, Task
from tessera.evaluate.task_files import read_task
from tessera.home import Home
from tessera.lineage import TableVersion

HELDOUT = "heldout"
"""The task whose items are held-out documents: bits per byte by document."""
HELDOUT_DOCUMENTS = 1000
"""At most, the first by a hash."""
MOST_DOCUMENTS = 20_000
"""Held-out documents in memory, of which benchmarks are made."""
BATCH = 1000

Tasks = Mapping[str, Task | Failure]


class Gathering:
    """The tasks of one configuration over one version of the documents.

    Args:
        sources: the tables that the documents were made of, as far as they can be read here.
        conf: the folder of base.yaml, where the gauntlet's file and its paths lie.

    Raises:
        ConfigError: two tasks have one name, or the gauntlet's file is wrong.
    """

    def __init__(
        self, home: Home, *, settings: EvaluateSettings, documents: TableVersion, sources: Sequence[SourceTable],
        conf: Path,
    ) -> None:  # fmt: skip
        self.home = home
        self.settings = settings
        self.table = documents
        self.sources = sources
        self.conf = conf
        self.gauntlet = read_gauntlet(conf / settings.gauntlet, tasks=settings.tasks) if settings.gauntlet else None
        _refuse_twins([*(one.name for one in self._from_files), *self._built_in])

    @cached_property
    def documents(self) -> list[Document]:
        """The held-out ones."""
        return read_documents(self.home, table=self.table, sources=self.sources)

    def identity(self) -> dict[str, Any]:
        """What the tasks are made of, besides settings and documents: for a fingerprint. No row is read."""
        found = {one.name: self._identity_of(one) for one in self._from_files}
        problem = self.settings.problem
        if problem is not None:
            found[PROBLEM] = _version_of(self.home, problem.table, version=problem.version)
        gauntlet = lineage.sha256_file(self.conf / self.settings.gauntlet) if self.settings.gauntlet else ""
        return {"files": found, "gauntlet": gauntlet}

    def tasks(self) -> Tasks:
        """Task, or why there is none, by name: built-in ones, files, the problem, held-out text."""
        found: dict[str, Task | Failure] = {}
        for name in self._built_in:
            found[name] = self._made(name)
        for one in self._from_files:
            try:
                found[one.name] = read_task(one, home=self.home, near=self.conf)
            except TesseraError as error:
                found[one.name] = Failure(str(error))
        if self.settings.problem is not None:
            found[PROBLEM] = self._problem()
        if any(one.task == HELDOUT for one in self.settings.gate.not_worse):
            found[HELDOUT] = heldout_task(self.documents) if self.documents else Failure("no document is held out")
        return found

    def contaminated(self, tasks: Tasks) -> Mapping[str, Contamination]:
        """Items whose text stands in the training split, by task; held-out text itself is left out."""
        checked = {name: one for name, one in tasks.items() if isinstance(one, Task) and name != HELDOUT}
        return find(checked, documents=self.home.resolve(self.table.path), version=self.table.version)

    @property
    def _built_in(self) -> tuple[BuiltIn, ...]:
        of_gauntlet = self.gauntlet.built_in if self.gauntlet else ()
        return tuple(name for name in BUILT_IN if name in self.settings.built_in or name in of_gauntlet)

    @property
    def _from_files(self) -> tuple[TaskSettings, ...]:
        return (*(self.gauntlet.tasks if self.gauntlet else ()), *self.settings.tasks)

    def _made(self, name: BuiltIn) -> Task | Failure:
        try:
            return make(name, documents=self.documents, n=self.settings.items, seed=self.settings.seed)
        except Unavailable as error:
            return Failure(str(error))

    def _problem(self) -> Task | Failure:
        assert self.settings.problem is not None
        try:
            return read_problem(self.settings.problem, home=self.home, heldout=self._heldout_ids())
        except TesseraError as error:
            return Failure(str(error))

    def _heldout_ids(self) -> set[str]:
        dataset = tables.dataset(self.home.resolve(self.table.path), version=self.table.version)
        return {*dataset.to_table(columns=["doc_id"], filter=pc.field("split") == "heldout")["doc_id"].to_pylist()}

    def _identity_of(self, one: TaskSettings) -> Any:
        if one.table is not None:
            return _version_of(self.home, one.table, version=one.version)
        assert one.path is not None
        path = next((found for found in (self.conf / one.path, Path(one.path)) if found.exists()), None)
        if path is None:
            return "absent"
        return _version_of(self.home, str(path), version=one.version) if path.is_dir() else lineage.sha256_file(path)


def read_documents(home: Home, *, table: TableVersion, sources: Sequence[SourceTable]) -> list[Document]:
    """The held-out documents, at most MOST_DOCUMENTS of them, in order of doc_id, with the other columns of their rows.

    Ids are hashes, so that the first ones are a fair sample. Of a conversation the text is what the assistant says, of
    a preference the chosen answer.
    """
    dataset = tables.dataset(home.resolve(table.path), version=table.version)
    columns = [name for name in ("doc_id", "text", "messages", "chosen") if name in dataset.schema.names]
    batches = dataset.to_batches(columns=columns, filter=pc.field("split") == "heldout", batch_size=BATCH)
    rows = ((row["doc_id"], _text_of(row)) for batch in batches for row in batch.to_pylist())
    texts = dict(heapq.nsmallest(MOST_DOCUMENTS, ((doc_id, text) for doc_id, text in rows if text)))
    known = attributes(sources, doc_ids=texts.keys())
    return [Document(doc_id, texts[doc_id], known.get(doc_id, {})) for doc_id in sorted(texts)]


def _text_of(row: Mapping[str, Any]) -> str:
    said = (one["content"] for one in row.get("messages") or () if one["role"] == "assistant")
    return row["text"] or "\n\n".join(said) or row.get("chosen") or ""


def heldout_task(documents: Iterable[Document]) -> Task:
    """Held-out documents as passages, at most HELDOUT_DOCUMENTS of them, whichever tokenizer reads them."""
    chosen = heapq.nsmallest(HELDOUT_DOCUMENTS, documents, key=lambda one: lineage.sha256_json(one.doc_id))
    items = tuple(Passage(one.text, doc_id=one.doc_id) for one in sorted(chosen, key=lambda one: one.doc_id))
    return Task(HELDOUT, kind="perplexity", items=items)


def _version_of(home: Home, place: str, *, version: int | None) -> Any:
    path = home.tables / place if "/" not in place else Path(place)
    return tables.open_table(path, version=version).version() if tables.exists(path) else "absent"


def _refuse_twins(names: Iterable[str]) -> None:
    seen: set[str] = {PROBLEM, HELDOUT}
    for name in names:
        if name in seen:
            raise ConfigError(f"evaluate: two tasks are called {name}; give one of them another name")
        seen.add(name)
