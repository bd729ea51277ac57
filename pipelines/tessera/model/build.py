"""Makes, loads and exports language models: `transformers` architectures, our own initial values, safetensors only.

A model from dimensions is Qwen3: grouped-query attention with RMS-normed queries and keys, rotary positions, gated
feed-forward, no biases, no dropout; with `experts` it is Qwen3-MoE, whose feed-forward parts are mixtures of small
experts. Mixtures are dropless: no expert has a capacity, so no token's answer depends on its neighbours in the batch.
They run as one grouped product: on 2 CPU cores as fast as a loop over 16 experts, 1.3 times as fast at 64.
Output projections start at zero, so that every block starts as the identity. What is written here loads in
`AutoModelForCausalLM.from_pretrained` as it is, of `transformers` 4 too. Nothing is ever downloaded or unpickled.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tessera.errors import ModelError
from tessera.model.experts import DOWN, ROUTER, follow_autocast, is_stacked, split
from tessera.model.lean import model_code
from tessera.model.settings import ModelSettings

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
ZEROED = ("o_proj.weight", "down_proj.weight", f"experts.{DOWN}")
"""Output projections: zero at the start."""


def build(settings: ModelSettings, *, vocab_size: int, seq_len: int, end_id: int, seed: int) -> nn.Module:
    """A model to train: from `settings.path` if given, else new, its values a function of `seed`.

    Args:
        vocab_size: the tokenizer's.
        seq_len: T, what the model must be able to read, in tokens.
        end_id: end-of-document token; also the begin marker.

    Raises:
        ModelError: the pretrained folder is unfit, or its vocabulary or context is too small.
    """
    if settings.path is not None:
        model = load(Path(settings.path))
        _check_fits(model.config, path=settings.path, vocab_size=vocab_size, seq_len=seq_len)
        return model
    model = _construct(config_of(settings, vocab_size=vocab_size, seq_len=seq_len, end_id=end_id))
    initialize(model, seed=seed)
    return model


def config_of(settings: ModelSettings, *, vocab_size: int, seq_len: int, end_id: int) -> dict[str, Any]:
    """The Hugging Face configuration of a model from dimensions, as JSON values."""
    values = {
        "model_type": "qwen3",
        "vocab_size": vocab_size,
        "hidden_size": settings.width,
        "intermediate_size": settings.ffn_width,
        "num_hidden_layers": settings.layers,
        "num_attention_heads": settings.heads,
        "num_key_value_heads": settings.kv_heads,
        "head_dim": settings.head_dim or settings.width // settings.heads,
        "max_position_embeddings": max(settings.context or 0, seq_len),
        "rms_norm_eps": settings.norm_epsilon,
        "rope_parameters": {"rope_type": "default", "rope_theta": settings.rope_theta},
        "tie_word_embeddings": settings.tie_embeddings,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": end_id,
        "eos_token_id": end_id,
    }
    if settings.experts is None:
        return values
    return values | {
        "model_type": "qwen3_moe",
        "num_experts": settings.experts.count,
        "num_experts_per_tok": settings.experts.active,
        "moe_intermediate_size": settings.experts.width,
        "norm_topk_prob": True,
    }


def initialize(model: nn.Module, *, seed: int) -> None:
    """Sets every weight from `seed`, parameter by parameter in the order of their names.

    Output projections are zero and gains one; other matrices are uniform with standard deviation fan_in ** -0.5 (the
    scale after which Muon's updates, which have equal singular values, change all directions alike); embeddings are
    normal, with deviation 0.02 when they are tied to the output, else 1. Routers are normal with deviation 0.02, as
    OLMoE's (Muennighoff et al. 2024) and Qwen3-MoE's: what they read is normed, so the logits' deviation is
    0.02 x width ** 0.5, and tokens start spread almost evenly over the experts.
    """
    generator = torch.Generator().manual_seed(seed)
    tied = bool(model.config.tie_word_embeddings)  # type: ignore[union-attr]
    with torch.no_grad():
        for name, value in sorted(model.named_parameters()):
            if value.dim() < 2:
                value.fill_(0.0 if name.endswith("bias") else 1.0)
            elif name.endswith(ZEROED):
                value.zero_()
            elif "embed" in name:
                value.normal_(0.0, 0.02 if tied else 1.0, generator=generator)
            elif name.startswith("lm_head"):
                value.normal_(0.0, 0.002, generator=generator)
            elif name.endswith(ROUTER):
                value.normal_(0.0, 0.02, generator=generator)
            else:
                bound = (3.0 / value.shape[-1]) ** 0.5
                value.uniform_(-bound, bound, generator=generator)


def load(folder: Path) -> nn.Module:
    """The model in a local Hugging Face folder, in evaluation mode, in float32.

    Reads config.json and *.safetensors with our own code: no pickle, no code from the folder, no network.

    Raises:
        ModelError: a file is missing, is a pickle, or does not fit the architecture (names the first keys).
    """
    config = _read_config(folder)
    weights = read_weights(folder)
    model = _construct(config)
    assign(model, weights, origin=folder)
    return model.eval()


def assign(model: nn.Module, weights: Mapping[str, Tensor], *, origin: Path) -> None:
    """Copies `weights` into `model`; tied weights may be left out, anything else missing or unknown is refused.

    The experts of a mixture may be stacked or one by one, as `tessera.model.experts` says.

    Raises:
        ModelError: naming up to three keys.
    """
    own = split(model.state_dict(), model_type=_model_type(model))
    weights = split(weights, model_type=_model_type(model))
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    if own and not set(weights) & set(own):
        weights = {prefix + name: value for name, value in weights.items()}
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    missing = sorted(set(own) - set(weights) - tied)
    unknown = sorted(set(weights) - set(own))
    shapes = [name for name in sorted(set(own) & set(weights)) if own[name].shape != weights[name].shape]
    for problem, names in (("lacks", missing), ("has unknown", unknown), ("has other shapes for", shapes)):
        if names:
            listed = ", ".join(names[:3])
            raise ModelError(
                f"{origin}: the weights do not fit {type(model).__name__} in config.json: the file {problem} "
                f"{listed} ({len(names)} in all); give the folder whose config.json and weights belong together"
            )
    with torch.no_grad():
        for name, value in weights.items():
            own[name].copy_(value)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder by name: from one safetensors file, or from those that its index names."""
    files = [WEIGHTS]
    if not (folder / WEIGHTS).is_file():
        if not (folder / INDEX).is_file():
            raise _no_weights(folder)
        files = sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
    weights: dict[str, Tensor] = {}
    for name in files:
        file = folder / name
        if file.parent != folder or not file.is_file():
            raise ModelError(f"{folder}: {INDEX} names {name!r}, which is not a file in this folder; copy it there")
        try:
            weights |= load_file(file)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{file} is not a readable safetensors file ({error}); export it again") from None
    return weights


def export(model: nn.Module, *, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
    """Writes config.json, generation_config.json and model.safetensors, each value as it is, tied weights once.

    Args:
        weights: what `unique_weights` gave of an earlier moment; by default those of now.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config: Any = model.config
    values = {**json.loads(config.to_json_string(use_diff=True)), "architectures": [type(model).__name__]}
    values["dtype"] = str(next(model.parameters()).dtype).removeprefix("torch.")
    values |= _older_names(values)
    (folder / "config.json").write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    generation = {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id, "do_sample": False}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")
    save_file(dict(weights or unique_weights(model)), folder / WEIGHTS, metadata={"format": "pt"})


def unique_weights(model: nn.Module, *, copied: bool = False) -> dict[str, Tensor]:
    """The model's values by name, a tied weight only under its first name; on the CPU and contiguous.

    Experts come one by one, as views of what the model holds.

    Args:
        copied: no value shares memory with the model: see `on_cpu`.
    """
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    named = {name: value for name, value in model.state_dict().items() if name not in tied}
    values = {name: on_cpu(value, copied=copied) for name, value in named.items()}
    return split(values, model_type=_model_type(model))


def on_cpu(value: Tensor, *, copied: bool = False) -> Tensor:
    """All of a tensor, contiguous; one that is sharded over ranks is gathered, and each of them must ask for it.

    Args:
        copied: what lies on the CPU already is copied too, so that it stays as it is now.
    """
    value = value.detach()
    whole: Tensor = value.full_tensor() if hasattr(value, "full_tensor") else value
    here = whole.cpu().contiguous()
    return here.clone() if copied and here.data_ptr() == whole.data_ptr() else here


def num_parameters(model: nn.Module) -> int:
    """Parameters, a tied one counted once."""
    return sum(value.numel() for value in model.parameters())


def _construct(values: Mapping[str, Any]) -> nn.Module:
    """An untrained model of the architecture that `values` (config.json) names, in float32."""
    values = dict(values)
    model_type = str(values.get("model_type", ""))
    if values.get("auto_map") or not model_type.isidentifier():
        raise ModelError(
            f"config.json asks for code of its own (model_type {model_type!r}); only built-in ones are run"
        )
    try:
        code = model_code(model_type)
    except ModuleNotFoundError:
        raise ModelError(
            f"config.json names the architecture {model_type!r}, which transformers does not have"
        ) from None
    classes = [value for name, value in sorted(vars(code).items()) if name.endswith(("ForCausalLM", "LMHeadModel"))]
    if not classes:
        raise ModelError(f"the architecture {model_type!r} has no causal language model; give a decoder")
    named = [cls for cls in classes if cls.__name__ in (values.get("architectures") or [])]
    model_class = (named or classes)[0]
    for key in ("dtype", "torch_dtype", "quantization_config", "_name_or_path"):
        values.pop(key, None)
    config = model_class.config_class.from_dict(values)
    config._attn_implementation = "sdpa"
    for dropout in [name for name in vars(config) if name.endswith(("dropout", "pdrop"))]:
        setattr(config, dropout, 0.0)
    model: nn.Module = model_class(config)
    model.tie_weights()  # type: ignore[operator]
    if any(is_stacked(name) for name, _ in model.named_parameters()):
        follow_autocast()
    return model.float()


def _model_type(model: nn.Module) -> str:
    return str(getattr(model.config, "model_type", ""))


def _older_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Entries of config.json that `transformers` 4 knows by another name, and would silently replace by a default."""
    older = {}
    if "num_local_experts" in values:
        older["num_experts"] = values["num_local_experts"]
    if "rope_theta" in (values.get("rope_parameters") or {}):
        older["rope_theta"] = values["rope_parameters"]["rope_theta"]
    return older


def _read_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise ModelError(f"{folder} is not a folder; give a local folder in Hugging Face format: nothing is downloaded")
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ModelError(f"{folder} has no readable config.json; give a folder in Hugging Face format") from None
    if not isinstance(values, dict):
        raise ModelError(f"{folder / 'config.json'} is not a JSON object; export the model again")
    return values


def _no_weights(folder: Path) -> ModelError:
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLES)
    if pickles:
        return ModelError(
            f"{folder} holds its weights in {pickles[0]}, a pickle, which can run code and is refused; "
            f"export them as {WEIGHTS}"
        )
    return ModelError(f"{folder} has no {WEIGHTS}; give a folder with the weights: nothing is downloaded")


def _check_fits(config: Any, *, path: str, vocab_size: int, seq_len: int) -> None:
    if config.vocab_size < vocab_size:
        raise ModelError(
            f"train.model.path {path} has a vocabulary of {config.vocab_size}, the shard set's tokenizer {vocab_size}; "
            "write shards with the model's tokenizer: shard.tokenizer.path"
        )
    context = getattr(config, "max_position_embeddings", seq_len)
    if context < seq_len:
        raise ModelError(
            f"train.model.path {path} reads {context} tokens, shard.seq_len is {seq_len}; write shorter sequences"
        )
