"""Registering against a real MLflow store: what the folder holds, who finds it again, and what a kill leaves."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from mlflow import MlflowClient

from tessera import failpoints, registry
from tessera.errors import CorruptCheckpoint, ModelError
from tessera.failpoints import InjectedFault
from tessera.home import Home
from tessera.lineage import sha256_file
from tessera.serve import stage
from tessera.serve.engine import Engine
from tessera.serve.register import register, requirements
from tessera.serve.settings import ServeSettings


def do_register(store, name, **changes):
    evaluate = store.evaluate.model_copy(update=changes)
    return register(
        store.home, train=store.train, evaluate=evaluate, prepare=store.prepare,
        settings=ServeSettings(model_name=name), tracking_uri=store.uri,
    )  # fmt: skip


@pytest.fixture(scope="module")
def served(store):
    """A registered version, and its folder."""
    record = do_register(store, "docs.main", passed=True, fingerprint="passed")
    return record, registry.resolve(store.uri, model="models:/docs.main@champion")


def test_the_folder_answers_and_holds_no_pickle_and_no_optimizer(store, served):
    record, folder = served
    names = {file.name for file in folder.rglob("*") if file.is_file()}

    assert {"MLmodel", "model.safetensors", "tokenizer.json", "pyfunc.py", "requirements.txt"} <= names
    assert not {name for name in names if name.endswith((".pkl", ".bin", ".pt", ".pyc"))}
    assert not names & {"optimizer.safetensors", "state.json"}
    assert str(store.home.root) not in (folder / "MLmodel").read_text()
    checkpoint = stage.checkpoint_folder(record, home=store.home, tracking_uri=store.uri)
    assert checkpoint.is_relative_to(folder)
    assert Engine(checkpoint).weights_sha256 == record.weights_sha256


def test_tags_lead_back_to_tables_run_and_scores(store, served):
    record, _ = served
    version = registry.get_version(store.uri, model="models:/docs.main/1")

    assert (record.model, record.version, record.aliases) == ("docs.main", 1, ("challenger", "champion"))
    assert version.aliases == ("challenger", "champion")
    assert version.run_id == store.train.run_id
    assert version.tags["tessera.weights_sha256"] == store.train.weights_sha256
    assert version.tags["tessera.documents"] == "documents@3"
    assert json.loads(version.tags["tessera.sources"]) == ["docs@0"]
    assert version.tags["tessera.shard_set"] == "default@2"
    assert version.tags["tessera.tokenizer_sha256"] == "c" * 64
    assert float(version.tags["tessera.bits_per_byte"]) == 2.5
    assert version.tags["tessera.gate"] == "passed"
    outputs = MlflowClient(store.uri, store.uri).get_run(store.train.run_id).outputs.model_outputs
    assert version.source in {f"models:/{output.model_id}" for output in outputs}


def test_registering_again_finds_the_version_and_moves_the_aliases_back(store):
    first = do_register(store, "again")
    other = do_register(store, "again", fingerprint="another evaluation")
    once_more = do_register(store, "again")

    assert (first.version, other.version, once_more.version) == (1, 2, 1)
    assert registry.get_version(store.uri, model="models:/again@challenger").version == 1


def test_champion_stays_when_the_gate_fails(store):
    do_register(store, "gated", passed=True)
    failed = do_register(store, "gated", passed=False, fingerprint="worse")

    assert failed.aliases == ("challenger",)
    assert registry.get_version(store.uri, model="models:/gated@champion").version == 1
    assert registry.get_version(store.uri, model="models:/gated@challenger").version == 2


def test_a_fault_before_the_alias_leaves_one_version_that_the_next_run_finishes(store, monkeypatch):
    monkeypatch.setattr(failpoints, "_passed", Counter())
    monkeypatch.setenv("TESSERA_FAIL", "serve.before_alias:raise")
    with pytest.raises(InjectedFault):
        do_register(store, "killed")
    with pytest.raises(ModelError, match="aliases none"):
        registry.get_version(store.uri, model="models:/killed@challenger")
    monkeypatch.delenv("TESSERA_FAIL")

    assert do_register(store, "killed").version == 1
    assert registry.get_version(store.uri, model="models:/killed@challenger").version == 1
    assert len(MlflowClient(store.uri, store.uri).search_model_versions("name = 'killed'")) == 1


def test_changed_weights_and_an_unknown_run_are_refused(store, tmp_path):
    changed = store.train.model_copy(update={"weights_sha256": "0" * 64})
    absent = store.train.model_copy(update={"run_id": "0" * 32})
    for train, error in ((changed, CorruptCheckpoint), (absent, ModelError)):
        with pytest.raises(error, match="train again"):
            register(
                store.home, train=train, evaluate=store.evaluate, prepare=store.prepare,
                settings=ServeSettings(model_name="refused"), tracking_uri=store.uri,
            )  # fmt: skip
    assert not MlflowClient(store.uri, store.uri).search_model_versions("name = 'refused'")


def test_a_record_holds_while_version_and_files_are_there(store, tmp_path):
    record = do_register(store, "holds")
    files = registry.resolve(store.uri, model="models:/holds/1")

    assert stage.verify(record, home=store.home, tracking_uri=store.uri)
    assert stage._in_registry(record, tracking_uri=store.uri) == ("", record.weights_sha256)
    assert not stage.verify(record.model_copy(update={"version": 9}), home=store.home, tracking_uri=store.uri)
    assert not stage.verify(record.model_copy(update={"weights_sha256": "0"}), home=store.home, tracking_uri=store.uri)
    assert not stage.verify(record, home=store.home, tracking_uri=f"sqlite:///{tmp_path}/none.db")
    (files / "MLmodel").rename(files / "gone")
    assert not stage.verify(record, home=store.home, tracking_uri=store.uri)
    with pytest.raises(ModelError, match="register the run again"):
        registry.resolve(store.uri, model="models:/holds/1", artifacts=store.home.mlflow_artifacts)


def test_checking_a_record_imports_neither_mlflow_nor_torch(store, served):
    record, _ = served
    code = (
        "import sys; from pathlib import Path; from tessera.serve import stage; from tessera.home import Home\n"
        "from tessera.lineage import ServeRecord\n"
        "record, home = ServeRecord.from_json(sys.argv[1]), Home(Path(sys.argv[2]))\n"
        "assert stage.verify(record, home=home, tracking_uri=sys.argv[3])\n"
        "assert not {'mlflow', 'torch', 'pyspark', 'transformers', 'pandas'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code, record.to_json(), str(store.home.root), store.uri], check=True)


def test_a_moved_home_still_finds_its_files(store, served, tmp_path):
    record, _ = served
    moved = Home(tmp_path / "moved")
    moved.root.mkdir()
    store.home.mlflow_artifacts.rename(moved.mlflow_artifacts)
    try:
        assert not stage.verify(record, home=store.home, tracking_uri=store.uri)
        assert stage.verify(record, home=moved, tracking_uri=store.uri)
        found = registry.resolve(store.uri, model="models:/docs.main/1", artifacts=moved.mlflow_artifacts)
        assert found.is_relative_to(moved.mlflow_artifacts)
        weights = stage.checkpoint_folder(record, home=moved, tracking_uri=store.uri) / "model.safetensors"
        assert sha256_file(weights) == record.weights_sha256
        with pytest.raises(ModelError, match="register the run again"):
            stage.checkpoint_folder(record, home=store.home, tracking_uri=store.uri)
    finally:
        moved.mlflow_artifacts.rename(store.home.mlflow_artifacts)


def test_mlflow_runs_it_where_tessera_is_not_installed(store, served, tmp_path):
    """A fresh process without pickle, whose only `tessera` is the one inside the model's folder."""
    _, folder = served
    code = """
import importlib.abc, json, sys
class Elsewhere(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        return None
sys.path = [entry for entry in sys.path if not entry.endswith("pipelines")]
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in str(getattr(finder, "__module__", finder))]
try:
    import tessera
except ModuleNotFoundError:
    pass
else:
    sys.exit("tessera is still installed")
import mlflow, pandas as pd
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
greedy = model.predict(pd.DataFrame({"prompt": ["Return the", "Raise"]}), params={"max_tokens": 9})
listed = model.predict([{"prompt": "Return the"}], params={"max_tokens": 9})
long = model.predict({"prompt": ["Return the list " * 6]})
import tessera
print(json.dumps({"file": tessera.__file__, "answers": greedy["completion"].tolist(), "tokens":
    greedy["completion_tokens"].tolist(), "listed": listed["completion"].tolist(),
    "long": int(long["completion_tokens"].sum())}))
"""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    done = subprocess.run(
        [sys.executable, "-c", code, store.uri, "models:/docs.main@champion"],
        capture_output=True, text=True, check=False, cwd=tmp_path, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    engine = Engine(store.home.resolve(store.train.checkpoint))
    expected = [engine.complete(prompt, max_tokens=9) for prompt in ("Return the", "Raise")]

    assert Path(found["file"]).is_relative_to(folder)
    assert found["answers"] == [answer.text for answer in expected]
    assert found["tokens"] == [answer.completion_tokens for answer in expected]
    assert found["listed"] == found["answers"][:1]
    assert 0 < found["long"] < 64, "the default of 64 tokens does not fit, so it is cut to what does"
    assert "Warning" not in done.stderr


def test_the_signature_has_names_defaults_and_an_example(served):
    _, folder = served
    model = mlflow.models.Model.load(str(folder))
    example = model.load_input_example(str(folder))

    assert model.signature.inputs.input_names() == ["prompt"]
    assert [param.name for param in model.signature.params] == ["max_tokens", "temperature", "top_p", "seed"]
    assert isinstance(example, pd.DataFrame)
    assert list(example.columns) == ["prompt"]


def test_requirements_are_exact_and_have_no_local_label():
    pinned = dict(line.split("==") for line in requirements())

    assert {"torch", "transformers", "tokenizers", "safetensors", "mlflow"} <= set(pinned)
    assert not any("+" in version for version in pinned.values())


def test_weights_are_those_of_the_checkpoint(store, served):
    _, folder = served
    shipped = folder / "artifacts" / "checkpoint" / "model.safetensors"

    assert sha256_file(shipped) == store.train.weights_sha256
