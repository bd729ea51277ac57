"""How an answer is compared with a reference: exact match after a stated normalisation, F1 over words, the last number.

`normalise`: Unicode NFKC, superscripts kept apart (2 squared is not 22); case folded; of numbers the commas between
groups of three digits go, a plus sign too, zeros at a fraction's end, and a fraction without a whole part gets one
(`1,000.50` -> `1000.5`, `.5` -> `0.5`; `007` stays); a minus sign, typographic ones included, belongs to the number
after it, also over a currency sign (`-$5`); after a word it stands alone, as + and # do (`x-1`, `C++`, `C#`), and
comparisons (`a!=b`); all other punctuation becomes a blank; the articles a, an and the go, but where nothing else is
there; blanks become one. Never a prefix: `12` is not `1`. After Rajpurkar et al. 2016 (SQuAD), whose own would take
signs and decimal points away.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

MINUS = "\u2010\u2011\u2212\u2012\u2013\uff0d\ufe63"
"""Typographic signs that stand for a minus."""
SUPERSCRIPTS = "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079"
CURRENCIES = "$\u20ac\u00a3\u00a5"
NUMBER = re.compile(r"(?<![\w.])([-+]?)(\d{1,3}(?:,\d{3})+|\d+)?(\.\d+)?(?!\w*\.\d)")
TOKEN = re.compile(r"(?<![\w.])-?\d+\.\d+|(?<!\w)-\d+|(?<=\w)(?:[+#]+|-(?=\d))|[=<>!]=|[=<>^]|[\w\0]+")
MARK = "\0"
"""Stands in front of each combining mark while words are found: Python takes marks for no part of a word."""
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
    return float(bool(found) and math.isfinite(found[-1]) and found[-1] in wanted)


def _words(text: str) -> list[str]:
    for place, sign in enumerate(SUPERSCRIPTS):
        text = text.replace(sign, f"^{place}")
    plain = unicodedata.normalize("NFKC", text)
    for sign in MINUS:
        plain = plain.replace(sign, "-")
    plain = re.sub(rf"-[{CURRENCIES}](?=[\d.])", "-", plain)
    plain = NUMBER.sub(_plain_number, plain.casefold())
    marked = "".join(f"{MARK}{ord(one)}{MARK}" if unicodedata.category(one)[0] == "M" else one for one in plain)
    found = TOKEN.findall(marked)
    return [word for word in found if word not in ARTICLES] or found


def _plain_number(match: re.Match[str]) -> str:
    sign, whole, fraction = match.groups()
    if whole is None and fraction is None:
        return match[0]
    fraction = (fraction or "").rstrip("0").rstrip(".")
    return f"{'-' if sign == '-' else ''}{(whole or '0').replace(',', '')}{fraction}"


def _numbers(text: str) -> list[float]:
    return [float(word) for word in _words(text) if re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", word)]


def _f1(answer: Sequence[str], reference: Sequence[str]) -> float:
    common = sum((Counter(answer) & Counter(reference)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(answer), common / len(reference)
    return 2 * precision * recall / (precision + recall)
