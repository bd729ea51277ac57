"""Reading: does a model follow a text that it has never seen? Both benchmarks are made of held-out documents.

cloze: a text up to a word that stood in it before (as in LAMBADA, Paperno et al. 2016), and four words to go on with.
All four stand in that text, as often as can be, and begin alike in upper or lower case, so that neither presence nor
frequency gives the answer away. What a word of content is, documents decide: one that few of them share.

continuations: the beginning of a document, and four pieces of about equal length that share about as many words
with it, one of them its own.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from random import Random

from tessera.evaluate.builtin.document import (
    NUM_CHOICES,
    Document,
    check_enough,
    choices,
    each_text_once,
    generator,
    places,
    shuffled,
)
from tessera.evaluate.task import Choices

WORD = re.compile(r"(?<![^\W_])(?<![\w.`'\"-])[^\W\d_]{4,}(?![\w`'\"-])(?!\.\w)(?!\()")
"""A run of letters that is no part of a name, a path or a quotation."""
CONTEXT_CHARACTERS = 800
MIN_CONTEXT = 80
COMMON_SHARE = 0.1
"""A word that more documents have is no word of content."""
MIN_DOCUMENTS = 20
"""Fewer cannot say what is common."""
PER_DOCUMENT = 2
"""Items of one document, at most."""

CANDIDATES = 100
"""Pieces of other documents that wrong ones are taken from."""
BEGINNING, MIN_BEGINNING = 400, 80
CONTINUATION, MIN_CONTINUATION = 100, 80


def cloze(documents: Sequence[Document], *, n: int, seed: int) -> list[Choices]:
    """Which word comes next, out of four that stood before."""
    name = "reading"
    ordered = each_text_once(shuffled(documents, seed=seed, name=name))
    common = _frequencies(ordered)
    rare = max(2, round(COMMON_SHARE * len(ordered)))
    golds = places(n, seed=seed, name=name)
    found: list[Choices] = []
    for one in ordered if len(ordered) >= MIN_DOCUMENTS else ():
        random = generator(seed, name, one.doc_id, one.text)
        for context, right, wrong in _gaps(one.text, common=common, rare=rare, random=random):
            if len(found) == n:
                break
            place = golds[len(found)]
            blanks = [f" {word}" for word in wrong]
            found.append(choices(context, right=f" {right}", wrong=blanks, place=place, doc_id=one.doc_id))
    check_enough(found, n=n, name=name, wanted=f"{MIN_DOCUMENTS} documents in which words come again")
    return found


def continuations(documents: Sequence[Document], *, n: int, seed: int) -> list[Choices]:
    """Which of four pieces goes on from the beginning of a document."""
    name = "reading_pairs"
    ordered = each_text_once(shuffled(documents, seed=seed, name=name))
    cuts = [(one, cut) for one in ordered if (cut := _cut(one.text))]
    golds = places(n, seed=seed, name=name)
    found: list[Choices] = []
    for at, (one, (beginning, own)) in enumerate(cuts):
        if len(found) == n:
            break
        others = _others(one, beginning, own=own, cuts=[*cuts[at + 1 :], *cuts[:at]])
        if len(others) == NUM_CHOICES - 1:
            found.append(choices(beginning, right=own, wrong=others, place=golds[len(found)], doc_id=one.doc_id))
    wanted = f"{MIN_BEGINNING + MIN_CONTINUATION} characters of a document"
    check_enough(found, n=n, name=name, wanted=wanted)
    return found


def _frequencies(documents: Iterable[Document]) -> Counter[str]:
    """Word, in lower case -> documents that have it."""
    found: Counter[str] = Counter()
    for one in documents:
        found.update({word.lower() for word in WORD.findall(one.text)})
    return found


def _gaps(text: str, *, common: Mapping[str, int], rare: int, random: Random) -> Iterable[tuple[str, str, list[str]]]:
    """(context, right, wrong) of at most PER_DOCUMENT places of a document, in a random order."""
    words = [one for one in WORD.finditer(text) if common[one.group().lower()] <= rare]
    gaps = [one for one in words if one.start() > MIN_CONTEXT and text[one.start() - 1] == " "]
    taken: set[str] = set()
    for gap in random.sample(gaps, len(gaps)):
        right = gap.group()
        if len(taken) == PER_DOCUMENT:
            return
        if right.lower() in taken:
            continue
        first = _first(text, end=gap.start())
        before = Counter(one.group() for one in words if first <= one.start() < gap.start())
        wrong = _wrong(right, before=before, common=common, random=random)
        if before[right] and len(wrong) == NUM_CHOICES - 1:
            taken.add(right.lower())
            yield text[first : gap.start() - 1], right, wrong


def _first(text: str, *, end: int) -> int:
    """Where a context begins that ends at `end`: at a word."""
    if end <= CONTEXT_CHARACTERS:
        return 0
    blank = re.compile(r"\s+").search(text, end - CONTEXT_CHARACTERS, end)
    return blank.end() if blank else end - CONTEXT_CHARACTERS


def _wrong(right: str, *, before: Counter[str], common: Mapping[str, int], random: Random) -> list[str]:
    """Words of the context that stand there about as often as the right one, and in about as many documents."""
    fit = [word for word in before if word[0].isupper() == right[0].isupper() and not _akin(word, right)]
    fit = random.sample(sorted(fit), len(fit))

    def distance(word: str) -> tuple[int, int]:
        return abs(before[word] - before[right]), abs(common[word.lower()] - common[right.lower()])

    found: list[str] = []
    for word in sorted(fit, key=distance):
        if len(found) < NUM_CHOICES - 1 and not any(_akin(word, other) for other in found):
            found.append(word)
    return random.sample(found, len(found))


def _akin(one: str, other: str) -> bool:
    """Whether they may be forms of one word: `return`, `Returns`."""
    return one.lower()[:4] == other.lower()[:4]


def _cut(text: str) -> tuple[str, str] | None:
    """The beginning and what goes on from it, cut in front of blanks."""
    blanks = [one.start() for one in re.finditer(r"(?<=\S) (?=\S)", text)]
    middle = min(BEGINNING, max(MIN_BEGINNING, len(text) // 2))
    cut = next((blank for blank in blanks if blank >= middle), None)
    if cut is None:
        return None
    end = (
        len(text)
        if len(text) <= cut + CONTINUATION
        else max((blank for blank in blanks if cut < blank <= cut + CONTINUATION), default=cut)
    )
    own = text[cut:end].rstrip()
    return (text[:cut], own) if len(own) >= MIN_CONTINUATION else None


def _others(one: Document, beginning: str, *, own: str, cuts: Iterable[tuple[Document, tuple[str, str]]]) -> list[str]:
    """Pieces of the next other documents that share about as many words with the beginning as its own one does."""
    said = _words(beginning)

    def shared(piece: str) -> float:
        words = _words(piece)
        return len(words & said) / max(len(words), 1)

    fit: list[str] = []
    for _, (_, piece) in cuts:
        if len(fit) == CANDIDATES:
            break
        if piece.strip() not in one.text and own.strip() not in piece and piece not in fit:
            fit.append(piece)
    return sorted(fit, key=lambda piece: abs(shared(piece) - shared(own)))[: NUM_CHOICES - 1]


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))
