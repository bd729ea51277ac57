"""Knowledge: facts that stand in the columns of a table beside the text, asked of held-out rows.

modules: in which module a name is defined. signatures: which parameters a function takes. Both take the columns that
the sample table has: id (the qualified name), module, signature. What is asked has one answer among the documents: a
name in two modules is left out, and no wrong choice holds for the name elsewhere.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from tessera.evaluate.builtin.document import (
    NUM_CHOICES,
    Document,
    Unavailable,
    check_enough,
    choices,
    generator,
    places,
    shuffled,
)
from tessera.evaluate.task import Choices

NAME, MODULE, SIGNATURE = "id", "module", "signature"
MIN_NAME = 4
"""Characters of a name that is asked for."""


def modules(documents: Sequence[Document], *, n: int, seed: int) -> list[Choices]:
    """Which module a name belongs to; the wrong ones are of its package and, as it is or is not, of tests."""
    facts = _facts("knowledge", documents, seed=seed, columns=(NAME, MODULE), fact=_module)
    of_name: Mapping[str, set[str]] = _together((asked, answer) for _, asked, answer in facts)
    known = sorted({answer for _, _, answer in facts})

    def wrong(asked: str, answer: str, doc_id: str) -> list[str]:
        random = generator(seed, "knowledge", doc_id)
        others = [one for one in random.sample(known, len(known)) if one not in of_name[asked]]
        near = sorted(others, key=lambda one: _unlike(one, answer))[: NUM_CHOICES - 1]
        return random.sample(near, len(near))

    found = [
        (one, f"The name {asked} is defined in the module", f" {answer}",
         [f" {other}" for other in wrong(asked, answer, one.doc_id)])
        for one, asked, answer in facts
        if len(of_name[asked]) == 1
    ]  # fmt: skip
    return _items("knowledge", found, n=n, seed=seed)


def signatures(documents: Sequence[Document], *, n: int, seed: int) -> list[Choices]:
    """Which parameters a function takes; the wrong ones are of other functions with about as many."""
    facts = _facts("signatures", documents, seed=seed, columns=(NAME, MODULE, SIGNATURE), fact=_parameters)
    of_name = _together((asked, answer) for _, asked, answer in facts)
    known = sorted({answer for _, _, answer in facts})

    def wrong(asked: str, answer: str, doc_id: str) -> list[str]:
        random = generator(seed, "signatures", doc_id)
        shape = (answer.startswith("(self"), "->" in answer)
        fit = [
            one for one in random.sample(known, len(known))
            if one not in of_name[asked] and (one.startswith("(self"), "->" in one) == shape
        ]  # fmt: skip
        near = sorted(fit, key=lambda one: abs(len(one) - len(answer)))[: NUM_CHOICES * 2]
        return random.sample(near, min(len(near), NUM_CHOICES - 1))

    found = [
        (one, f"# {asked}\ndef {asked.rpartition('.')[2]}", answer, wrong(asked, answer, one.doc_id))
        for one, asked, answer in facts
        if len(of_name[asked]) == 1
    ]
    return _items("signatures", found, n=n, seed=seed)


Fact = tuple[Document, str, str]


def _facts(
    name: str, documents: Sequence[Document], *, seed: int, columns: Sequence[str],
    fact: Callable[[Mapping[str, str]], tuple[str, str] | None],
) -> list[Fact]:  # fmt: skip
    """(document, what is asked, its answer) of the documents that have the columns, in the order of a hash."""
    having = [one for one in documents if all(one.attributes.get(column) is not None for column in columns)]
    if not having:
        raise Unavailable(
            f"{name}: none of {len(documents)} documents has the columns {', '.join(columns)} in its source table; "
            "leave it out of evaluate.built_in and the gauntlet, or give the table such columns"
        )
    found = [(one, fact(one.attributes)) for one in shuffled(having, seed=seed, name=name)]
    return [(one, *both) for one, both in found if both is not None]


def _module(row: Mapping[str, str]) -> tuple[str, str] | None:
    """A name without its module, and the module."""
    module, name = row[MODULE], _within(row)
    last = name.rpartition(".")[2]
    if not module or len(last) < MIN_NAME or last.startswith("_"):
        return None
    return name, module


def _parameters(row: Mapping[str, str]) -> tuple[str, str] | None:
    """A qualified name, and the signature from its bracket on: of functions with more parameters than `self`."""
    name = row[NAME].partition("#")[0]
    last, bracket, rest = row[SIGNATURE].partition("(")
    inside = rest.partition(")")[0].removeprefix("self").strip(", ")
    if not bracket or last.startswith("class ") or last != name.rpartition(".")[2] or not inside:
        return None
    return name, bracket + rest


def _within(row: Mapping[str, str]) -> str:
    """The qualified name of a row behind its module: empty for the module itself."""
    return row[NAME].partition("#")[0].removeprefix(row[MODULE]).removeprefix(".")


def _together(pairs: Iterable[tuple[str, str]]) -> Mapping[str, set[str]]:
    found: defaultdict[str, set[str]] = defaultdict(set)
    for key, value in pairs:
        found[key].add(value)
    return found


def _unlike(one: str, other: str) -> tuple[bool, bool]:
    """Whether one module is for tests and the other is not, and whether they are of different packages."""
    return ("test" in one) != ("test" in other), one.partition(".")[0] != other.partition(".")[0]


def _items(name: str, made: Iterable[tuple[Document, str, str, list[str]]], *, n: int, seed: int) -> list[Choices]:
    golds = places(n, seed=seed, name=name)
    found: list[Choices] = []
    contexts: set[str] = set()
    for one, context, right, wrong in made:
        if len(found) < n and len(wrong) == NUM_CHOICES - 1 and context not in contexts:
            contexts.add(context)
            found.append(choices(context, right=right, wrong=wrong, place=golds[len(found)], doc_id=one.doc_id))
    check_enough(found, n=n, name=name, wanted=f"{NUM_CHOICES} different answers and names that have one")
    return found
