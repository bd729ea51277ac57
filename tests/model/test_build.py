import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors import safe_open
from tests.model.conftest import MIXTURE, TINY
from torch import nn

from tessera.errors import ModelError
from tessera.lineage import sha256_file
from tessera.model.build import build, export, load, num_parameters
from tessera.model.lean import UNWANTED, model_code
from tessera.model.settings import ModelSettings

INPUT = torch.tensor([[0, 5, 9, 2, 7]])


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=INPUT).logits


def test_an_untrained_model_predicts_almost_uniformly(tiny):
    model = tiny(trained=False)
    hidden = model.model(input_ids=INPUT).last_hidden_state
    embedded = model.model.embed_tokens(INPUT)

    # Zero output projections: every block is the identity, so only the final norm stands between the two.
    assert torch.allclose(hidden, nn.functional.rms_norm(embedded, (32,), eps=1e-6), atol=1e-5)
    assert logits(model).log_softmax(-1).add(math.log(61)).abs().max() < 1


def test_the_seed_decides_every_value_whatever_was_drawn_before(tiny):
    first = tiny(seed=5).state_dict()
    torch.randn(7)
    again, other = tiny(seed=5).state_dict(), tiny(seed=6).state_dict()

    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


@pytest.mark.parametrize("tied", [True, False])
def test_an_exported_model_loads_here_with_equal_values_and_bytes(tiny, tmp_path, tied):
    model = tiny(settings=ModelSettings(layers=2, width=32, heads=4, kv_heads=2, ffn_width=48, tie_embeddings=tied))
    export(model, folder=tmp_path / "a")
    again = load(tmp_path / "a")
    export(again, folder=tmp_path / "b")

    assert torch.equal(logits(model), logits(again))
    assert sha256_file(tmp_path / "a/model.safetensors") == sha256_file(tmp_path / "b/model.safetensors")
    assert (again.lm_head.weight is again.model.embed_tokens.weight) is tied
    with safe_open(tmp_path / "a/model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        names = list(file.keys())
        assert ("lm_head.weight" in names) is not tied
        assert sum(math.prod(file.get_slice(name).get_shape()) for name in names) == num_parameters(model)


def test_a_plain_transformers_process_loads_exports_without_us(tiny, tmp_path):
    models = {"dense": tiny(settings=TINY), "mixture": tiny(settings=MIXTURE)}
    for name, model in models.items():
        export(model, folder=tmp_path / name)
    code = (
        "import sys, json, torch; from transformers import AutoModelForCausalLM\n"
        "for folder in sys.argv[1:]:\n"
        "    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)\n"
        "    assert not any(report[key] for key in report), report\n"
        f"    print(json.dumps(model(torch.tensor({INPUT.tolist()})).logits.tolist()))"
    )
    folders = [str(tmp_path / name) for name in models]
    done = subprocess.run([sys.executable, "-c", code, *folders], capture_output=True, text=True, check=True)

    for model, line in zip(models.values(), done.stdout.splitlines(), strict=True):
        assert torch.allclose(torch.tensor(json.loads(line)), logits(model), atol=1e-5)


def test_loading_a_model_imports_no_scientific_stack(tiny, tmp_path):
    export(tiny(), folder=tmp_path)
    code = (
        "import sys, torch; from pathlib import Path; from tessera.model.build import load\n"
        "from tessera.model.loss import causal_nats\n"
        "model = load(Path(sys.argv[1])); ids = torch.arange(8)[None]\n"
        "causal_nats(model, dict(input_ids=ids, labels=ids, position_ids=ids, document_ids=ids * 0)).backward()\n"
        "print(*[name for name in sys.modules if '.' not in name or name.startswith('torch._dyn')])\n"
        "import torch._dynamo as real; print(real.optimize.__module__)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    modules, real = done.stdout.splitlines()

    # PIL comes with `import transformers` itself, before any choice of ours.
    assert not (UNWANTED - {"PIL"} | {"sympy", "triton", "torch._dynamo", "mlflow", "pyspark"}) & set(modules.split())
    assert real.startswith("torch._dynamo")


def gpt2():
    code = model_code("gpt2")
    return code.GPT2LMHeadModel(code.GPT2Config(vocab_size=61, n_positions=32, n_embd=32, n_layer=2, n_head=4))


def llama():
    code = model_code("llama")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return code.LlamaForCausalLM(code.LlamaConfig(vocab_size=61, max_position_embeddings=32, **sizes))


@pytest.mark.parametrize("architecture", [gpt2, llama])
def test_a_local_pretrained_folder_is_taken_as_it_is(architecture, tmp_path):
    foreign = architecture()
    foreign.save_pretrained(tmp_path)
    model = build(ModelSettings(path=str(tmp_path)), vocab_size=61, seq_len=32, end_id=0, seed=1)

    assert torch.allclose(logits(model), logits(foreign.eval()), atol=1e-5)
    assert [value for name, value in vars(model.config).items() if name.endswith("pdrop")] in ([], [0.0] * 3)
    with pytest.raises(ModelError, match=r"reads 32 tokens, shard.seq_len is 64"):
        build(ModelSettings(path=str(tmp_path)), vocab_size=61, seq_len=64, end_id=0, seed=1)
    with pytest.raises(ModelError, match=r"vocabulary of 61, the shard set's tokenizer 99"):
        build(ModelSettings(path=str(tmp_path)), vocab_size=99, seq_len=32, end_id=0, seed=1)


class Payload:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_is_refused_by_name_and_not_run(tiny, tmp_path):
    export(tiny(), folder=tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({"weight": Payload(tmp_path / "ran")}, tmp_path / "pytorch_model.bin")

    with pytest.raises(ModelError, match=r"pytorch_model\.bin, a pickle"):
        load(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_bytes_that_are_no_safetensors_are_refused(tiny, tmp_path):
    export(tiny(), folder=tmp_path)
    torch.save({"weight": Payload(tmp_path / "ran")}, tmp_path / "model.safetensors")

    with pytest.raises(ModelError, match="not a readable safetensors file"):
        load(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_misfits_name_the_first_keys_and_missing_folders_download_nothing(tiny, tmp_path):
    export(tiny(), folder=tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1, "layer_types": None}))
    with pytest.raises(ModelError, match=r"has unknown model\.layers\.1\.input_layernorm\.weight, .* \(11 in all\)"):
        load(tmp_path)

    (tmp_path / "config.json").write_text(json.dumps({**config, "intermediate_size": 64}))
    with pytest.raises(ModelError, match=r"other shapes for model\.layers\.0\.mlp\.down_proj"):
        load(tmp_path)

    (tmp_path / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "evil.Model"}}))
    with pytest.raises(ModelError, match="code of its own"):
        load(tmp_path)

    with pytest.raises(ModelError, match="nothing is downloaded"):
        load(tmp_path / "Qwen/Qwen3-0.6B")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"heads": 3, "kv_heads": 2}, "kv_heads"),
        ({"width": 100, "heads": 4, "kv_heads": 4}, "head_dim"),
        ({"rope_theta": math.nan}, "finite"),
        ({"experts": {"count": 4, "active": 5}}, r"experts.active is 5, wanted at most experts.count \(4\)"),
        ({"width": 36, "head_dim": 18, "experts": {}}, "multiple of 8"),
    ],
)
def test_impossible_dimensions_are_refused(values, message):
    with pytest.raises(ValidationError, match=message):
        ModelSettings(**values)
