"""Tasks from files of JSON lines and from Delta tables, in the formats that the field has.

    multiple_choice      query, choices, gold
    schema               context_options, continuation, gold
    language_modeling    context, continuation
    generation           context, answer, and maybe aliases
    code                 prompt, test, and maybe entry_point
    perplexity           text

`doc_id` may name the document that a row was made of. A template takes the place of the query, the context or the
prompt. Solved examples are the same for all rows, drawn by the seed; a row that is one of them gets the spare instead,
so that none sees its own answer and almost all share one beginning. Rows are held in memory: a benchmark is small.
"""

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tessera import tables
from tessera.errors import ConfigError, SourceError
from tessera.evaluate.settings import TaskSettings
from tessera.evaluate.task import (
    METRICS,
    Choices,
    Completion,
    Decoding,
    Item,
    Kind,
    Passage,
    Program,
    Question,
    Task,
)
from tessera.home import Home
from tessera.prepare.template import fill

Row = Mapping[str, Any]

WANTED: Mapping[Kind, tuple[str, ...]] = {
    "multiple_choice": ("query", "choices", "gold"),
    "schema": ("context_options", "continuation", "gold"),
    "language_modeling": ("context", "continuation"),
    "generation": ("context", "answer"),
    "code": ("prompt", "test"),
    "perplexity": ("text",),
}
"""The columns of each kind, in the order in which the first row's are looked for."""


def read_task(settings: TaskSettings, *, home: Home, near: Path | None = None) -> Task:
    """The task of a file or table.

    Args:
        near: a folder that relative paths are looked for in, before the working directory.

    Raises:
        ConfigError: the settings fit no such rows: an unknown metric, a template's column that is not there, too many
            solved examples.
        SourceError: nothing is there, or a row is not of its kind; says which.
    """
    where, rows = _read(settings, home=home, near=near)
    if not rows:
        raise SourceError(f"{where} has no rows; give a benchmark with at least one")
    kind = settings.kind or _guess(rows[0], where=where)
    metric = settings.metric or METRICS[kind][0]
    if metric not in (*METRICS[kind], *_more_metrics(kind, settings)):
        known = ", ".join((*METRICS[kind], *_more_metrics(kind, settings)))
        raise ConfigError(f"evaluate.tasks {settings.name}: metric {metric} is none of {kind}'s: {known}")
    for place, row in enumerate(rows):
        _check(row, kind=kind, place=f"{where}, row {place + 1}")
    shown = [_Shown(row, kind=kind, settings=settings) for row in rows]
    examples = _examples(shown, settings=settings, where=where)
    taken = shown[: settings.limit]
    return Task(
        settings.name,
        kind=kind,
        items=tuple(one.item(examples(place)) for place, one in enumerate(taken)),
        category=settings.category,
        metric=metric,
        decoding=Decoding(
            max_tokens=settings.max_tokens, stop=settings.stop, temperature=settings.temperature,
            samples=settings.samples, seed=settings.seed,
        ),
        baseline=settings.chance,
        ks=settings.ks,
    )  # fmt: skip


class _Shown:
    """A row as text: its own prompt, what solves it, and the item behind solved examples."""

    def __init__(self, row: Row, *, kind: Kind, settings: TaskSettings) -> None:
        self.row, self.kind, self.delimiter = row, kind, settings.delimiter
        self.template = settings.prompt

    @property
    def prompt(self) -> str:
        if self.template is not None:
            return fill(self.template, self.row) or ""
        match self.kind:
            case "multiple_choice":
                return str(self.row["query"])
            case "schema":
                return str(self.row["context_options"][self.row["gold"]])
            case "code":
                return str(self.row["prompt"])
        return str(self.row["context"])

    @property
    def solved(self) -> str:
        """The prompt with its answer, as an example."""
        match self.kind:
            case "multiple_choice":
                return f"{self.prompt}{self.delimiter}{self.row['choices'][self.row['gold']]}"
            case "schema" | "language_modeling":
                return f"{self.prompt}{self.delimiter}{self.row['continuation']}"
        return f"{self.prompt}{self.delimiter}{self.row['answer']}"

    def item(self, before: str) -> Item:
        """The item, `before` in front of its prompt."""
        row, doc_id = self.row, self.row.get("doc_id")
        match self.kind:
            case "multiple_choice":
                context = before + self.prompt
                pairs = tuple((context, f"{self.delimiter}{choice}") for choice in row["choices"])
                return Choices(pairs, gold=row["gold"], doc_id=doc_id)
            case "schema":
                ending = f"{self.delimiter}{row['continuation']}"
                pairs = tuple((before + context, ending) for context in row["context_options"])
                return Choices(pairs, gold=row["gold"], doc_id=doc_id)
            case "language_modeling":
                return Completion(before + self.prompt, f"{self.delimiter}{row['continuation']}", doc_id=doc_id)
            case "generation":
                aliases = (alias for alias in row.get("aliases") or () if alias != row["answer"])
                return Question(before + self.prompt, (row["answer"], *aliases), doc_id=doc_id)
            case "code":
                return Program(before + self.prompt, row["test"], row.get("entry_point") or "", doc_id=doc_id)
        return Passage(row["text"], doc_id=doc_id)


