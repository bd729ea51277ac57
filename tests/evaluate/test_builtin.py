"""Built-in benchmarks: one right answer by a solver of its own, no way to guess it, nothing that hangs on an order."""

import random
import re
from collections import Counter
from dataclasses import replace
from statistics import mean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.evaluate.builtin import logic
from tessera.evaluate.builtin.make import CATEGORIES, Document, Unavailable, make, make_all
from tessera.evaluate.settings import BUILT_IN
from tessera.evaluate.task import key_of

FIRST, SECOND, THIRD = "bdfgk", ("ran", "lom", "sit", "wus", "pev"), ("del", "tor", "fax", "ming")
NOUNS = [a + b + c for a in FIRST for b in SECOND for c in THIRD]
VERBS = ("takes", "gives", "holds", "moves")
OF_DOCUMENTS = BUILT_IN[:4]
LOGIC = BUILT_IN[4:]


def documents(n: int = 120) -> list[Document]:
    """Texts in which words come again, beside columns as the sample table has them."""
    found = []
    for number in range(n):
        draw = random.Random(number)
        own = draw.sample(NOUNS, 8)
        said = [(draw.choice(own), draw.choice(VERBS), draw.choice(own)) for _ in range(12)]
        lines = [f"The {one} {does} the {other} and {number} more." for one, does, other in said]
        module = f"pack{number % 3}.part{number % 11}"
        parameters = ", ".join(draw.sample(own, draw.randint(1, 4)))
        row = {"id": f"{module}.make_{number}", "module": module, "signature": f"make_{number}({parameters})"}
        found.append(Document(f"{number:064x}", "\n".join(lines), row))
    return found


DOCUMENTS = documents()


@pytest.mark.parametrize("name", BUILT_IN)
def test_items_depend_on_documents_seed_and_number_alone(name) -> None:
    task = make(name, documents=DOCUMENTS, n=60, seed=5)
    turned = make(name, documents=random.Random(1).sample(DOCUMENTS, len(DOCUMENTS)), n=60, seed=5)

    assert turned == task
    assert (task.kind, task.category, task.chance) == ("multiple_choice", CATEGORIES[name], 0.25)
    assert len(task.items) == 60
    assert len({key_of(item) for item in task.items}) == 60
    assert len({item.pairs[0][0] for item in task.items}) == 60, "a context was asked twice"
    assert {key_of(one) for one in make(name, documents=DOCUMENTS, n=60, seed=6).items} != {
        key_of(one) for one in task.items
    }


@pytest.mark.parametrize("name", BUILT_IN)
def test_four_different_choices_with_the_right_one_everywhere_as_often(name) -> None:
    items = make(name, documents=DOCUMENTS, n=80, seed=17).items

    assert Counter(item.gold for item in items) == dict.fromkeys(range(4), 20)
    for item in items:
        assert len({context for context, _ in item.pairs}) == 1
        assert len({continuation.strip() for _, continuation in item.pairs}) == 4
        assert not item.pairs[0][0][-1:].isspace(), "a blank stands at the end of a context"


GUESSES = {
    "longest": lambda item: max(range(4), key=lambda at: len(item.pairs[at][1])),
    "shortest": lambda item: min(range(4), key=lambda at: len(item.pairs[at][1])),
    "first of the alphabet": lambda item: min(range(4), key=lambda at: item.pairs[at][1]),
    "most like the others": lambda item: max(range(4), key=lambda at: _likeness(item, at)),
    "least like the others": lambda item: min(range(4), key=lambda at: _likeness(item, at)),
}


@pytest.mark.parametrize("guess", GUESSES)
@pytest.mark.parametrize("name", BUILT_IN)
def test_choices_alone_do_not_tell_the_right_one(name, guess) -> None:
    items = make(name, documents=documents(400), n=240, seed=17).items

    right = mean(GUESSES[guess](item) == item.gold for item in items)

    assert len(items) == 240
    assert abs(right - 0.25) < 0.11, "four standard deviations"


