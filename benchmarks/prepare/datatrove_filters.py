"""datatrove's filters over a file of texts: the other side of filters.py, in an environment of its own.

A line on standard input, `FILTER WORDS`, asks for one pass over all texts; a line on standard output gives its CPU
seconds and why each text is dropped, null where it is kept. WORDS is `spacy`, as datatrove comes, or `spaces`: words
split at white space and sentences at a pattern, so that the filters themselves are compared.
"""

import gzip
import json
import math
import re
import sys
import time
from collections.abc import Callable

from datatrove.data import Document
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.utils import text as words_of
from datatrove.utils import word_tokenizers

SENTENCE = re.compile(r"(?<=[.!?])\s+")

FILTERS = {
    "repetition": [GopherRepetitionFilter()],
    "gopher": [GopherQualityFilter()],
    "c4": [C4QualityFilter(remove_citations=False, max_word_length=-1)],
    "fineweb": [FineWebQualityFilter(short_line_length=29, char_duplicates_ratio=0.1, new_line_ratio=math.inf)],
}
FILTERS["all"] = [judge for judges in list(FILTERS.values()) for judge in judges]
"""In the order of FineWeb's own pipeline. Thresholds are the papers', as in Tessera."""


class Spaces:
    """Words between white space."""

    def word_tokenize(self, text: str) -> list[str]:
        return text.split()

    def sent_tokenize(self, text: str) -> list[str]:
        return SENTENCE.split(text.strip())

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        ends = [match.end() for match in SENTENCE.finditer(text)] + [len(text)]
        return list(zip([0, *ends[:-1]], ends, strict=True))


def main() -> None:
    with gzip.open(sys.argv[1], "rt", encoding="utf-8") as file:
        texts = [json.loads(line) for line in file]
    tokenizers: dict[str, Callable[..., object]] = {
        "spacy": word_tokenizers.load_word_tokenizer,
        "spaces": lambda language: Spaces(),
    }
    print(json.dumps({"texts": len(texts)}), flush=True)
    for line in sys.stdin:
        name, words = line.split()
        word_tokenizers.load_word_tokenizer = tokenizers[words]
        judge(["warm up"], name=name)
        words_of.split_into_parts.cache_clear()
        began = time.process_time()
        reasons = judge(texts, name=name)
        print(json.dumps({"seconds": time.process_time() - began, "reasons": reasons}), flush=True)


def judge(texts: list[str], *, name: str) -> list[str | None]:
    """The reason of the first filter that drops each text."""
    return [first_reason(Document(text=text, id=""), name=name) for text in texts]


def first_reason(document: Document, *, name: str) -> str | None:
    for judge in FILTERS[name]:
        try:
            kept = judge.filter(document)
        except ZeroDivisionError:  # a text without words or lines
            return "no_words"
        if kept is not True:
            return str(kept[1]) if isinstance(kept, tuple) else "dropped"
    return None


if __name__ == "__main__":
    main()
