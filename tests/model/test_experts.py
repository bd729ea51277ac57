"""Mixtures of experts: dropless, one grouped product, and files that others read."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.model.conftest import MIXTURE, pack
from torch.utils._python_dispatch import TorchDispatchMode

from tessera.errors import ModelError
from tessera.lineage import sha256_file
from tessera.model.build import build, export, load
from tessera.model.experts import split
from tessera.model.lean import model_code
from tessera.model.loss import causal_nats, hidden_states
from tessera.model.settings import ModelSettings

INPUT = torch.tensor([[0, 5, 9, 2, 7]])
COUNT, WIDTH, INNER = 6, 32, 24


class Products(TorchDispatchMode):
    """Notes the types of what grouped products multiply."""

    def __init__(self):
        super().__init__()
        self.types = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if "_grouped_mm" in str(function):
            self.types.append((args[0].dtype, args[1].dtype))
        return function(*args, **(kwargs or {}))


@pytest.fixture
def mixture(tiny):
    return tiny(settings=MIXTURE)


def logits(model, tokens=INPUT):
    with torch.no_grad():
        return model(input_ids=tokens).logits


def by_hand(model, hidden):
    """The first layer's mixture, token by token, from the definition. hidden: [N, D]."""
    values = {name.rpartition("mlp.")[2]: value for name, value in model.model.layers[0].named_parameters()}
    rows = []
    for row in hidden:
        chances = torch.softmax(values["gate.weight"] @ row, dim=0)
        chosen = chances.argsort(descending=True)[: MIXTURE.experts.active]
        total = torch.zeros(WIDTH)
        for expert in chosen:
            gate, up = (values["experts.gate_up_proj"][expert] @ row).split(INNER)
            answer = values["experts.down_proj"][expert] @ (torch.nn.functional.silu(gate) * up)
            total += chances[expert] / chances[chosen].sum() * answer
        rows.append(total)
    return torch.stack(rows)


def test_a_token_gets_the_weighted_answers_of_its_likeliest_experts(mixture):
    hidden = torch.randn(9, WIDTH, generator=torch.Generator().manual_seed(1))

    with torch.no_grad():
        torch.testing.assert_close(mixture.model.layers[0].mlp(hidden[None])[0], by_hand(mixture, hidden))


def test_initial_values_of_a_mixture(tiny):
    settings = MIXTURE.model_copy(update={"width": 256})
    values = tiny(settings=settings, trained=False).state_dict()
    layer = "model.layers.1.mlp."

    assert values[layer + "experts.gate_up_proj"].shape == (COUNT, 2 * INNER, 256)
    assert values[layer + "experts.gate_up_proj"].std().item() == pytest.approx(256**-0.5, rel=0.02)
    assert values[layer + "experts.down_proj"].count_nonzero() == 0
    assert values[layer + "gate.weight"].std().item() == pytest.approx(0.02, rel=0.1)


def test_initial_values_of_a_dense_model_are_those_of_the_first_release(tiny):
    values = tiny(trained=False).state_dict()

    for name, wanted in {
        "lm_head.weight": [-0.00073149370, 0.0016886307],
        "model.embed_tokens.weight": [0.059662968, -0.27411216],
        "model.layers.0.mlp.gate_proj.weight": [-0.043089890, -0.10678843],
        "model.layers.1.self_attn.v_proj.weight": [-0.086907990, -0.21038155],
    }.items():
        assert values[name][-1, -2:].tolist() == pytest.approx(wanted, rel=1e-5)


def test_one_grouped_product_gives_the_values_and_gradients_of_a_loop(mixture):
    batch = pack([[5, 9, 2, 7, 7, 1], [3, 3], [8, 14, 60, 21]], seq_len=24)
    found = {}
    for implementation in ("grouped_mm", "eager"):
        assert mixture.config._experts_implementation == "grouped_mm"  # what a model starts with
        mixture.set_experts_implementation(implementation)
        mixture.zero_grad()
        with Products() as products:
            causal_nats(mixture, batch).backward()
        found[implementation] = {name: value.grad.clone() for name, value in mixture.named_parameters()}
        found[implementation]["logits"] = logits(mixture, batch["input_ids"])
        assert bool(products.types) is (implementation == "grouped_mm")
        mixture.set_experts_implementation("grouped_mm")

    torch.testing.assert_close(found["grouped_mm"], found["eager"], atol=1e-5, rtol=1e-4)


def test_autocast_reaches_the_experts(mixture):
    with torch.autocast("cpu", dtype=torch.bfloat16), Products() as products:
        mixture(input_ids=INPUT).logits.sum().backward()

    assert set(products.types) == {(torch.bfloat16, torch.bfloat16)}
    assert mixture.model.layers[0].mlp.experts.down_proj.grad.dtype == torch.float32


def test_a_token_does_not_depend_on_its_batch_mates(mixture):
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(61, (7, 12), generator=generator)
    order = torch.randperm(7, generator=generator)
    together = logits(mixture, tokens)

    torch.testing.assert_close(logits(mixture, tokens[order]), together[order], atol=1e-5, rtol=1e-5)
    for row, alone in enumerate(tokens):
        torch.testing.assert_close(logits(mixture, alone[None])[0], together[row], atol=1e-5, rtol=1e-5)


