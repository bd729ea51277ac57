"""Small models with a tokenizer of their own, for tests of what models are asked."""

from pathlib import Path

import torch

from tessera.evaluate.subject import Subject
from tessera.model import build
from tessera.model.settings import ExpertSettings, ModelSettings
from tessera.shard import tokenizer

WORDS = "the a cat dog sat mat on under red blue house tree sun moon river stone bread water hand eye went saw made"
TEXTS = [f"{' '.join(WORDS.split()[i % 7 : i % 7 + 9])} {i} +{i * 7}={i * 8}. (größe {i})\n" for i in range(400)]


def make_subject(
    folder: Path, *, context: int = 256, experts: bool = False, document_start: bool = False, batch_tokens: int = 2048,
    seed: int = 3, scale: float = 4.0,
) -> Subject:  # fmt: skip
    """Random weights, large enough that the model has opinions."""
    if not (folder / "tokenizer.json").exists():
        tokenizer.train(TEXTS, folder=folder, vocab_size=400)
    words = tokenizer.load(folder)
    settings = ModelSettings(
        layers=2, width=32, heads=2, kv_heads=1, ffn_width=64,
        experts=ExpertSettings(count=4, active=2, width=16) if experts else None,
    )  # fmt: skip
    model = build.build(settings, vocab_size=words.vocab_size, seq_len=context, end_id=words.end_id, seed=seed).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.dim() > 1:
                generator = torch.Generator().manual_seed(seed + len(name))
                value.normal_(0, scale / value.shape[-1] ** 0.5, generator=generator)
    return Subject(
        model=model, tokenizer=words, weights_sha256="", document_start=document_start, batch_tokens=batch_tokens
    )
