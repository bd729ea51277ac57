"""Small models and packed batches for the model room."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from tessera.model.build import build
from tessera.model.settings import ExpertSettings, ModelSettings

END_ID = 0
TINY = ModelSettings(layers=2, width=32, heads=4, kv_heads=2, ffn_width=48)
MIXTURE = ModelSettings(
    layers=2, width=32, heads=4, kv_heads=2, rope_theta=500.0, experts=ExpertSettings(count=6, active=2, width=24)
)


@pytest.fixture
def tiny() -> Callable[..., nn.Module]:
    """Makes a two-layer model; `trained=True` gives its zero-initialised projections values."""

    def make(
        *, settings: ModelSettings = TINY, vocab_size: int = 61, seq_len: int = 32, seed: int = 3, trained: bool = True
    ):
        model = build(settings, vocab_size=vocab_size, seq_len=seq_len, end_id=END_ID, seed=seed)
        if trained:
            generator = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                for value in model.parameters():
                    value.add_(torch.randn(value.shape, generator=generator), alpha=0.1)
        return model

    return make


def pack(documents: Sequence[Sequence[int]], *, seq_len: int) -> dict[str, Tensor]:
    """One sequence as the loader gives it: labels are the tokens, inputs are shifted and begin with the end token."""
    batch = {
        "input_ids": torch.full((1, seq_len), END_ID),
        "labels": torch.full((1, seq_len), -100),
        "position_ids": torch.zeros(1, seq_len, dtype=torch.int64),
        "document_ids": torch.full((1, seq_len), -1, dtype=torch.int32),
    }
    low = 0
    for number, document in enumerate(documents):
        tokens = [*document, END_ID]
        span = slice(low, low + len(tokens))
        batch["labels"][0, span] = torch.tensor(tokens)
        batch["input_ids"][0, span] = torch.tensor([END_ID, *document])
        batch["position_ids"][0, span] = torch.arange(len(tokens))
        batch["document_ids"][0, span] = number
        low += len(tokens)
    return batch
