"""Registers an evaluated run as an MLflow model version, and moves the aliases `challenger` and `champion`.

The version is found again by its fingerprint, so that a run killed anywhere ends with one version and its aliases. Its
folder holds config, weights and tokenizer, our own code, and no pickle; see `pyfunc` for how MLflow runs it.
Costs about a second and two copies of the weights, besides the import of mlflow: in functions, after `tracking.quiet`,
for mlflow decides on telemetry when it is imported.
"""

import json
import os
import shutil
import tempfile
import warnings
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import pandas as pd

import tessera
from tessera import failpoints, lineage, registry, tracking
from tessera.away import answering
from tessera.errors import CorruptCheckpoint, ModelError
from tessera.home import Home
from tessera.lineage import EvaluateRecord, PrepareRecord, ServeRecord, TableVersion, TrainRecord
from tessera.progress import Tell, silent
from tessera.serve import champion, stage
from tessera.serve.champion import CHALLENGER, CHAMPION
from tessera.serve.settings import ServeSettings
from tessera.train.run import RunFolder
from tessera.train.ship import LATER, known_run_id

WEIGHTS = "model.safetensors"
DEFAULT_TOKENS = 64
EXAMPLE = "Return the"

MODEL_FILES = (
    "config.json", "generation_config.json", "model.safetensors.index.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
"""What of a checkpoint answers prompts, besides model*.safetensors; optimizer and loader state stay where they are."""

REQUIREMENTS = (
    "mlflow", "torch", "transformers", "tokenizers", "safetensors", "numpy", "pandas", "pydantic", "pyyaml",
)  # fmt: skip
"""What answering needs; pinned to the versions that are installed here."""


def register(
    home: Home,
    *,
    train: TrainRecord,
    evaluate: EvaluateRecord,
    prepare: PrepareRecord,
    settings: ServeSettings,
    tracking_uri: str,
    registry_uri: str | None = None,
    tell: Tell = silent,
) -> ServeRecord:
    """The model version of these weights and this evaluation, made if it does not exist, with its aliases set.

    `challenger` points to it; `champion` too when its gate passed, and else stays where it is.

    Args:
        registry_uri: where models are registered, if not at `tracking_uri`.

    Raises:
        CorruptCheckpoint: the weights are not those of the record.
        ModelError: the run is not in MLflow, or not yet.
        GateRefused: somebody else became champion since the gate compared; the version stays challenger.
        TrackingError: MLflow cannot be used now.
    """
    name = settings.model_name
    run_id = train.run_id or known_run_id(RunFolder(home.resolve(train.run)))  # MLflow was away while it trained
    if not run_id:
        raise ModelError(f"MLflow has no run {Path(train.run).name} yet: it was away while it trained; {LATER}")
    fingerprint = stage.fingerprint(evaluate, settings=settings)
    wanted = {stage.FINGERPRINT_TAG: fingerprint, stage.WEIGHTS_TAG: train.weights_sha256}
    tell("looking for the model version")
    found = registry.find_version(tracking_uri, name=name, tags=wanted, registry_uri=registry_uri)
    if found is None:
        experiment_id = _experiment_of(run_id, tracking_uri=tracking_uri)
        tags = {**wanted, **lineage_tags(train=train, evaluate=evaluate, prepare=prepare)}
        with tempfile.TemporaryDirectory(prefix="tessera-register-") as folder:
            tell("packing weights, tokenizer and code")
            model = pack(home.resolve(train.checkpoint), into=Path(folder), weights_sha256=train.weights_sha256)
            tell("registering")
            found = registry.create_version(
                tracking_uri, name=name, run_id=run_id, experiment_id=experiment_id, model=model, tags=tags,
                registry_uri=registry_uri,
            )  # fmt: skip
    failpoints.hit("serve.before_alias")
    registry.set_alias(tracking_uri, name=name, alias=CHALLENGER, version=found.version, registry_uri=registry_uri)
    if evaluate.passed:
        champion.promote(home, found, evaluate=evaluate, tracking_uri=tracking_uri, registry_uri=registry_uri)
    return ServeRecord(
        fingerprint=fingerprint,
        inputs=evaluate.inputs,
        code=lineage.code_version(),
        created=lineage.now(),
        model=name,
        version=found.version,
        aliases=(CHALLENGER, CHAMPION) if evaluate.passed else (CHALLENGER,),
        run_id=run_id,
        weights_sha256=train.weights_sha256,
    )


def pack(checkpoint: Path, *, into: Path, weights_sha256: str) -> Path:
    """Writes the MLflow model folder of a checkpoint to `into`/model.

    Raises:
        CorruptCheckpoint: `model.safetensors` is absent or not of this hash.
    """
    weights = checkpoint / WEIGHTS
    found = lineage.sha256_file(weights) if weights.is_file() else "no file"
    if found != weights_sha256:
        raise CorruptCheckpoint(
            f"{weights}: found {found[:12]}, its record says {weights_sha256[:12]}; train again: tessera train --fresh"
        )
    staged = into / stage.CHECKPOINT
    staged.mkdir()
    for file in sorted(checkpoint.iterdir()):
        if file.name in MODEL_FILES or (file.name.startswith("model") and file.suffix == ".safetensors"):
            _link(file, staged / file.name)
    tracking.quiet()
    import mlflow.pyfunc

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.pyfunc.save_model(
            path=str(into / "model"),
            python_model=str(Path(__file__).with_name("pyfunc.py")),
            artifacts={stage.CHECKPOINT: str(staged)},
            code_paths=[str(Path(tessera.__file__).parent)],
            signature=signature(),
            input_example=(pd.DataFrame({"prompt": [EXAMPLE]}), {"max_tokens": 16}),
            pip_requirements=requirements(),
            model_config={"weights_sha256": weights_sha256},
        )
    return into / "model"


def signature() -> Any:
    """A column `prompt` and four parameters in; answer, reason and token counts out."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    params = (
        ("max_tokens", "long", DEFAULT_TOKENS),
        ("temperature", "double", 0.0),
        ("top_p", "double", 1.0),
        ("seed", "long", -1),
    )
    return ModelSignature(
        inputs=Schema([ColSpec("string", "prompt")]),
        outputs=Schema(
            [
                ColSpec("string", "completion"),
                ColSpec("string", "finish_reason"),
                ColSpec("long", "prompt_tokens"),
                ColSpec("long", "completion_tokens"),
            ]
        ),
        params=ParamSchema([ParamSpec(name, kind, default) for name, kind, default in params]),
    )


def requirements() -> list[str]:
    """`name==version` of all that serving imports, without local version labels such as +cpu."""
    return [f"{name}=={installed_version(name).split('+')[0]}" for name in REQUIREMENTS]


def lineage_tags(*, train: TrainRecord, evaluate: EvaluateRecord, prepare: PrepareRecord) -> dict[str, str]:
    """Where a version comes from, as tags: ids, versions, hashes and scores; no text, no absolute path."""
    return {
        "tessera.run": train.run,
        "tessera.steps": str(train.steps),
        "tessera.tokenizer_sha256": train.tokenizer.sha256,
        "tessera.shard_set": _at(train.shard_set),
        "tessera.documents": _at(prepare.table),
        "tessera.sources": json.dumps([_at(table) for table in prepare.inputs]),
        "tessera.bits_per_byte": f"{evaluate.bits_per_byte:.6f}",
        "tessera.baselines": json.dumps({name: round(bits, 6) for name, bits in evaluate.baselines.items()}),
        champion.GATE_TAG: "passed" if evaluate.passed else "failed",
        champion.REASONS_TAG: "; ".join(evaluate.reasons),
        **({champion.MET_TAG: evaluate.met or champion.NOBODY} if evaluate.met is not None else {}),
        "tessera.scores": json.dumps({name: round(score.value, 6) for name, score in evaluate.scores.items()}),
        "tessera.evaluation": evaluate.fingerprint,
        "tessera.code": lineage.code_version(),
    }


def _experiment_of(run_id: str, *, tracking_uri: str) -> str:
    with answering(tracking_uri):
        client = tracking.client(tracking_uri)
        from mlflow.exceptions import MlflowException

        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            raise ModelError(
                f"MLflow has no run {run_id!r}, which trained the model; train again: tessera train --fresh"
            ) from None
    return str(run.info.experiment_id)


def _at(table: TableVersion) -> str:
    return f"{table.name}@{table.version}"


def _link(source: Path, target: Path) -> None:
    """A hard link where the file system allows one, else a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
