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

GAP = r"[\s\p{Z}\x1c-\x1f\x85]+"
"""Between words: what `str.split` of Python splits at. One run of white space is looked at once."""
SPACE = "".join(chr(code) for code in range(0x3001) if chr(code).isspace())
"""The characters of GAP."""
BLANK_LINES = r"\n[\s\p{Z}\x1c-\x1f\x85]*\n"
SPACELESS = r"[\p{IsHan}\p{IsHiragana}\p{IsKatakana}\p{IsThai}\p{IsLao}\p{IsKhmer}\p{IsMyanmar}\p{IsTibetan}]"
"""A character of a script that is written without spaces between words."""


@dataclass(frozen=True)
class View:
    """A column made of other ones."""

    needs: tuple[str, ...]
    make: Callable[..., Column]


def bound(value: Column, body: Callable[[Column], Column]) -> Column:
    """`body` of the value, which is evaluated once: a lambda over an array of one."""
    return F.transform(F.array(value), body).getItem(0)


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


def is_spaceless(*, text: Column, num_chars: Column) -> Column:
    """Whether more than half of the characters, white space aside, are of scripts without spaces between words."""
    others = F.char_length(F.regexp_replace(text, SPACELESS + "+", ""))
    return (F.char_length(text) - others) * 2 > num_chars


def chars(parts: Column) -> Column:
    """Characters of all strings of an array together."""
    return F.char_length(F.array_join(parts, ""))


def _trimmed(parts: Column) -> Column:
    """Without white space at both ends, and without those that are blank."""
    return F.array_remove(F.transform(parts, lambda part: F.btrim(part, F.lit(SPACE))), "")


VIEWS = {
    "words": View(needs=("text",), make=lambda text: F.array_remove(F.split(text, GAP), "")),
    "num_chars": View(needs=("words",), make=lambda words: chars(words)),
    "lines": View(needs=("text",), make=lambda text: _trimmed(F.split(text, "\n"))),
    "lower_lines": View(needs=("lines",), make=lambda lines: F.transform(lines, F.lower)),
    "distinct_lines": View(needs=("lines",), make=lambda lines: F.array_distinct(lines)),
    "paragraphs": View(needs=("text",), make=lambda text: _trimmed(F.split(text, BLANK_LINES))),
    "distinct_paragraphs": View(needs=("paragraphs",), make=lambda paragraphs: F.array_distinct(paragraphs)),
}
"""Words, lines and paragraphs are arrays of strings, none of them empty; `num_chars` counts all but white space."""
