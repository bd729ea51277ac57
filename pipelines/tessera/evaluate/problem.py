"""The one problem: rows of the organisation's own table, a template for the prompt and one for what should come.

Rows without a reference are left out and counted, equal items count once, and the first by the hash of their content
are taken, so that the items do not depend on the order of rows. Costs one read of the columns that are named.

A row is held out where its document is: its doc_id is computed as prepare does, from the source's name and the row
key, without Spark.
"""

import random
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tessera import tables
from tessera.errors import ConfigError, SourceError
from tessera.evaluate.settings import PROBLEM, ProblemSettings
from tessera.evaluate.source_rows import doc_id_of
from tessera.evaluate.task import Choices, Completion, Decoding, Item, Question, Task, key_of
from tessera.home import Home
from tessera.prepare.template import fill, names

NUM_CHOICES = 5
BATCH = 4096
"""Rows that are Python objects at a time."""


@dataclass(frozen=True)
class Pair:
    """A row that can be asked."""

    prompt: str
    reference: str
    doc_id: str | None


@dataclass(frozen=True)
class Rows:
    """The rows of a problem's table, counted."""

    pairs: tuple[Pair, ...]
    """Each prompt and reference once, by the hash of their content."""
    num_rows: int
    """That meet `where` and are of the split."""
    num_without: int
    """Of them without a prompt or a reference: a column is null, or all is blank."""


def read_problem(settings: ProblemSettings, *, home: Home, heldout: Collection[str], source: str | None = None) -> Task:
    """The task of the one problem.

    Args:
        heldout: doc_ids of the held-out documents.
        source: the name in prepare.sources of the table; without it the table's own.

    Raises:
        ConfigError: a column that is not there, or a split that cannot be told.
        SourceError: nothing is there, or too few rows.
    """
    rows = read_rows(settings, home=home, heldout=heldout, source=source)
    if not rows.pairs:
        why = (
            f"{rows.num_rows} rows of it are of the split {settings.split}, {rows.num_without} of them without a "
            "prompt or reference"
        )
        hint = "" if settings.split == "all" else " (its id is that of prepare.sources), or set split: all"
        raise SourceError(
            f"evaluate.problem: no row of {settings.table} can be asked: {why}; look at where and the templates{hint}"
        )
    taken = rows.pairs[: settings.limit]
    decoding = Decoding(max_tokens=settings.max_tokens, stop=settings.stop, seed=settings.seed)
    match settings.metric:
        case "choice":
            items = _choices(taken, among=rows.pairs, settings=settings)
            return Task(PROBLEM, kind="multiple_choice", items=items, metric="acc_norm")
        case "bits_per_byte":
            completions = tuple(Completion(one.prompt, _after(one), doc_id=one.doc_id) for one in taken)
            return Task(PROBLEM, kind="language_modeling", items=completions, metric="bits_per_byte")
    questions = tuple(Question(one.prompt, (one.reference,), doc_id=one.doc_id) for one in taken)
    return Task(PROBLEM, kind="generation", items=questions, metric=settings.metric, decoding=decoding)


def read_rows(settings: ProblemSettings, *, home: Home, heldout: Collection[str], source: str | None = None) -> Rows:
    """The rows that a problem asks for."""
    if settings.split == "heldout" and settings.id is None:
        raise ConfigError(
            "evaluate.problem: split heldout needs id, the column of the row key in prepare.sources, to know the rows "
            "of held-out documents; name it, or set split: all"
        )
    path = _place(settings.table, home=home)
    dataset = tables.dataset(path, version=settings.version)
    wanted = _columns(settings, columns=dataset.schema.names)
    held, name = frozenset(heldout), source or path.name
    pairs: dict[str, Pair] = {}
    num_rows = num_without = 0
    condition = _condition(settings, schema=dataset.schema)
    for batch in dataset.to_batches(columns=wanted, filter=condition, batch_size=BATCH):
        for row in batch.to_pylist():
            key = row[settings.id] if settings.id is not None else None
            doc_id = doc_id_of(name, key={settings.id: key}) if settings.id is not None and key is not None else None
            if settings.split == "heldout" and doc_id not in held:
                continue
            num_rows += 1
            prompt, reference = fill(settings.prompt, row), fill(settings.reference, row)
            if not prompt or not reference or not prompt.strip() or not reference.strip():
                num_without += 1
                continue
            pair = Pair(prompt, reference.strip(), doc_id)
            place = key_of(Question(pair.prompt, (pair.reference,)))
            if place not in pairs or (doc_id or "") < (pairs[place].doc_id or ""):
                pairs[place] = pair
    return Rows(tuple(pairs[place] for place in sorted(pairs)), num_rows=num_rows, num_without=num_without)


