"""Packed rows taken apart: how a trainer that does not pack would see the same documents."""

import torch

from tessera.model.loss import IGNORED
from tessera.shard.read.batches import Batch

# Shapes: B = rows, T = seq_len, N = document pieces in them, L = tokens of the longest.


def one_document_a_row(part: Batch) -> Batch:
    """[B, T] of packed documents -> [N, L], each piece in a row of its own, padded behind; the same labels.

    Padding has label IGNORED, document -1 and token 0. Rows that hold nothing but padding are left out.
    """
    documents = part["document_ids"]
    real = documents >= 0
    row = torch.arange(len(documents), device=documents.device)[:, None].expand_as(documents)
    _, piece, lengths = torch.unique_consecutive(
        torch.stack([row[real], documents[real]]), dim=1, return_inverse=True, return_counts=True
    )
    where = (piece, part["position_ids"][real])
    shape = (len(lengths), int(lengths.max()) if len(lengths) else 0)
    padding = {"input_ids": 0, "labels": IGNORED, "position_ids": 0, "document_ids": -1}
    arranged = {name: part[name].new_full(shape, value) for name, value in padding.items()}
    for name in ("input_ids", "labels", "position_ids"):
        arranged[name][where] = part[name][real]
    arranged["document_ids"][where] = 0
    return arranged
