"""Time to a next token: what someone who waits for an answer feels. Of this machine, as it is now."""

import statistics
import time

import torch

from tessera.evaluate.subject import Subject
from tessera.model.generate import generate

TOKENS = 32
ROUNDS = 3


def next_token_ms(subject: Subject, *, tokens: int = TOKENS, rounds: int = ROUNDS) -> float:
    """The median time to a next token in milliseconds, one prompt at a time, after a first one that is not counted.

    One thread on a CPU, as the server does for a small model, whose forward of one position is too little to share out.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = [seconds for _ in range(rounds) for seconds in _round(subject, tokens=tokens)]
    finally:
        torch.set_num_threads(before)
    return 1000 * statistics.median(found)


def _round(subject: Subject, *, tokens: int) -> list[float]:
    limit = min(tokens + 1, subject.context - 1)
    produced = generate(
        subject.model, prompt=[subject.tokenizer.end_id], max_new_tokens=limit, vocab_size=subject.tokenizer.vocab_size
    )
    next(produced)  # the prompt's own forward, and what a first call warms up
    taken, began = [], time.perf_counter()
    for _ in produced:
        ended = time.perf_counter()
        taken.append(ended - began)
        began = ended
    return taken
