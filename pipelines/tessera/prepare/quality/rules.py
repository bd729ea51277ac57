"""Filters as Spark SQL expressions: from a text and views of it to null, or to the reason why the document is dropped.

No rule divides: a share is compared as `count > limit * whole`, so that an empty document breaks no rule and needs no
guard. Every pattern takes time linear in the text, whatever the text is.
"""

from collections.abc import Callable, Mapping
from functools import reduce
from operator import or_
from typing import Any

from pyspark.sql import Column
from pyspark.sql import functions as F

from tessera.config import Section
from tessera.prepare.quality.settings import (
    BoilerplateSettings,
    C4Settings,
    DigitSettings,
    LengthSettings,
    PunctuationSettings,
    RepetitionSettings,
    StopWordSettings,
    SymbolSettings,
)
from tessera.prepare.quality.views import SPACELESS, bound, bound_together, chars, is_ascii, is_spaceless

DIGITS = r"[0-9[\u0660-\x{1fbf9}&&\p{Nd}]]+"
"""Decimal digits of any script; the range spares most text the look into Unicode's tables."""

ELLIPSES = ("...", "\u2026")
ELLIPSIS_BYTES = 3
"""Of either, in UTF-8."""

TERMINAL = tuple(
    ".!?\"'\u2026\u201d\u2019\u00bb\u3002\uff01\uff1f\uff0e\u300d\u300f\u061f\u06d4\u0964\u0965\u104b\u1362\u17d4\u0589"
)
"""Ends of sentences: full stops, exclamation and question marks of many scripts, and closing quotation marks."""
SENTENCE_BREAK = "[.!?]+[\"'\u201d\u2019\u00bb)\\]]* |[\u3002\uff01\uff1f\u0964](?=[^\n])"
"""Where a sentence ends within a line."""


def length(text: Column, settings: LengthSettings, *, whole: Column, words: Column, num_chars: Column) -> Column:
    """Too few or too many characters or words, or words too short or too long on average.

    Args:
        whole: the text before it was cut to what filters look at.
    """
    by_chars: Rules = {
        "min_chars": lambda limit: F.char_length(whole) < limit,
        "max_chars": lambda limit: F.char_length(whole) > limit,
    }
    by_words: Rules = {
        "min_words": lambda limit: F.size(words) < limit,
        "max_words": lambda limit: F.size(words) > limit,
        "min_mean_word_chars": lambda limit: num_chars < limit * F.size(words),
        "max_mean_word_chars": lambda limit: num_chars > limit * F.size(words),
    }
    spaceless = is_spaceless(text=text, num_chars=num_chars)
    return F.coalesce(
        _first_broken("length", settings, by_chars), _first_broken("length", settings, by_words, unless=spaceless)
    )


def digits(text: Column, settings: DigitSettings, *, num_chars: Column) -> Column:
    """Too many decimal digits, of any script."""
    others = F.when(is_ascii(text), _less(text, "[0-9]+")).otherwise(_less(text, DIGITS))
    num_digits = F.char_length(text) - F.char_length(others)
    return _first_broken("digits", settings, {"max_digits": lambda limit: num_digits > limit * num_chars})


def symbols(text: Column, settings: SymbolSettings, *, words: Column, num_chars: Column, lines: Column) -> Column:
    """Too many number signs or ellipses for the words, too few words with a letter, too many items or cut-off lines."""
    hashes = F.octet_length(text) - F.octet_length(_without(text, "#"))
    ellipsis_bytes = F.octet_length(text) - F.octet_length(reduce(_without, ELLIPSES, text))
    by_words: Rules = {
        "max_hashes_per_word": lambda limit: hashes > limit * F.size(words),
        "max_ellipses_per_word": lambda limit: ellipsis_bytes > limit * ELLIPSIS_BYTES * F.size(words),
        "min_words_with_letter": lambda limit: _count(words, _has_letter) < limit * F.size(words),
    }
    by_lines: Rules = {
        "max_bullet_lines": lambda limit: (
            _count(lines, lambda line: F.substring(line, 1, 1).isin(*settings.bullets)) > limit * F.size(lines)
        ),
        "max_ellipsis_lines": lambda limit: _count(lines, _ends_cut_off) > limit * F.size(lines),
    }
    spaceless = is_spaceless(text=text, num_chars=num_chars)
    return F.coalesce(
        _first_broken("symbols", settings, by_words, unless=spaceless), _first_broken("symbols", settings, by_lines)
    )


def stop_words(text: Column, settings: StopWordSettings, *, words: Column, num_chars: Column) -> Column:
    """Too few different words of the list."""
    listed = F.array(*map(F.lit, settings.words))
    found = F.size(F.array_intersect(words, listed))
    rules: Rules = {"min_words": lambda limit: found < limit}
    return _first_broken("stop_words", settings, rules, unless=is_spaceless(text=text, num_chars=num_chars))


