"""The registered model as MLflow runs it: models from code, our engine over safetensors, no pickle.

MLflow executes this file (a copy of it lies in the model's folder) when the model is loaded, with the model's own copy
of `tessera` first on the path, so that it answers where Tessera is not installed. Importing it loads no torch; loading
the context does.
"""

from pathlib import Path
from typing import Any

import mlflow
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

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Answers each prompt, in order.

        Args:
            model_input: a DataFrame with a column `prompt`, or a list of prompts or of {"prompt": ...}.
            params: `max_tokens` (fewer where the context ends), `temperature`, `top_p`, `seed` (-1 draws one).

        Returns:
            a DataFrame: `completion`, `finish_reason`, `prompt_tokens`, `completion_tokens`.
        """
        import pandas as pd

        options = {name: value for name, value in (params or {}).items() if name in ("temperature", "top_p")}
        if "max_tokens" in (params or {}):
            options["default_tokens"] = params["max_tokens"]
        if (params or {}).get("seed", -1) >= 0:
            options["seed"] = params["seed"]
        answers = [self.engine.complete(prompt, **options) for prompt in _prompts(model_input)]
        return pd.DataFrame(
            {
                "completion": [answer.text for answer in answers],
                "finish_reason": [answer.finish_reason for answer in answers],
                "prompt_tokens": [answer.prompt_tokens for answer in answers],
                "completion_tokens": [answer.completion_tokens for answer in answers],
            }
        )


def _prompts(model_input: Any) -> list[str]:
    if isinstance(model_input, list):
        return [item[PROMPT] if isinstance(item, dict) else item for item in model_input]
    return [str(prompt) for prompt in model_input[PROMPT]]


mlflow.models.set_model(CompletionModel())
