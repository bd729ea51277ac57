"""The registered model as MLflow runs it: models from code, our engine over safetensors, no pickle.

MLflow executes this file (a copy of it lies in the model's folder) when the model is loaded, with the model's own copy
of `tessera` first on the path, so that it answers where Tessera is not installed. Importing it loads no torch; loading
the context does.
"""

from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.pyfunc.model import PythonModel

CHECKPOINT = "checkpoint"
PROMPT = "prompt"


class CompletionModel(PythonModel):  # type: ignore[misc]
    """Completes prompts: a table with a column `prompt` in, a table with one row for each out."""

    def load_context(self, context: Any) -> None:
        """Loads the engine from the artifact `checkpoint`; MLflow calls it once."""
        from tessera.serve.engine import Engine

        weights = (context.model_config or {}).get("weights_sha256")
        self.engine = Engine(Path(context.artifacts[CHECKPOINT]), weights_sha256=weights)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Answers each prompt, in order.

        Args:
            model_input: a column `prompt`; by the signature MLflow makes it of a list of {"prompt": ...} as well.
            params: `max_tokens` (fewer where the context ends), `temperature`, `top_p`, `seed` (-1 draws one).

        Returns:
            a DataFrame: `completion`, `finish_reason`, `prompt_tokens`, `completion_tokens`.
        """
        given = params or {}
        options: dict[str, Any] = {name: given[name] for name in ("temperature", "top_p") if name in given}
        if "max_tokens" in given:
            options["default_tokens"] = given["max_tokens"]
        if given.get("seed", -1) >= 0:
            options["seed"] = given["seed"]
        answers = [self.engine.complete(str(prompt), **options) for prompt in model_input[PROMPT]]
        return pd.DataFrame(
            {
                "completion": [answer.text for answer in answers],
                "finish_reason": [answer.finish_reason for answer in answers],
                "prompt_tokens": [answer.prompt_tokens for answer in answers],
                "completion_tokens": [answer.completion_tokens for answer in answers],
            }
        )


mlflow.models.set_model(CompletionModel())
