"""Batches by the loader's contract, made by hand from lists of documents."""

import numpy as np


def batch_of(rows, *, seq_len, end_id):
    """One batch from rows of documents (lists of token ids, without their end token), as shard/read gives them.

    A row is packed from its start; what is left is padding. A document given as a tuple is a piece whose text goes on
    elsewhere: it gets no end token.
    """
    shape = (len(rows), seq_len)
    batch = {
        "input_ids": np.full(shape, end_id, np.int64),
        "labels": np.full(shape, -100, np.int64),
        "position_ids": np.zeros(shape, np.int64),
        "document_ids": np.full(shape, -1, np.int32),
    }
    for row, documents in enumerate(rows):
        at = 0
        for number, document in enumerate(documents):
            tokens = [*document] if isinstance(document, tuple) else [*document, end_id]
            for position, token in enumerate(tokens):
                batch["labels"][row, at] = token
                batch["input_ids"][row, at] = tokens[position - 1] if position else end_id
                batch["position_ids"][row, at] = position
                batch["document_ids"][row, at] = number
                at += 1
        batch["position_ids"][row, at:] = np.arange(seq_len - at)
    return batch
