"""What filters look at: a text's words, lines and paragraphs as columns, each made once and only if a filter asks.

`bound` names a value inside an expression: Spark evaluates it once, however often the name occurs, and only where the
expression around it gets that far. Without it every mention of `split(text, ...)` in a CASE would split again.

No lambda names another lambda's variable: each level gets all it needs as one record, `bound_together`. Spark 4.2
renames such variables wrongly when it compares expressions, and then leaves a Python function over them unevaluated.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pyspark.sql import Column
from pyspark.sql import functions as F

SPACES = r"[ \t\r\f\xa0[\u1680-\u3000&&\p{Z}]]"
"""White space that is no line feed, one character: a Unicode separator, tab, return or form feed. The range spares most
text the look into Unicode's tables."""
ASCII_SPACES = "\t\r\f"
"""Those of them in ASCII, beside the space itself."""
BLANK_LINES = r"\n{2,}|\A\n|\n\z"
SPACELESS = r"[\p{IsHan}\p{IsHiragana}\p{IsKatakana}\p{IsThai}\p{IsLao}\p{IsKhmer}\p{IsMyanmar}\p{IsTibetan}]"
"""A character of a script that is written without spaces between words."""


@dataclass(frozen=True)
class View:
    """A column made of other ones."""

    needs: tuple[str, ...]
    make: Callable[..., Column]


def bound(value: Column, body: Callable[[Column], Column]) -> Column:
    """`body` of the value, which is evaluated once: the last step of an aggregation that has no other."""
    return F.aggregate(F.array().cast("array<int>"), value, lambda made, _: made, body)


def bound_together(values: Mapping[str, Column], body: Callable[[Mapping[str, Column]], Column]) -> Column:
    """`body` of several values, each evaluated once."""
    record = F.struct(*(value.alias(name) for name, value in values.items()))
    return bound(record, lambda made: body({name: made[name] for name in values}))


def with_views(
    names: Sequence[str], *, known: Mapping[str, Column], body: Callable[[Mapping[str, Column]], Column]
) -> Column:
    """`body` of the columns known and of the named VIEWS, those made first that are not known yet."""
    missing = next((name for name in names if name not in known), None)
    if missing is None:
        return body(known)
    view = VIEWS[missing]

    def with_missing(made: Mapping[str, Column]) -> Column:
        column = view.make(**{need: made[need] for need in view.needs})
        return bound_together({**made, missing: column}, lambda more: with_views(names, known=more, body=body))

    return with_views(view.needs, known=known, body=with_missing)


def is_ascii(text: Column) -> Column:
    """Whether every character is of ASCII: what a text must be for the short ways below."""
    return F.octet_length(text) == F.char_length(text)


def is_spaceless(*, text: Column, num_chars: Column) -> Column:
    """Whether more than half of the characters, white space aside, are of scripts without spaces between words."""
    others = F.char_length(F.regexp_replace(text, SPACELESS + "+", ""))
    return ~is_ascii(text) & ((F.char_length(text) - others) * 2 > num_chars)


def chars(parts: Column) -> Column:
    """Characters of all strings of an array together."""
    return F.char_length(F.array_join(parts, ""))


def _flat(text: Column) -> Column:
    """Spaces for all white space but line feeds, character by character.

    A pattern takes five to ten times as long as the search for a byte, and most text has no white space beyond ASCII's.
    """
    replaced = text
    for space in ASCII_SPACES:
        replaced = F.replace(replaced, F.lit(space), F.lit(" "))
    return F.when(is_ascii(text), replaced).otherwise(F.regexp_replace(text, SPACES, " "))


def _pieces(flat: Column) -> Column:
    return F.split(F.lower(F.replace(flat, F.lit("\n"), F.lit(" "))), " ")


def _paragraphs(trimmed: Column) -> Column:
    return F.array_remove(F.split(F.array_join(trimmed, "\n"), BLANK_LINES), "")


VIEWS = {
    "flat": View(needs=("text",), make=_flat),
    "pieces": View(needs=("flat",), make=_pieces),
    "words": View(needs=("pieces",), make=lambda pieces: F.array_remove(pieces, "")),
    "num_chars": View(needs=("text", "pieces"), make=lambda text, pieces: F.char_length(text) - F.size(pieces) + 1),
    "trimmed": View(needs=("flat",), make=lambda flat: F.transform(F.split(flat, "\n"), lambda line: F.trim(line))),
    "lines": View(needs=("trimmed",), make=lambda trimmed: F.array_remove(trimmed, "")),
    "lower_lines": View(needs=("lines",), make=lambda lines: F.transform(lines, F.lower)),
    "distinct_lines": View(needs=("lines",), make=lambda lines: F.array_distinct(lines)),
    "paragraphs": View(needs=("trimmed",), make=_paragraphs),
    "distinct_paragraphs": View(needs=("paragraphs",), make=lambda paragraphs: F.array_distinct(paragraphs)),
}
"""`words` (lower case), `lines` and `paragraphs` are arrays of strings, none empty, white space cut off at both ends;
`num_chars` counts the characters that are no white space. The rest is what these are made of."""
