"""Texts made of columns: a column's name, or a template such as `{title}: {body}` over the columns of a row.

`{{` and `}}` stand for braces. A row in which a named column is null has no such text. Pure text work, no Spark.
"""

import string
from collections.abc import Collection, Mapping
from typing import Any

from tessera.errors import SourceError

Part = tuple[str, str | None]
"""Literal text, and the column that comes after it; None at the end."""


def parts(template: str, *, columns: Collection[str]) -> list[Part]:
    """What a text is made of.

    Args:
        template: the name of a column, whatever is in it; else text with names in braces.
        columns: of the table.

    Raises:
        SourceError: braces that do not match, or with something else than a name between them.
    """
    if template in columns or "{" not in template:
        return [("", template)]
    try:
        found = list(string.Formatter().parse(template))
    except ValueError as error:
        raise SourceError(f"the template {template!r} cannot be read ({error}); write {{{{ for a brace") from None
    if odd := [name for _, name, spec, conversion in found if name == "" or spec or conversion]:
        raise SourceError(f"the template {template!r} has {len(odd)} braces without a plain column name between them")
    return [(literal, name) for literal, name, _, _ in found]


def names(template: str, *, columns: Collection[str]) -> tuple[str, ...]:
    """The columns that a text is made of, in order."""
    return tuple(name for _, name in parts(template, columns=columns) if name is not None)


def fill(template: str, row: Mapping[str, Any]) -> str | None:
    """The text of a row; None where a named column is null.

    Raises:
        SourceError: as `parts`, or the row has no such column.
    """
    found = parts(template, columns=row.keys())
    if absent := [name for _, name in found if name is not None and name not in row]:
        raise SourceError(f"the template {template!r} names {absent[0]}; the columns are {', '.join(sorted(row))}")
    if any(name is not None and row[name] is None for _, name in found):
        return None
    return "".join(literal + ("" if name is None else str(row[name])) for literal, name in found)