def test_a_packed_document_changes_no_neighbour_through_the_router(mixture):
    first, last = [5, 9, 2, 7, 7, 1], [8, 14, 60, 21, 22]
    spans = {"first": slice(0, 7), "middle": slice(7, 14), "last": slice(14, 20)}
    with torch.no_grad():
        some, other = (
            hidden_states(mixture, pack([first, middle, last], seq_len=24))[0] for middle in ([3] * 6, [44] * 6)
        )

    for name in ("first", "last"):
        torch.testing.assert_close(some[spans[name]], other[spans[name]], atol=1e-6, rtol=1e-5)
    assert (some[spans["middle"]][1:] - other[spans["middle"]][1:]).abs().max() > 0.1


def test_a_file_names_each_expert_and_loads_with_equal_values_and_bytes(mixture, tmp_path):
    export(mixture, folder=tmp_path / "a")
    again = load(tmp_path / "a")
    export(again, folder=tmp_path / "b")
    file = load_file(tmp_path / "a/model.safetensors")
    stacked = mixture.state_dict()

    assert all(torch.equal(value, stacked[name]) for name, value in again.state_dict().items())
    assert sha256_file(tmp_path / "a/model.safetensors") == sha256_file(tmp_path / "b/model.safetensors")
    assert not [name for name in file if name.endswith("gate_up_proj")]
    for layer in (f"model.layers.{number}.mlp.experts" for number in range(2)):
        for expert in range(COUNT):
            both = torch.cat([file[f"{layer}.{expert}.{part}.weight"] for part in ("gate_proj", "up_proj")])
            assert torch.equal(both, stacked[f"{layer}.gate_up_proj"][expert])
            assert torch.equal(file[f"{layer}.{expert}.down_proj.weight"], stacked[f"{layer}.down_proj"][expert])


def test_a_config_has_the_names_that_older_readers_look_for(mixture, tmp_path):
    export(mixture, folder=tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())

    # transformers 4 reads these two, and takes its defaults (128 and 10,000) where they are missing.
    assert (config["num_experts"], config["rope_theta"]) == (COUNT, 500.0)


def test_a_file_that_is_stacked_already_loads(mixture, tmp_path):
    export(mixture, folder=tmp_path)
    save_file(
        {name: value.contiguous() for name, value in mixture.state_dict().items()}, tmp_path / "model.safetensors"
    )

    assert torch.equal(logits(load(tmp_path)), logits(mixture))


@pytest.mark.parametrize("stacked", [True, False])
def test_a_missing_expert_is_refused_by_name(mixture, tmp_path, stacked):
    export(mixture, folder=tmp_path)
    weights = dict(mixture.state_dict()) if stacked else load_file(tmp_path / "model.safetensors")
    if stacked:
        name = "model.layers.1.mlp.experts.gate_up_proj"
        weights[name] = weights[name][:-1].contiguous()
    else:
        for part in ("gate_proj", "up_proj"):
            del weights[f"model.layers.1.mlp.experts.5.{part}.weight"]
    save_file(weights, tmp_path / "model.safetensors")

    with pytest.raises(ModelError, match=r"lacks model\.layers\.1\.mlp\.experts\.5\.gate_proj\.weight, .*\(2 in all\)"):
        load(tmp_path)


def test_splitting_copies_nothing(mixture):
    held = {value.untyped_storage().data_ptr() for value in mixture.parameters()}
    views = split(mixture.state_dict(), model_type="qwen3_moe")

    assert {value.untyped_storage().data_ptr() for value in views.values()} == held
    assert sum(value.numel() for value in views.values()) == sum(value.numel() for value in mixture.parameters())
    assert all(value.is_contiguous() for value in views.values())


@pytest.mark.parametrize(
    ("model_type", "class_name"),
    [("qwen2_moe", "Qwen2MoeForCausalLM"), ("olmoe", "OlmoeForCausalLM"), ("mixtral", "MixtralForCausalLM")],
)
def test_a_foreign_mixture_is_read_and_written_as_transformers_writes_it(model_type, class_name, tmp_path):
    model_class = getattr(model_code(model_type), class_name)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    experts = {"num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
    others = {"vocab_size": 61, "max_position_embeddings": 32, "num_key_value_heads": 2, "pad_token_id": 0}
    config = model_class.config_class(num_experts=4, **sizes, **experts, **others)
    foreign = model_class(config).eval()
    foreign.save_pretrained(tmp_path / "theirs")
    ours = build(ModelSettings(path=str(tmp_path / "theirs")), vocab_size=61, seq_len=32, end_id=0, seed=1)
    export(ours, folder=tmp_path / "ours")

    torch.testing.assert_close(logits(ours), logits(foreign), atol=1e-5, rtol=1e-5)
    found, wanted = (load_file(tmp_path / side / "model.safetensors") for side in ("ours", "theirs"))
    assert len(found) == len(wanted)
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
