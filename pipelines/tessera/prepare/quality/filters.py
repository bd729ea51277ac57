"""The quality filters in their fixed order, cheap ones first, and `reason`: the first that drops a document.

A filter gives null or a reason, `quality:NAME:SETTING`. Most are expressions (`rules`) over a text and the VIEWS that
they need; two count in Python (`language`, `repetition` of words). All expressions are one expression, evaluated until
the first reason; what is left goes to the Python workers once, whichever of the two are on. Everything is a function of
the one text: partitions and batches change nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from pyspark.sql import Column
from pyspark.sql import functions as F
from pyspark.sql.types import StringType

from tessera.prepare.quality import language, repetition, rules
from tessera.prepare.quality.settings import QualitySettings
from tessera.prepare.quality.views import bound, bound_together, with_views

NamedReasons = Callable[[Sequence[str]], list[str | None]]


@dataclass(frozen=True)
class Filter:
    """An expression `(text, settings, **views) -> reason`."""

    judge: Callable[..., Column]
    needs: tuple[str, ...]
    """Views, beside the text."""


FILTERS: Mapping[str, Filter] = {
    "length": Filter(rules.length, needs=("whole", "words", "num_chars")),
    "digits": Filter(rules.digits, needs=("num_chars",)),
    "stop_words": Filter(rules.stop_words, needs=("words", "num_chars")),
    "symbols": Filter(rules.symbols, needs=("words", "num_chars", "lines")),
    "punctuation": Filter(rules.punctuation, needs=("lines", "distinct_lines")),
    "c4": Filter(rules.c4, needs=("lower_lines",)),
    "boilerplate": Filter(rules.boilerplate, needs=("lower_lines",)),
    "repetition": Filter(
        rules.repetition, needs=("lines", "distinct_lines", "paragraphs", "distinct_paragraphs")
    ),
}  # fmt: skip
"""Name, which is a section of the settings -> its expression; they are asked in this order."""

WORKER_FILTERS: Mapping[str, Callable[..., list[str | None]]] = {
    "repetition": repetition.reasons,
    "language": language.reasons,
}
"""What Python workers judge, of the documents that all of FILTERS let pass, in this order."""


def reason(text: Column, *, settings: QualitySettings) -> Column:
    """Why a document is dropped, by the first filter that drops it; null for one that is kept, and for a null text.

    Args:
        text: string; evaluated once.

    Raises:
        SetupError: languages are asked for, and the library is absent.
    """
    enabled = [name for name in FILTERS if getattr(settings, name) is not None]
    workers = [
        partial(judge, settings=section)
        for name, judge in WORKER_FILTERS.items()
        if (section := getattr(settings, name)) is not None
    ]
    if not enabled and not workers:
        return F.lit(None).cast("string")
    if settings.language is not None:
        language.check_installed()

    def judged(texts: Mapping[str, Column]) -> Column:
        found = _first(enabled, settings=settings, known=texts)
        return bound_together({"reason": found, "text": texts["text"]}, _left) if workers else found

    def cut(whole: Column) -> Column:
        start = F.when(F.octet_length(whole) <= settings.max_chars, whole)
        start = start.otherwise(F.substring(whole, 1, settings.max_chars))
        return F.when(whole.isNotNull(), bound_together({"whole": whole, "text": start}, judged))

    found = bound(text, cut)
    return _judge_in_workers(workers)(found) if workers else found


def first_reasons(
    texts: Sequence[str | None], *, known: Sequence[str | None], judges: Sequence[NamedReasons]
) -> list[str | None]:
    """The known reason of each text, else that of the first judge that gives one; null texts are not judged."""
    found = np.array(known, dtype=object)
    for judge in judges:
        left = [number for number, text in enumerate(texts) if text is not None and found[number] is None]
        for number, reason in zip(left, judge([str(texts[number]) for number in left]), strict=True):
            found[number] = reason
    return list(found)


def _first(names: Sequence[str], *, settings: QualitySettings, known: Mapping[str, Column]) -> Column:
    """The reason of the first named filter that gives one; views are made where the first filter asks for them."""
    if not names:
        return F.lit(None).cast("string")
    name, *rest = names
    asked = FILTERS[name]

    def judged(views: Mapping[str, Column]) -> Column:
        needed = {view: views[view] for view in asked.needs}
        own = asked.judge(views["text"], getattr(settings, name), **needed)
        return F.coalesce(own, _first(rest, settings=settings, known=views))

    return with_views(asked.needs, known=known, body=judged)


def _left(judged: Mapping[str, Column]) -> Column:
    """What goes to the workers: the reason, and the text where there is none."""
    text = F.when(judged["reason"].isNull(), judged["text"])
    return F.struct(judged["reason"].alias("reason"), text.alias("text"))


def _judge_in_workers(judges: Sequence[NamedReasons]) -> Callable[..., Column]:
    def judge(left: pd.DataFrame) -> pd.Series:
        known = left["reason"].astype(object).where(left["reason"].notna(), None)
        texts = left["text"].astype(object).where(left["text"].notna(), None)
        return pd.Series(first_reasons(list(texts), known=list(known), judges=judges), dtype=object)

    judging: Callable[..., Column] = F.pandas_udf(judge, StringType())
    return judging