@pytest.mark.parametrize("name", BUILT_IN)
def test_permuted_labels_score_at_chance(name) -> None:
    """One who knows every answer, against labels that are shuffled."""
    golds = [item.gold for item in make(name, documents=documents(400), n=240, seed=17).items]

    shuffled = random.Random(3).sample(golds, len(golds))

    assert abs(mean(a == b for a, b in zip(golds, shuffled, strict=True)) - 0.25) < 0.11


def test_a_gap_is_a_place_of_its_document_and_its_words_stood_before() -> None:
    by_id = {one.doc_id: one for one in DOCUMENTS}
    items = make("reading", documents=DOCUMENTS, n=100, seed=17).items

    assert max(Counter(item.doc_id for item in items).values()) <= 2
    for item in items:
        text, (context, right) = by_id[item.doc_id].text, item.pairs[item.gold]
        whole = context + right
        assert whole in text
        assert re.match(r"\W|$", text[text.index(whole) + len(whole) :]), "the gap ends within a word"
        for _, word in item.pairs:
            assert re.search(rf"\b{word.strip()}\b", context)
        assert all(context + wrong not in text for at, (_, wrong) in enumerate(item.pairs) if at != item.gold)


def test_one_continuation_is_the_documents_own() -> None:
    by_id = {one.doc_id: one for one in DOCUMENTS}
    for item in make("reading_pairs", documents=DOCUMENTS, n=60, seed=17).items:
        own = [text.startswith(context + piece) for context, piece in item.pairs if (text := by_id[item.doc_id].text)]
        assert own == [at == item.gold for at in range(4)]
        assert not any(piece in by_id[item.doc_id].text for at, (_, piece) in enumerate(item.pairs) if at != item.gold)


def test_a_name_is_of_one_module_and_a_function_has_one_signature() -> None:
    rows = [one.attributes for one in DOCUMENTS]
    modules = {(row["id"].rpartition(".")[2], row["module"]) for row in rows}
    signatures = {(row["id"], row["signature"].rpartition("(")[2]) for row in rows}

    for item in make("knowledge", documents=DOCUMENTS, n=60, seed=17).items:
        asked = re.match(r"The name (\S+) is defined in the module$", item.pairs[0][0])[1]
        assert [(asked, one.strip()) in modules for _, one in item.pairs] == [at == item.gold for at in range(4)]
    for item in make("signatures", documents=DOCUMENTS, n=60, seed=17).items:
        asked = re.match(r"# (\S+)\n", item.pairs[0][0])[1]
        assert [(asked, one.lstrip("(")) in signatures for _, one in item.pairs] == [at == item.gold for at in range(4)]


def test_a_name_of_two_modules_is_not_asked_for() -> None:
    twice = [
        replace(one, attributes={**one.attributes, "id": f"{one.attributes['module']}.shared"})
        if number in (3, 4)
        else one
        for number, one in enumerate(DOCUMENTS)
    ]

    contexts = [item.pairs[0][0] for item in make("knowledge", documents=twice, n=200, seed=17).items]

    assert len(contexts) == len(DOCUMENTS) - 2
    assert not any("shared" in context for context in contexts)


def test_without_columns_or_documents_it_says_what_is_missing() -> None:
    bare = [Document(one.doc_id, one.text) for one in DOCUMENTS]

    found = make_all(documents=bare, n=20, seed=17)
    none = make_all(documents=[], n=20, seed=17)

    assert {name for name, one in found.items() if isinstance(one, Unavailable)} == {"knowledge", "signatures"}
    assert "id, module, signature" in str(found["signatures"])
    assert {name for name, one in none.items() if isinstance(one, Unavailable)} == {*OF_DOCUMENTS}
    with pytest.raises(Unavailable, match="reading: 0 items could be made, wanted at least 10"):
        make("reading", documents=DOCUMENTS[:5], n=20, seed=17)