def _examples(shown: Sequence[_Shown], *, settings: TaskSettings, where: str) -> Callable[[int], str]:
    """The solved examples in front of the row at a place."""
    if settings.shots == 0:
        return lambda place: ""
    if shown[0].kind in ("code", "perplexity"):
        raise ConfigError(f"evaluate.tasks {settings.name}: {shown[0].kind} takes no solved examples; leave out shots")
    if settings.shots >= len(shown):
        raise ConfigError(
            f"evaluate.tasks {settings.name}: {settings.shots} solved examples out of {len(shown)} rows of {where}; "
            f"give at most {len(shown) - 1}"
        )
    drawn = random.Random(settings.seed).sample(range(len(shown)), settings.shots + 1)
    *chosen, spare = drawn

    def before(place: int) -> str:
        others = [spare if one == place else one for one in chosen]
        return "".join(shown[one].solved + settings.shot_delimiter for one in others)

    return before


def _read(settings: TaskSettings, *, home: Home, near: Path | None) -> tuple[str, list[Row]]:
    if settings.table is not None:
        path = home.tables / settings.table
        return f"table {settings.table}", tables.read(path, version=settings.version).to_pylist()
    assert settings.path is not None
    given = Path(settings.path).expanduser()
    path = next((one for one in ([near / given] if near else []) if one.exists()), given)
    if path.is_dir():
        return f"table {settings.path}", tables.read(path, version=settings.version).to_pylist()
    if not path.is_file():
        raise SourceError(f"evaluate.tasks {settings.name}: {settings.path} is no file and no table; mend its path")
    return settings.path, [*_lines(path, shown=settings.path)]


def _lines(path: Path, *, shown: str) -> Iterator[Row]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _object(line, place=f"{shown}, line {number}")
    except UnicodeDecodeError as error:
        raise SourceError(f"{shown} is not UTF-8 (byte {error.start}); save it as UTF-8") from None


def _object(line: str, *, place: str) -> Row:
    try:
        found = json.loads(line)
    except json.JSONDecodeError as error:
        raise SourceError(f"{place} is not JSON: {error.msg} at column {error.colno}; give one object a line") from None
    if not isinstance(found, dict):
        raise SourceError(f"{place} holds a {type(found).__name__}; give one object a line")
    return found


def _guess(row: Row, *, where: str) -> Kind:
    for kind, keys in WANTED.items():
        if all(key in row for key in keys):
            return kind
    raise SourceError(
        f"{where}: the keys {', '.join(sorted(row)) or 'none'} are of no kind of task; give kind, or the keys of one: "
        + "; ".join(f"{kind} {', '.join(keys)}" for kind, keys in WANTED.items())
    )


def _check(row: Row, *, kind: Kind, place: str) -> None:
    """Raises SourceError when a row is not of its kind."""
    for key in WANTED[kind]:
        if row.get(key) is None:
            raise SourceError(f"{place} has no {key}; a row of {kind} has {', '.join(WANTED[kind])}")
    listed = {"multiple_choice": "choices", "schema": "context_options"}.get(kind)
    texts = [key for key in WANTED[kind] if key not in (listed, "gold")]
    if wrong := next((key for key in texts if not isinstance(row[key], str)), None):
        raise SourceError(f"{place}: {wrong} is a {type(row[wrong]).__name__}, wanted text")
    if listed is not None:
        _check_choices(row, listed=listed, place=place)


def _check_choices(row: Row, *, listed: str, place: str) -> None:
    choices, gold = row[listed], row["gold"]
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(one, str) for one in choices):
        raise SourceError(f"{place}: {listed} is no list of at least two texts")
    if not isinstance(gold, int) or isinstance(gold, bool) or not 0 <= gold < len(choices):
        shown = gold if isinstance(gold, int) else type(gold).__name__
        raise SourceError(f"{place}: gold is {shown}, wanted the place of a choice, 0 to {len(choices) - 1}")


def _more_metrics(kind: Kind, settings: TaskSettings) -> tuple[str, ...]:
    if kind == "code":
        return tuple(f"pass_at_{k}" for k in settings.ks)
    return ("last_number",) if kind == "generation" else ()
