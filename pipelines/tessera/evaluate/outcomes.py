"""Asks a model a task: numbers for each item, by the kind of the task. See `task.METRICS` for what they mean."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import numpy as np

from tessera.evaluate.likelihood import Likelihood, likelihoods, passage_likelihoods
from tessera.evaluate.subject import Subject
from tessera.evaluate.task import Choices, Completion, Outcomes, Passage, Task, key_of

Progress = Callable[[int, int], None]
LN2 = float(np.log(2))


def examine(subject: Subject, task: Task, *, progress: Progress | None = None) -> Outcomes:
    """What the model does on each item of a task.

    Raises:
        PromptError: an item does not fit the model.
        TokenizerError: a text cannot be encoded.
    """
    match task.kind:
        case "multiple_choice" | "schema":
            return _choices(subject, task, progress=progress)
        case "language_modeling":
            return _completions(subject, task, progress=progress)
        case "perplexity":
            return _passages(subject, task, progress=progress)
    from tessera.evaluate.answering import generated_outcomes

    return generated_outcomes(subject, task, progress=progress)


def _choices(subject: Subject, task: Task, *, progress: Progress | None) -> Outcomes:
    """The greatest sum of log-likelihoods, as it is and by characters, bytes and tokens; of equal ones the first."""
    items = [item for item in task.items if isinstance(item, Choices)]
    found = likelihoods(subject, [pair for item in items for pair in item.pairs], progress=progress)
    rest = iter(found)
    values: dict[str, list[float]] = {"acc": [], "acc_norm": [], "acc_bytes": [], "acc_tokens": []}
    for item in items:
        one = [*islice(rest, len(item.pairs))]
        nats = np.array([likelihood.nats for likelihood in one])
        texts = [continuation.removeprefix(" ") for _, continuation in item.pairs]
        lengths = {
            "acc": [1] * len(one),
            "acc_norm": [len(text) for text in texts],
            "acc_bytes": [len(text.encode("utf-8", "replace")) for text in texts],
            "acc_tokens": [likelihood.tokens for likelihood in one],
        }
        for name, length in lengths.items():
            values[name].append(float(np.argmin(nats / np.maximum(length, 1)) == item.gold))
    return _outcomes(task, values, found=found)


def _completions(subject: Subject, task: Task, *, progress: Progress | None) -> Outcomes:
    items = [item for item in task.items if isinstance(item, Completion)]
    found = likelihoods(subject, [(item.context, item.continuation) for item in items], progress=progress)
    values = {"acc": [float(one.greedy) for one in found], "nats": [one.nats for one in found]}
    sizes = [max(1, len(item.continuation.encode("utf-8", "replace"))) for item in items]
    values["bits_per_byte"] = [one.nats / LN2 / size for one, size in zip(found, sizes, strict=True)]
    return _outcomes(task, values, found=found, weights=sizes if task.primary == "bits_per_byte" else ())


def _passages(subject: Subject, task: Task, *, progress: Progress | None) -> Outcomes:
    texts = [item.text for item in task.items if isinstance(item, Passage)]
    found = passage_likelihoods(subject, texts, progress=progress)
    sizes = [max(1, len(text.encode("utf-8", "replace"))) for text in texts]
    bits = [one.nats / LN2 / size for one, size in zip(found, sizes, strict=True)]
    return _outcomes(task, {"bits_per_byte": bits}, found=found, weights=sizes)


def _outcomes(
    task: Task, values: dict[str, list[float]], *, found: Sequence[Likelihood], weights: Sequence[float] = ()
) -> Outcomes:
    return Outcomes(
        keys=tuple(_keys(task)),
        values={name: tuple(of_items) for name, of_items in values.items()},
        weights=tuple(map(float, weights)),
        tokens=sum(one.tokens for one in found),
    )


def _keys(task: Task) -> Iterator[str]:
    return (key_of(item) for item in task.items)