def _place(table: str, *, home: Home) -> Path:
    """A table of the home by name, else a folder."""
    found = home.tables / table if "/" not in table else Path(table).expanduser()
    if not tables.exists(found):
        raise SourceError(
            f"evaluate.problem: {table} is no table of the home and no folder of a Delta table; mend evaluate.problem."
            "table"
        )
    return found


def _columns(settings: ProblemSettings, *, columns: Sequence[str]) -> list[str]:
    """The columns that are read.

    Raises:
        ConfigError: one is not there.
    """
    of_templates = (names(template, columns=columns) for template in (settings.prompt, settings.reference))
    wanted = dict.fromkeys([name for some in of_templates for name in some] + [*settings.where])
    if settings.id is not None:
        wanted[settings.id] = None
    if absent := [name for name in wanted if name not in columns]:
        raise ConfigError(
            f"evaluate.problem names the column {absent[0]}; {settings.table} has {', '.join(sorted(columns))}"
        )
    return [*wanted]


def _condition(settings: ProblemSettings, *, schema: pa.Schema) -> Any:
    """Of Arrow: that each column of `where` has its value; None lets all pass."""
    found: Any = None
    for name, value in settings.where.items():
        try:
            typed = pa.scalar(value).cast(schema.field(name).type)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            raise ConfigError(
                f"evaluate.problem.where: {name} is of type {schema.field(name).type}, which its value is not; mend it"
            ) from None
        one = pc.field(name) == typed
        found = one if found is None else found & one
    return found


def _after(pair: Pair) -> str:
    """The reference as a continuation of the prompt."""
    return pair.reference if pair.prompt[-1:].isspace() else f" {pair.reference}"


def _choices(taken: Sequence[Pair], *, among: Sequence[Pair], settings: ProblemSettings) -> tuple[Item, ...]:
    """Each row's reference among those of other rows; none that is right for the same prompt."""
    right: defaultdict[str, set[str]] = defaultdict(set)
    for one in among:
        right[one.prompt].add(_plain(one.reference))
    known = sorted({_plain(one.reference): one.reference for one in among}.values())
    return tuple(_choice(one, known=known, right=right[one.prompt], seed=settings.seed) for one in taken)


def _choice(pair: Pair, *, known: Sequence[str], right: Collection[str], seed: int) -> Choices:
    drawn = random.Random(f"{seed} {key_of(Question(pair.prompt, (pair.reference,)))}")
    few = drawn.sample(known, min(len(known), NUM_CHOICES - 1 + len(right)))
    wrong = [one for one in few if _plain(one) not in right][: NUM_CHOICES - 1]
    if len(wrong) < NUM_CHOICES - 1:
        raise SourceError(
            f"evaluate.problem: {len(known)} different references, wanted {NUM_CHOICES} for a choice; take another "
            "metric, or more rows"
        )
    gold = drawn.randrange(NUM_CHOICES)
    shown = [*wrong[:gold], pair.reference, *wrong[gold:]]
    return Choices(
        tuple((pair.prompt, _after(Pair(pair.prompt, one, None))) for one in shown), gold=gold, doc_id=pair.doc_id
    )


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
