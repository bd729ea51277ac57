"""What `prepare` reads and keeps, and what `sample` writes."""

import re
from pathlib import PurePosixPath
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from tessera.config import Section
from tessera.prepare.contamination.settings import DecontaminateSettings
from tessera.prepare.duplicates.settings import NearDuplicateSettings
from tessera.prepare.private.settings import PrivateSettings
from tessera.prepare.quality.settings import QualitySettings
from tessera.prepare.report.settings import ReportSettings

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")

QUOTED = re.compile(r"'(?:[^'\\]|\\.|'')*'|\"(?:[^\"\\]|\\.)*\"|`[^`]*`")
HANGS_ON_MORE = re.compile(
    r"\b(?:now|rand|randn|random|uuid|shuffle|curdate|unix_timestamp)\s*\(|"
    r"\b(?:current_(?:date|timestamp|time|user|catalog|database|schema)|localtimestamp)\b|\(\s*select\b",
    re.IGNORECASE,
)
"""Of SQL without what is quoted in it: functions of time and chance, and subqueries."""

ROLES = {
    "text": ("text",),
    "instruction": ("system", "prompt", "response"),
    "chat": ("messages",),
    "preference": ("prompt", "chosen", "rejected"),
}
"""Kind -> the settings that name its columns."""


class SourceSettings(Section):
    """One Delta table of documents, at a pinned version."""

    name: str = ""
    """The logical name that enters document ids; by default the last part of the path, or the table's full name."""
    table: str | None = None
    """A table of the home (`tables/NAME`) or of the Spark catalog (`catalog.schema.name`)."""
    path: str | None = None
    """A folder or URI that holds a Delta table; this or `table`."""
    version: int | None = Field(None, ge=0)
    """Null takes the latest, resolved once and recorded."""
    timestamp: str | None = None
    """ISO 8601; the version that was the latest then."""
    kind: Literal["text", "instruction", "chat", "preference"] = "text"
    """What a row is: text to continue; a prompt and the response wanted; a conversation; or a prompt with a better and
    a worse answer."""
    id: str | tuple[str, ...] = "id"
    """The column, or columns, of the row key."""
    text: str = "text"
    """Kind text: the column of the text, or a template over columns: `{title}: {body}`; so for the other texts."""
    system: str | None = None
    """Kind instruction: what the assistant is told before the prompt, where rows have it."""
    prompt: str = "prompt"
    """Kinds instruction and preference: what the user says."""
    response: str = "response"
    """Kind instruction: what the assistant says."""
    messages: str = "messages"
    """Kind chat: the column of the conversation, an array of structs with role (system first or nowhere, then user and
    assistant by turns, assistant last) and content."""
    chosen: str = "chosen"
    """Kind preference: the better answer."""
    rejected: str = "rejected"
    """Kind preference: the worse answer."""
    updated: str | None = None
    """The column that says which of several rows of one key is the newest, for `on_duplicate: last`."""
    where: str | None = None
    """An SQL condition on the table's columns; other rows are never read. It may hang on the row alone: no
    `current_date()`, no subquery, since an unchanged version then gives the same documents."""
    weight: float = Field(1.0, gt=0, le=1)
    """Share of the source's rows that are kept, by hash of their key: the same ones every time."""
    purposes: tuple[str, ...] = ()
    """What this source may be used for; carried to its documents. Empty: nothing is declared."""
    license: str | None = None
    """The licence of its text: an SPDX expression, such as `CC-BY-4.0` or `MIT OR Apache-2.0`."""

    @model_validator(mode="before")
    @classmethod
    def _default_name(cls, values: object) -> object:
        if isinstance(values, dict) and not values.get("name"):
            if isinstance(values.get("path"), str):
                values = {**values, "name": PurePosixPath(values["path"].rstrip("/")).name}
            elif isinstance(values.get("table"), str):
                values = {**values, "name": values["table"]}
        return values

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.table is None) == (self.path is None):
            raise ValueError("a source has either table or path; give one of them")
        if self.version is not None and self.timestamp is not None:
            raise ValueError("a source is pinned by version or by timestamp; give one of them")
        if not NAME.fullmatch(self.name):
            raise ValueError(f"the source name {self.name!r} may hold letters, digits, '_', '.', '-'; set name")
        if self.where is not None and (found := HANGS_ON_MORE.search(QUOTED.sub("''", self.where))):
            raise ValueError(
                f"where may hang on the row alone, found {found[0]!r}: the same version would later give other "
                "documents; write the date itself"
            )
        for role in sorted({role for roles in ROLES.values() for role in roles} - set(ROLES[self.kind])):
            if getattr(self, role) != type(self).model_fields[role].default:
                raise ValueError(f"a source of kind {self.kind} has no {role}; it has {', '.join(ROLES[self.kind])}")
        return self

    @property
    def key(self) -> tuple[str, ...]:
        """The columns of the row key."""
        return (self.id,) if isinstance(self.id, str) else self.id

    @property
    def contents(self) -> dict[str, str]:
        """What the kind's rows are made of -> its column."""
        return {role: getattr(self, role) for role in ROLES[self.kind] if getattr(self, role) is not None}


class PrepareSettings(Section):
    """Which rows become documents."""

    sources: tuple[SourceSettings, ...] = Field(min_length=1)
    """The tables; two of one name are refused."""
    holdout: float = Field(0.05, gt=0, lt=1)
    """Share of the documents kept out of training, by hash of their content: the same ones every time."""
    min_chars: int = Field(20, ge=1)
    """Shorter documents are dropped, after white space at both ends is taken off for the count."""
    purpose: str | None = None
    """What the documents are prepared for: a source that declares purposes, and not this one, is refused."""
    licenses: tuple[str, ...] | None = None
    """The licences that may be read, as SPDX identifiers; null: any, and none."""
    private: PrivateSettings = PrivateSettings()
    """What is done about private data, by its type."""
    quality: QualitySettings = QualitySettings()
    """Filters by the quality of the text, each off until it is named."""
    decontaminate: DecontaminateSettings | None = None
    """Evaluation sets whose text must not be trained on; null: none."""
    near_duplicates: NearDuplicateSettings | None = None
    """Drops all but one of documents that are nearly the same; null: only equal ones."""
    report: ReportSettings = ReportSettings()
    """What is told of the documents."""
    on_duplicate: Literal["refuse", "last", "all"] = "refuse"
    """A row key that occurs twice in a source: stop, keep the row that is newest by the source's `updated`
    column (by content hash where there is none), or keep every row."""

    @field_validator("sources")
    @classmethod
    def _distinct(cls, sources: tuple[SourceSettings, ...]) -> tuple[SourceSettings, ...]:
        names = [source.name for source in sources]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two sources are called {twice[0]!r}; give each its own name")
        return sources


class SampleSettings(Section):
    """Which installed packages' documentation `tessera sample` writes."""

    packages: tuple[str, ...] | None = None
    """Distribution names; null takes every installed package."""
