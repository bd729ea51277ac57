"""The common measure: bits per byte of the held-out documents, summed the same way for every system's model.

Each piece of a document, at most T tokens long, starts anew behind the end token, and each of its tokens is predicted
once, the first and the end included. That is how Tessera's own evaluation counts. Rows are sorted by length and padded
on the right, where a causal model's padding changes nothing. numpy and torch only: it runs in both environments.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from corpus import Corpus
from torch import nn
from torch.nn import functional

IGNORED = -100
ROWS = 32
"""Pieces computed at once."""

# Shapes: B = rows, T = the longest of them.
Rows = tuple[torch.Tensor, torch.Tensor]


class Heldout:
    """The held-out pieces of a corpus as batches."""

    def __init__(self, corpus: Corpus, *, seq_len: int) -> None:
        split = corpus.split("heldout")
        self.text_bytes = split.text_bytes
        pieces = [one[low : low + seq_len] for one in split.documents() for low in range(0, len(one), seq_len)]
        pieces.sort(key=len)
        self._batches = [batch(pieces[low : low + ROWS], end_id=corpus.end_id) for low in range(0, len(pieces), ROWS)]

    def __iter__(self) -> Iterator[Rows]:
        return iter(self._batches)

    @torch.inference_mode()
    def bits_per_byte(self, model: nn.Module) -> float:
        """nats / (ln 2 * bytes) under a causal model of `transformers`, which is left in the mode that it had."""
        training, nats = model.training, 0.0
        model.eval()
        for inputs_BT, labels_BT in self:
            logits = model(input_ids=inputs_BT, use_cache=False).logits.float()
            nats += float(functional.cross_entropy(logits.flatten(0, 1), labels_BT.flatten(), reduction="sum").double())
        model.train(training)
        return nats / (math.log(2) * self.text_bytes)


def batch(pieces: list[np.ndarray], *, end_id: int) -> Rows:
    """Inputs and labels [B, T] of pieces: what comes before each token, and the token; IGNORED in padding."""
    longest = max(map(len, pieces))
    inputs = np.full((len(pieces), longest), end_id, np.int64)
    labels = np.full((len(pieces), longest), IGNORED, np.int64)
    for row, piece in enumerate(pieces):
        labels[row, : len(piece)] = piece
        inputs[row, 1 : len(piece)] = piece[:-1]
    return torch.from_numpy(inputs), torch.from_numpy(labels)
