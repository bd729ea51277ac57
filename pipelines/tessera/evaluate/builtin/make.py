"""Benchmarks that need no download: reading and knowledge out of held-out documents, logic out of a seed.

Items depend on the documents, the seed and the number alone, not on the order of the documents. All are multiple
choice among four, one of them right, with the right one's place balanced; of logic the difficulty rises from the first
item to the last. Costs a second over a thousand documents.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from tessera.evaluate.builtin import knowledge, logic, reading
from tessera.evaluate.builtin.document import Document, Unavailable
from tessera.evaluate.settings import BUILT_IN, BuiltIn
from tessera.evaluate.task import Choices, Task

__all__ = ["CATEGORIES", "Document", "Unavailable", "make", "make_all"]

CATEGORIES: Mapping[BuiltIn, str] = {
    "reading": "reading",
    "reading_pairs": "reading",
    "knowledge": "knowledge",
    "signatures": "knowledge",
    "dyck": "logic",
    "operators": "logic",
    "arithmetic": "logic",
    "ordering": "logic",
}

OF_DOCUMENTS: Mapping[BuiltIn, Callable[..., list[Choices]]] = {
    "reading": reading.cloze,
    "reading_pairs": reading.continuations,
    "knowledge": knowledge.modules,
    "signatures": knowledge.signatures,
}


def make(name: BuiltIn, *, documents: Sequence[Document], n: int, seed: int) -> Task:
    """A built-in benchmark of `n` items, or of as many as the documents give.

    Args:
        documents: held-out ones; logic needs none.

    Raises:
        Unavailable: the documents give too few items, or lack the columns that it takes; says which.
    """
    of_documents = OF_DOCUMENTS.get(name)
    items = of_documents(documents, n=n, seed=seed) if of_documents else logic.items(name, n=n, seed=seed)
    return Task(name, kind="multiple_choice", items=tuple(items), category=CATEGORIES[name], metric="acc")


def make_all(
    names: Iterable[BuiltIn] = BUILT_IN, *, documents: Sequence[Document], n: int, seed: int
) -> dict[BuiltIn, Task | Unavailable]:
    """Each benchmark, or why there is none."""
    found: dict[BuiltIn, Task | Unavailable] = {}
    for name in names:
        try:
            found[name] = make(name, documents=documents, n=n, seed=seed)
        except Unavailable as error:
            found[name] = error
    return found
