"""The language of a document, by py3langid: naive Bayes over byte n-grams (Lui and Baldwin, ACL 2012), 139 languages.

Offline: the model is a file of the package. Each Python worker loads it once, about a second and 60 MiB; a document
takes about half a millisecond. The same text gives the same language on every machine; the last digits of a probability
depend on the processor, so it is rounded to four.
"""

import importlib.util
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from tessera.errors import SetupError
from tessera.prepare.quality.settings import LanguageSettings

REASON_OTHER = "quality:language:allowed"
REASON_UNSURE = "quality:language:min_probability"


def reasons(texts: Sequence[str], *, settings: LanguageSettings) -> list[str | None]:
    """Why a document is dropped, else None; one for each text."""
    return [_reason(*identify(text[: settings.max_chars]), settings=settings) for text in texts]


def identify(text: str) -> tuple[str, float]:
    """The most likely language, an ISO 639 code, and its probability among all that the model knows."""
    language, probability = _model().classify(text)
    return language, round(probability, 4)


def check_installed() -> None:
    """Refuses where the library is absent: on the driver, before any text is read.

    Raises:
        SetupError: it is.
    """
    if importlib.util.find_spec("py3langid") is None:
        raise SetupError("prepare.quality.language needs py3langid; pip install 'tessera[spark]', or set it to null")


def _reason(language: str, probability: float, *, settings: LanguageSettings) -> str | None:
    if language not in settings.allowed:
        return REASON_OTHER
    return REASON_UNSURE if probability < settings.min_probability else None


@lru_cache(maxsize=1)
def _model() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
