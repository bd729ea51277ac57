"""Logic: puzzles without end, generated from a seed, in three levels of difficulty.

The first third of the items is of level 0, the last of level 2: `level_of`. Each has one right answer, which follows
from the prompt alone; the wrong ones are what usual mistakes lead to.

    dyck        close open brackets, 2 to 4 of them, in order; wrong ones are as long
    operators   an operator is defined in words and applied: once, with a condition, within itself
    arithmetic  +, - and *: of two numbers, of larger ones, of three with precedence
    ordering    who is the tallest: of 4 in order, of 5 in disorder, of 6 with both words of a pair
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from random import Random

from tessera.evaluate.builtin.document import NUM_CHOICES, Unavailable, choices, generator, places
from tessera.evaluate.task import Choices

LEVELS = 3
MAX_TRIES = 1000
"""To find a puzzle that was not there before."""

BRACKETS = {"(": ")", "[": "]", "{": "}", "<": ">"}
NAMES = (
    "Ada", "Ben", "Carla", "David", "Emma", "Felix", "Greta", "Hugo", "Ines", "Jonas", "Klara", "Leo", "Maria", "Nils",
    "Olga", "Paul", "Rosa", "Simon", "Tara", "Viktor",
)  # fmt: skip
RELATIONS = (
    ("taller", "shorter", "tallest", "shortest"),
    ("older", "younger", "oldest", "youngest"),
    ("heavier", "lighter", "heaviest", "lightest"),
    ("faster", "slower", "fastest", "slowest"),
    ("richer", "poorer", "richest", "poorest"),
)
"""(more, less, most, least)."""

Puzzle = tuple[str, str, list[str]]
"""Prompt, right answer, and three different wrong ones."""


def items(name: str, *, n: int, seed: int) -> list[Choices]:
    """`n` different puzzles, in the order of their level.

    Raises:
        Unavailable: there are not as many.
    """
    golds = places(n, seed=seed, name=name)
    found: list[Choices] = []
    prompts: set[str] = set()
    for at in range(n):
        random = generator(seed, name, n, at)
        prompt, right, wrong = _new(name, level=level_of(at, n=n), random=random, known=prompts)
        prompts.add(prompt)
        blanks = [f" {one}" for one in random.sample(wrong, len(wrong))]
        found.append(choices(prompt, right=f" {right}", wrong=blanks, place=golds[at]))
    return found


def level_of(at: int, *, n: int) -> int:
    """How difficult the item at a place of `n` is, from 0."""
    return at * LEVELS // n


def _new(name: str, *, level: int, random: Random, known: set[str]) -> Puzzle:
    for _ in range(MAX_TRIES):
        puzzle = PUZZLES[name](level, random)
        if puzzle[0] not in known:
            return puzzle
    raise Unavailable(f"{name}: no new puzzle of level {level} after {len(known)} items; lower evaluate.items")


def _dyck(level: int, random: Random) -> Puzzle:
    """Random opening and closing until as many are open as the level says."""
    wanted, length = 2 + level, 6 + 4 * level
    shown: list[str] = []
    still_open: list[str] = []
    while len(shown) < length or len(still_open) != wanted:
        if still_open and (len(still_open) > wanted + 1 or random.random() < 0.5):
            shown.append(BRACKETS[still_open.pop()])
        else:
            still_open.append(random.choice([*BRACKETS]))
            shown.append(still_open[-1])
    right = [BRACKETS[one] for one in reversed(still_open)]
    return f"Close the brackets.\n{' '.join(shown)}\nRest:", " ".join(right), _wrong_endings(right, random=random)


def _wrong_endings(right: list[str], *, random: Random) -> list[str]:
    """As long: one bracket is of another kind, or a second one, or both, so that each of the four is as likely."""
    first, second = random.sample(range(len(right)), 2)
    changed = {at: random.choice([one for one in BRACKETS.values() if one != right[at]]) for at in (first, second)}
    some = [(first,), (second,), (first, second)]
    return [" ".join(changed[at] if at in ones else one for at, one in enumerate(right)) for ones in some]


def _operators(level: int, random: Random) -> Puzzle:
    a, b, c = (random.randint(2, 9 + 10 * level) for _ in range(3))
    p, q = random.randint(2, 5), random.randint(2, 5)

    def op(x: int, y: int) -> int:
        return p * x + q * y

    def swapped(x: int, y: int) -> int:
        return q * x + p * y

    plain = f"{p} times a plus {q} times b"
    if level == 0:
        near = [swapped(a, b), p * a + b, a + q * b, (p * a + q) * b, p * (a + q * b)]
        return _numeric(f"a op b is {plain}.\n{a} op {b} =", op(a, b), near=near, random=random)
    if level == 1:
        value = op(a, b) if a > b else a * b
        near = [a * b if a > b else op(a, b), swapped(a, b), a + b, p * (a + q * b)]
        text = f"a op b is {plain} if a is greater than b, and a times b otherwise.\n{a} op {b} ="
        return _numeric(text, value, near=near, random=random)
    near = [op(a, op(b, c)), swapped(swapped(a, b), c), op(a, b) + c, op(swapped(a, b), c)]
    return _numeric(f"a op b is {plain}.\n({a} op {b}) op {c} =", op(op(a, b), c), near=near, random=random)


def _arithmetic(level: int, random: Random) -> Puzzle:
    if level == 0:
        a, b = random.randint(1, 99), random.randint(1, 99)
        if random.random() < 0.5:
            return _numeric(f"{a} + {b} =", a + b, near=[abs(a - b)], random=random)
        return _numeric(f"{a} - {b} =", a - b, near=[b - a, a + b], random=random)
    if level == 1:
        a, b = random.randint(100, 999), random.randint(2, 9)
        return _numeric(f"{a} * {b} =", a * b, near=[a * (b + 1), a * (b - 1)], random=random)
    a, b, c = random.randint(10, 99), random.randint(2, 9), random.randint(11, 99)
    if random.random() < 0.5:
        return _numeric(f"{a} + {b} * {c} =", a + b * c, near=[(a + b) * c, a * b + c], random=random)
    return _numeric(f"({a} - {b}) * {c} =", (a - b) * c, near=[a - b * c, (a + b) * c], random=random)


def _numeric(prompt: str, right: int, *, near: Sequence[int], random: Random) -> Puzzle:
    """Wrong numbers: a usual mistake's, greater or less as often, and both with a slip: a one, a two, a carried ten.

    Nothing but the calculation tells the four apart: neither their order nor how close they lie together.
    """
    slip, side = random.choice([-10, -2, -1, 1, 2, 10]), random.choice([-1, 1])
    fit = [one for one in near if (one - right) * side > 0 and abs(one - right) != abs(slip)]
    mistake = random.choice(fit) if fit else right + side * random.randint(11, 30)
    return prompt, str(right), [str(one) for one in (right + slip, mistake, mistake + slip)]


def _ordering(level: int, random: Random) -> Puzzle:
    """A chain of neighbours, the greatest first; of the names four stand for choice."""
    chain = random.sample(NAMES, 4 + level)
    more, less, most, least = random.choice(RELATIONS)
    facts = []
    for high, low in pairwise(chain):
        turned = level == 2 and random.random() < 0.5
        facts.append(f"{low} is {less} than {high}." if turned else f"{high} is {more} than {low}.")
    if level > 0:
        random.shuffle(facts)
    questions = [(most, chain[0]), (least, chain[-1]), (f"second {most}", chain[1])]
    asked, right = random.choice(questions if level > 0 else questions[:2])
    wrong = random.sample([one for one in chain if one != right], NUM_CHOICES - 1)
    return f"{' '.join(facts)}\nWho is the {asked}?", right, wrong


PUZZLES: Mapping[str, Callable[[int, Random], Puzzle]] = {
    "dyck": _dyck,
    "operators": _operators,
    "arithmetic": _arithmetic,
    "ordering": _ordering,
}
