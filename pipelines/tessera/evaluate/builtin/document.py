"""What built-in benchmarks are made of, and how their items are drawn: by hashes, so that no order of rows matters."""

import hashlib
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tessera.errors import UserError
from tessera.evaluate.task import Choices

MIN_ITEMS = 10
"""A benchmark of fewer says nothing; who asks for fewer gets them."""
NUM_CHOICES = 4


class Unavailable(UserError):
    """A built-in benchmark cannot be made of these documents."""


@dataclass(frozen=True)
class Document:
    """A held-out document."""

    doc_id: str
    text: str = field(repr=False)
    attributes: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Other columns of its row, where they are known."""


def generator(*parts: object) -> random.Random:
    """Random numbers that hang on `parts` alone."""
    return random.Random(hashlib.sha256("\n".join(map(str, parts)).encode("utf-8", "surrogatepass")).digest())


def shuffled(documents: Iterable[Document], *, seed: int, name: str) -> list[Document]:
    """In the order of a hash."""

    def place(one: Document) -> tuple[bytes, str]:
        return hashlib.sha256(f"{seed}\n{name}\n{one.doc_id}".encode()).digest(), one.text

    return sorted(documents, key=place)


def each_text_once(documents: Iterable[Document]) -> list[Document]:
    """The first document of each text."""
    found: dict[str, Document] = {}
    for one in documents:
        found.setdefault(one.text, one)
    return [*found.values()]


def choices(context: str, *, right: str, wrong: Sequence[str], place: int, doc_id: str | None = None) -> Choices:
    """An item whose right continuation stands at `place`."""
    ordered = [*wrong[:place], right, *wrong[place:]]
    return Choices(tuple((context, one) for one in ordered), gold=place, doc_id=doc_id)


def places(n: int, *, seed: int, name: str) -> list[int]:
    """Where the right choice of each item stands: every run of NUM_CHOICES items has each place once."""
    random_ = generator("places", seed, name)
    found: list[int] = []
    while len(found) < n:
        found += random_.sample(range(NUM_CHOICES), NUM_CHOICES)
    return found[:n]


def check_enough(found: Sequence[object], *, n: int, name: str, wanted: str) -> None:
    """Raises Unavailable when too few items could be made."""
    if len(found) < min(n, MIN_ITEMS):
        raise Unavailable(
            f"{name}: {len(found)} items could be made, wanted at least {min(n, MIN_ITEMS)}; it takes {wanted}. "
            "Hold out more documents (prepare.holdout), or leave it out of evaluate.built_in and the gauntlet"
        )