@pytest.mark.parametrize("name", LOGIC)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_a_solver_of_its_own_finds_the_one_right_answer(name, seed) -> None:
    items = make(name, documents=[], n=30, seed=seed).items

    for item in items:
        right = SOLVERS[name](item.pairs[0][0])
        assert [continuation == f" {right}" for _, continuation in item.pairs] == [at == item.gold for at in range(4)]


def test_difficulty_rises_with_the_place() -> None:
    n = 30
    levels = [logic.level_of(at, n=n) for at in range(n)]
    assert levels == [0] * 10 + [1] * 10 + [2] * 10

    ordering = make("ordering", documents=[], n=n, seed=17).items
    facts = [item.pairs[0][0].count("than") for item in ordering]
    rest = [len(item.pairs[item.gold][1].split()) for item in make("dyck", documents=[], n=n, seed=17).items]

    both = {
        level: any(len({*re.findall(r"is (\w+) than", item.pairs[0][0])}) == 2 for item in ordering[level * 10 :][:10])
        for level in range(3)
    }
    assert both == {0: False, 1: False, 2: True}
    assert facts == [3 + level for level in levels]
    assert rest == [2 + level for level in levels]


def test_puzzles_do_not_run_out() -> None:
    for name in LOGIC:
        assert len({item.pairs[0][0] for item in make(name, documents=[], n=3000, seed=1).items}) == 3000


def _likeness(item, at: int) -> float:
    """Of numbers how close they are to the others, of texts how many places and words they share."""
    texts = [continuation.strip() for _, continuation in item.pairs]
    if all(re.fullmatch(r"-?\d+", text) for text in texts):
        return -sum(abs(int(texts[at]) - int(other)) for other in texts)
    words = [text.split() for text in texts]
    return sum(sum(a == b for a, b in zip(words[at], other, strict=False)) for other in words)


def _rest_of_brackets(prompt: str) -> str:
    """Takes matched pairs away until none is left."""
    text = prompt.splitlines()[1].replace(" ", "")
    while (shorter := re.sub(r"\(\)|\[\]|\{\}|<>", "", text)) != text:
        text = shorter
    return " ".join(text[::-1].translate(str.maketrans("([{<", ")]}>")))


def _result_of_op(prompt: str) -> str:
    rule, asked = prompt.splitlines()
    p, q = map(int, re.search(r"(\d) times a plus (\d) times b", rule).groups())
    numbers = [*map(int, re.findall(r"\d+", asked))]
    if "otherwise" in rule and numbers[0] <= numbers[1]:
        return str(numbers[0] * numbers[1])
    result = numbers[0]
    for number in numbers[1:]:
        result = p * result + q * number
    return str(result)


def _by_python(prompt: str) -> str:
    assert re.fullmatch(r"[\d +*()-]+ =", prompt)
    return str(eval(prompt.removesuffix("=")))


def _by_sorting(prompt: str) -> str:
    """Sorts by counting, for each person, who is below: the closure of all that is said."""
    less = {"shorter", "younger", "lighter", "slower", "poorer"}
    above = [(b, a) if word in less else (a, b) for a, word, b in re.findall(r"(\w+) is (\w+) than (\w+)\.", prompt)]
    below: dict[str, set[str]] = {name: set() for pair in above for name in pair}
    for _ in below:
        for high, low in above:
            below[high] |= {low} | below[low]
    ranking = sorted(below, key=lambda name: -len(below[name]))
    assert [len(below[name]) for name in ranking] == [*range(len(ranking))][::-1], "the order is not told"
    asked = re.search(r"Who is the (.+)\?", prompt)[1]
    if asked.startswith("second"):
        return ranking[1]
    return ranking[-1 if asked in {"shortest", "youngest", "lightest", "slowest", "poorest"} else 0]


SOLVERS = {
    "dyck": _rest_of_brackets,
    "operators": _result_of_op,
    "arithmetic": _by_python,
    "ordering": _by_sorting,
}
