"""Imports `transformers` model code without what it does not need here: 17 s become 8.

Measured on 2 shared x86 cores: `transformers.models.qwen3.modeling_qwen3` takes torch (3.4 s) plus 12 s, of which
sklearn, scipy and pandas (for assisted generation and detection losses) are 4 to 5, and `torch._dynamo` with sympy
(for one decorator and one context manager, neither of which runs here) 4 to 5. Every rank, evaluation and server pays
that, so `model_code` says "not installed" for the optional packages, and puts a stand-in for `torch._dynamo` in its
place for the time of the import only. Nothing on disk is touched; a later `import torch._dynamo` gets the real one.
If `transformers` ever asks more of it, the import is done again without the stand-in, slower and complete.
"""

import contextlib
import importlib
import os
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Set before the first import: no hub, no telemetry, no bars."""

UNWANTED = frozenset(
    [
        "sklearn",
        "scipy",
        "pandas",
        "torchvision",
        "torchaudio",
        "PIL",
        "accelerate",
        "datasets",
        "tensorflow",
        "librosa",
    ]
)
"""Optional integrations of `transformers` that language models from config do not use."""

DYNAMO = "torch._dynamo"
WRAPPED = "torch._dynamo._trace_wrapped_higher_order_op"


def model_code(model_type: str) -> types.ModuleType:
    """The modelling module of an architecture, such as `qwen3` or `gpt2`.

    Raises:
        ModuleNotFoundError: this version of `transformers` does not know the architecture.
    """
    name = f"transformers.models.{model_type}.modeling_{model_type}"
    if name in sys.modules:
        return sys.modules[name]
    go_offline()
    _hide_optional_packages()
    if DYNAMO in sys.modules:
        return importlib.import_module(name)
    before = set(sys.modules)
    try:
        with _without_dynamo():
            return importlib.import_module(name)
    except (AttributeError, ImportError) as error:
        if isinstance(error, ModuleNotFoundError) and (error.name or "").startswith("transformers.models."):
            raise
        for added in [other for other in set(sys.modules) - before if other.startswith("transformers.")]:
            del sys.modules[added]
        return importlib.import_module(name)


def go_offline() -> None:
    """Makes every Hugging Face library refuse the network, in this process and its children."""
    os.environ.update(OFFLINE)


def _hide_optional_packages() -> None:
    """Makes `transformers` take the packages in UNWANTED for absent; once a process."""
    flags: Any = importlib.import_module("transformers.utils.import_utils")
    found = flags._is_package_available
    if getattr(found, "hides", None) is UNWANTED:
        return

    def lookup(pkg_name: str, return_version: bool = False) -> tuple[bool, str | None]:
        if pkg_name in UNWANTED:
            return False, "N/A" if return_version else None
        found_flag: tuple[bool, str | None] = found(pkg_name, return_version)
        return found_flag

    lookup.hides = UNWANTED  # type: ignore[attr-defined]
    flags._is_package_available = lookup
    answers = [value for value in vars(flags).values() if hasattr(value, "cache_clear")]
    for answer in answers:
        answer.cache_clear()
    for package in (flags, importlib.import_module("transformers.utils")):
        for flag in ("is_torch_flex_attn_available", "is_torch_distributed_available"):
            setattr(package, flag, _no)


def _no() -> bool:
    return False


@contextlib.contextmanager
def _without_dynamo() -> Iterator[None]:
    """A stand-in for `torch._dynamo` while model code is imported; both uses of it are served when they are called."""
    import torch

    dynamo, wrapped = types.ModuleType(DYNAMO), types.ModuleType(WRAPPED)
    dynamo.__path__ = []
    dynamo.assume_constant_result = _mark_constant  # type: ignore[attr-defined]
    dynamo.allow_in_graph = dynamo.disable = _unchanged  # type: ignore[attr-defined]
    wrapped.TransformGetItemToIndex = _transform_get_item  # type: ignore[attr-defined]
    sys.modules.update({DYNAMO: dynamo, WRAPPED: wrapped})
    torch._dynamo = dynamo
    try:
        yield
    finally:
        for name, module in ((DYNAMO, dynamo), (WRAPPED, wrapped)):
            if sys.modules.get(name) is module:
                del sys.modules[name]
        if torch.__dict__.get("_dynamo") is dynamo:
            del torch._dynamo


def _mark_constant(function: Callable[..., Any]) -> Callable[..., Any]:
    """What `torch._dynamo.assume_constant_result` does."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def _unchanged(function: Callable[..., Any] | None = None, *_: Any, **__: Any) -> Callable[..., Any]:
    """For hints to the compiler about FP8 kernels, paged and flex attention, which no model here uses."""
    return function or _unchanged


def _transform_get_item() -> Any:
    return importlib.import_module(WRAPPED).TransformGetItemToIndex()
