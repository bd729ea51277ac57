"""Settings of scoring: which rows are asked, what, and how the model answers. Needs pydantic only."""

from pathlib import PurePosixPath
from string import Formatter
from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from tessera.config import EXECUTION, Section
from tessera.prepare.settings import NAME

Template = tuple[tuple[str, str | None], ...]
"""A prompt taken apart: literal text, each with the column that follows it; the last one may have none."""


def parse_template(template: str) -> Template:
    """Takes `"Title: {title}"` apart; `{{` and `}}` are braces. Columns are put in as they are: no formats.

    Raises:
        ValueError: unbalanced braces, no column at all, or anything but a column's name between the braces.
    """
    try:
        parsed = list(Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"is no template ({error}); wanted {{column}}, and {{{{ for a brace") from None
    for _, column, form, conversion in parsed:
        if column is not None and (not column or form or conversion or set(column) & set(".[")):
            raise ValueError("names a column by {column} alone: no empty braces, no '.', '[', '!' or ':' in them")
    if not any(column for _, column, _, _ in parsed):
        raise ValueError("names no column, so that every row would ask the same; wanted a {column} in it")
    return tuple((literal, column) for literal, column, _, _ in parsed)


class ScoreSettings(Section):
    """What a registered model is asked about each row of a table."""

    source: str | None = None
    """The table: its name in the home, a folder or URI with a Delta table, or `catalog.schema.name`."""
    name: str = ""
    """The logical name that enters row ids; by default the last part of the path, or the table's full name. Under the
    name that `prepare` gave the same source, an answer and a document of one row have one `doc_id`."""
    version: int | None = Field(None, ge=0)
    """Of the table; null takes the latest, resolved once and recorded."""
    id: str | tuple[str, ...] = "id"
    """The column, or columns, of the row key."""
    where: str | None = None
    """An SQL condition on the table's columns; other rows are never read."""
    prompt: str | None = None
    """What a row is asked, its columns in braces: `"Summarise: {body}"`; `{{` is a brace."""
    model: str | None = None
    """`models:/NAME@ALIAS` or `models:/NAME/VERSION`; null takes `serve.model_name` at `champion`."""
    max_tokens: int = Field(64, ge=1)
    """Tokens of an answer; fewer where the model's context ends."""
    temperature: float = Field(0.0, ge=0, le=2)
    """0 is greedy."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Keeps the smallest set of most likely tokens that holds this probability."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """An answer ends before the first of these."""
    seed: int = 17
    """With the row's id it decides what is drawn, whatever the partitions, slices and retries."""
    limit: int | None = Field(None, ge=1, json_schema_extra=EXECUTION)
    """Answers at most so many rows this time; the next time goes on."""
    slice_rows: int = Field(512, ge=1, json_schema_extra=EXECUTION)
    """Rows answered between two commits, on average: what a kill may lose, and what the driver holds."""

    @model_validator(mode="before")
    @classmethod
    def _default_name(cls, values: object) -> object:
        if isinstance(values, dict) and isinstance(values.get("source"), str) and not values.get("name"):
            values = {**values, "name": PurePosixPath(values["source"].rstrip("/")).name}
        return values

    @field_validator("prompt")
    @classmethod
    def _readable(cls, prompt: str | None) -> str | None:
        if prompt is not None:
            parse_template(prompt)
        return prompt

    @model_validator(mode="after")
    def _plain_name(self) -> Self:
        if self.source is not None and not NAME.fullmatch(self.name):
            raise ValueError(f"the source name {self.name!r} may hold letters, digits, '_', '.', '-'; set score.name")
        return self

    @property
    def key(self) -> tuple[str, ...]:
        """The columns of the row key."""
        return (self.id,) if isinstance(self.id, str) else self.id
