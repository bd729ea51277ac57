"""How an answer is compared with a reference: exact match after a stated normalisation, F1 over words, the last number.

`normalise`: Unicode NFKC; case folded; of numbers the commas between groups of three digits go, a plus sign too, and
zeros at a fraction's end (`1,000.50` -> `1000.5`; `007` stays); a minus sign, typographic ones included, stays where a
number follows it and no word is in front of it; all other punctuation becomes a blank; the articles a, an and the go;
blanks become one. Never a prefix: `12` is not `1`. After Rajpurkar et al. 2016 (SQuAD), whose own normalisation would
take signs and decimal points away.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

MINUS = "\u2212\u2012\u2013\uff0d\ufe63"
"""Typographic signs that stand for a minus."""
NUMBER = re.compile(r"(?<![\w.])([-+]?)(\d{1,3}(?:,\d{3})+|\d+)(\.\d+)?(?![\w])")
TOKEN = re.compile(r"(?<![\w.])-?\d+\.\d+(?!\w)|(?<!\w)-\d+|\w+")
ARTICLES = frozenset(("a", "an", "the"))


def normalise(text: str) -> str:
    """The words and numbers of a text, one blank between them."""
    return " ".join(_words(text))


def exact_match(answer: str, references: Sequence[str]) -> float:
    """1 where the answer is one of the references, both normalised; an answer without a word matches none."""
    found = normalise(answer)
    return float(any(found == normalise(reference) for reference in references) and found != "")


def f1(answer: str, references: Sequence[str]) -> float:
    """The best harmonic mean of precision and recall of words, over the references."""
    return max((_f1(_words(answer), _words(reference)) for reference in references), default=0.0)


def last_number(answer: str, references: Sequence[str]) -> float:
    """1 where the last number of the answer is that of a reference: for worked solutions."""
    found = _numbers(answer)
    wanted = {numbers[-1] for reference in references if (numbers := _numbers(reference))}
    return float(bool(found) and found[-1] in wanted)


def _words(text: str) -> list[str]:
    plain = unicodedata.normalize("NFKC", text)
    for sign in MINUS:
        plain = plain.replace(sign, "-")
    plain = NUMBER.sub(_plain_number, plain.casefold())
    return [word for word in TOKEN.findall(plain) if word not in ARTICLES]


def _plain_number(match: re.Match[str]) -> str:
    sign, whole, fraction = match.groups()
    fraction = (fraction or "").rstrip("0").rstrip(".")
    return f"{'-' if sign == '-' else ''}{whole.replace(',', '')}{fraction}"


def _numbers(text: str) -> list[float]:
    return [float(word) for word in _words(text) if re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", word)]


def _f1(answer: Sequence[str], reference: Sequence[str]) -> float:
    common = sum((Counter(answer) & Counter(reference)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(answer), common / len(reference)
    return 2 * precision * recall / (precision + recall)
