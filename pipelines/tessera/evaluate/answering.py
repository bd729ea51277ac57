"""Answers that a model generates, and what they are worth: exact match, F1, programs that pass their tests.

Prompts are answered in batches, see `model.batches`; a prompt that leaves no room for an answer is cut on the left, as
in lm-evaluation-harness. Samples have seeds of their own, from the task's seed and the prompt: an answer depends on
neither batch nor order. Answers are compared and let go: none is kept.
"""

import hashlib
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from tessera.evaluate import text_metrics
from tessera.evaluate.sandbox import run_program
from tessera.evaluate.subject import Subject
from tessera.evaluate.task import Decoding, Outcomes, Program, Question, Task, key_of
from tessera.model.batches import generate_batches
from tessera.model.generate import Sampling

Progress = Callable[[int, int], None]
PROGRAM_SECONDS = 10.0
PROGRAM_BYTES = 512 * 2**20


def answers(
    subject: Subject, prompts: Sequence[str], decoding: Decoding, *, progress: Progress | None = None
) -> list[list[str]]:
    """`decoding.samples` answers to each prompt, each up to its first stop string.

    Raises:
        PromptError: an answer's tokens alone do not fit the model.
        TokenizerError: a prompt cannot be encoded.
    """
    rows = [(place, sample) for place in range(len(prompts)) for sample in range(decoding.samples)]
    encoded = [_fit(subject, ids, room=decoding.max_tokens) for ids in subject.tokenizer.encode_batch(prompts)]
    texts: list[list[str]] = [[""] * decoding.samples for _ in prompts]
    produced = generate_batches(
        subject.model,
        prompts=[encoded[place] for place, _ in rows],
        max_new_tokens=decoding.max_tokens,
        end_id=subject.tokenizer.end_id,
        samplings=[
            Sampling(decoding.temperature, seed=_seed(prompts[place], sample, decoding)) for place, sample in rows
        ],
        vocab_size=subject.tokenizer.vocab_size,
        stop=partial(_is_complete, subject, decoding.stop) if decoding.stop else None,
        batch_tokens=subject.batch_tokens,
    )
    for done, (row, generated) in enumerate(produced, start=1):
        place, sample = rows[row]
        texts[place][sample] = cut(subject.tokenizer.decode(generated.tokens), stop=decoding.stop)
        if progress:
            progress(done, len(rows))
    return texts


def cut(text: str, *, stop: Sequence[str]) -> str:
    """`text` before the first stop string in it; an empty one stops nothing."""
    return text[: min((at for string in stop if string and (at := text.find(string)) >= 0), default=len(text))]


def generated_outcomes(subject: Subject, task: Task, *, progress: Progress | None = None) -> Outcomes:
    """What the model's answers are worth, by item: tasks of kind `generation` and `code`."""
    prompts = [item.prompt for item in task.items if isinstance(item, Question | Program)]
    found = answers(subject, prompts, task.decoding, progress=progress)
    values = _of_programs(task, found) if task.kind == "code" else _of_answers(task, found)
    tokens = sum(map(len, subject.tokenizer.encode_batch([text for texts in found for text in texts])))
    return Outcomes(keys=tuple(key_of(item) for item in task.items), values=values, tokens=tokens)


def pass_at(k: int, *, samples: int, passed: int) -> float:
    """The chance that of k of the samples one passes, without bias (Chen et al. 2021): 1 - C(n - c, k) / C(n, k)."""
    if samples - passed < k:
        return 1.0
    return 1.0 - float(np.prod(1.0 - k / np.arange(samples - passed + 1, samples + 1)))


def _of_answers(task: Task, found: Sequence[Sequence[str]]) -> dict[str, tuple[float, ...]]:
    """Means over the samples of each item."""
    questions = [item for item in task.items if isinstance(item, Question)]
    compared = {"exact_match": text_metrics.exact_match, "f1": text_metrics.f1, "last_number": text_metrics.last_number}
    return {
        name: tuple(
            sum(compare(text, item.answers) for text in texts) / len(texts)
            for item, texts in zip(questions, found, strict=True)
        )
        for name, compare in compared.items()
    }


def _of_programs(task: Task, found: Sequence[Sequence[str]]) -> dict[str, tuple[float, ...]]:
    programs = [item for item in task.items if isinstance(item, Program)]
    passed = [
        sum(
            run_program(item.prompt + text, test=item.test, entry_point=item.entry_point, seconds=PROGRAM_SECONDS,
                        memory_bytes=PROGRAM_BYTES).passed
            for text in texts
        )
        for item, texts in zip(programs, found, strict=True)
    ]  # fmt: skip
    samples = task.decoding.samples
    return {f"pass_at_{k}": tuple(pass_at(k, samples=samples, passed=count) for count in passed) for k in task.ks}


def _fit(subject: Subject, ids: Sequence[int], *, room: int) -> Sequence[int]:
    start = [subject.tokenizer.end_id] if subject.document_start or not ids else []
    most = max(1, subject.context - room)
    return [*start, *ids][-most:]


def _is_complete(subject: Subject, stop: Sequence[str], tokens: Sequence[int]) -> bool:
    text = subject.tokenizer.decode(tokens)
    return any(string in text for string in stop if string)


def _seed(prompt: str, sample: int, decoding: Decoding) -> int:
    digest = hashlib.sha256(f"{decoding.seed} {sample} {prompt}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") >> 1