def punctuation(text: Column, settings: PunctuationSettings, *, lines: Column, distinct_lines: Column) -> Column:
    """Too few lines with an end, too many short ones, too much in lines that came before."""
    rules: Rules = {
        "min_ended_lines": lambda limit: _count(lines, _ends) < limit * F.size(lines),
        "max_short_lines": lambda limit: (
            _count(lines, lambda line: F.char_length(line) < settings.short_line_chars) > limit * F.size(lines)
        ),
        "max_duplicate_line_chars": lambda limit: _repeated_chars(lines, distinct_lines, limit=limit),
    }
    return _first_broken("punctuation", settings, rules)


def c4(text: Column, settings: C4Settings, *, lower_lines: Column) -> Column:
    """A placeholder, a curly brace, or too few sentences in the lines that C4 keeps."""

    def is_kept(line: Column) -> Column:
        num_words = F.size(F.array_remove(F.split(line, " "), ""))
        enough_words = (num_words >= settings.min_line_words) | line.rlike(SPACELESS)
        return _ends(line) & ~_ends_cut_off(line) & enough_words & ~_holds(line, settings.phrases)

    def num_sentences(kept: Column) -> Column:
        return F.size(kept) + F.regexp_count(F.array_join(kept, "\n"), F.lit(SENTENCE_BREAK))

    rules: Rules = {
        "no_braces": lambda _: text.contains("{"),
        "no_lorem_ipsum": lambda _: F.exists(lower_lines, lambda line: line.contains("lorem ipsum")),
        "min_sentences": lambda limit: bound(F.filter(lower_lines, is_kept), lambda kept: num_sentences(kept) < limit),
    }
    return _first_broken("c4", settings, rules)


def boilerplate(text: Column, settings: BoilerplateSettings, *, lower_lines: Column) -> Column:
    """Too many lines of navigation, consent or law."""
    found = _count(lower_lines, lambda line: _holds(line, settings.phrases))
    return _first_broken("boilerplate", settings, {"max_lines": lambda limit: found > limit * F.size(lower_lines)})


def repetition(
    text: Column,
    settings: RepetitionSettings,
    *,
    lines: Column,
    distinct_lines: Column,
    paragraphs: Column,
    distinct_paragraphs: Column,
) -> Column:
    """Too many lines or paragraphs that came before, or too much in them; see `repetition` for runs of words."""
    rules: Rules = {
        "max_duplicate_lines": lambda limit: F.size(lines) - F.size(distinct_lines) > limit * F.size(lines),
        "max_duplicate_line_chars": lambda limit: _repeated_chars(lines, distinct_lines, limit=limit),
        "max_duplicate_paragraphs": lambda limit: (
            F.size(paragraphs) - F.size(distinct_paragraphs) > limit * F.size(paragraphs)
        ),
        "max_duplicate_paragraph_chars": lambda limit: _repeated_chars(paragraphs, distinct_paragraphs, limit=limit),
    }
    return _first_broken("repetition", settings, rules)


Rules = Mapping[str, Callable[[Any], Column]]
"""Setting -> whether its rule is broken, given its value."""


def _first_broken(name: str, settings: Section, rules: Rules, *, unless: Column | None = None) -> Column:
    """`quality:NAME:SETTING` of the first broken rule among those that are on.

    Args:
        unless: whether the rules do not hold for the document; evaluated only where one is broken.
    """
    limits = {setting: getattr(settings, setting) for setting in rules}
    on = [setting for setting, limit in limits.items() if limit is not None and limit is not False]
    broken = {setting: rules[setting](limits[setting]) for setting in on}
    reasons = [
        F.when(found if unless is None else found & ~unless, F.lit(f"quality:{name}:{setting}"))
        for setting, found in broken.items()
    ]
    return F.coalesce(*reasons, F.lit(None).cast("string"))


def _count(parts: Column, holds: Callable[[Column], Column]) -> Column:
    return F.size(F.filter(parts, holds))


def _without(text: Column, sign: str) -> Column:
    return F.replace(text, F.lit(sign), F.lit(""))


def _less(text: Column, pattern: str) -> Column:
    return F.regexp_replace(text, pattern, "")


def _has_letter(word: Column) -> Column:
    """A lower-case word that begins with an ASCII letter needs no pattern."""
    return ((word >= "a") & (word < "{")) | word.rlike(r"\p{L}")


def _ends(line: Column) -> Column:
    return F.substring(line, -1, 1).isin(*TERMINAL)


def _ends_cut_off(line: Column) -> Column:
    return reduce(or_, (line.endswith(ellipsis) for ellipsis in ELLIPSES))


def _holds(line: Column, phrases: tuple[str, ...]) -> Column:
    return reduce(or_, (line.contains(phrase) for phrase in phrases), F.lit(False))


def _repeated_chars(parts: Column, distinct: Column, *, limit: float) -> Column:
    """Whether more than this share of the parts' characters is in parts that came before."""
    return bound_together(
        {"all": chars(parts), "distinct": chars(distinct)},
        lambda num_chars: num_chars["all"] - num_chars["distinct"] > limit * num_chars["all"],
    )
