"""The section `quality`: filters are off, come with their paper's thresholds, and refuse what cannot work."""

import subprocess
import sys

import pytest
from pydantic import ValidationError

from tessera.prepare.quality.settings import LANGUAGES, QualitySettings

SECTIONS = ("length", "digits", "symbols", "stop_words", "punctuation", "c4", "boilerplate", "repetition", "language")


def test_every_filter_is_off_until_it_is_named() -> None:
    settings = QualitySettings()

    assert [getattr(settings, name) for name in SECTIONS] == [None] * len(SECTIONS)
    assert set(QualitySettings.model_fields) == {"kinds", "max_chars", *SECTIONS}


def test_the_thresholds_are_those_of_the_papers() -> None:
    """Gopher: section A.1.1 and table A1; C4: section 2.2; FineWeb: section 3."""
    settings = QualitySettings.model_validate({name: {} for name in SECTIONS})
    length, symbols, repetition = settings.length, settings.symbols, settings.repetition
    assert length
    assert symbols
    assert repetition
    assert settings.stop_words
    assert settings.punctuation
    assert settings.c4

    assert (length.min_words, length.max_words) == (50, 100_000)
    assert (length.min_mean_word_chars, length.max_mean_word_chars) == (3, 10)
    assert (symbols.max_hashes_per_word, symbols.max_ellipses_per_word) == (0.1, 0.1)
    assert (symbols.max_bullet_lines, symbols.max_ellipsis_lines, symbols.min_words_with_letter) == (0.9, 0.3, 0.8)
    assert settings.stop_words.min_words == 2
    assert [getattr(repetition, f"max_top_{n}gram") for n in (2, 3, 4)] == [0.20, 0.18, 0.16]
    assert [getattr(repetition, f"max_duplicate_{n}gram") for n in range(5, 11)] == [0.15, 0.14, 0.13, 0.12, 0.11, 0.10]
    assert (repetition.max_duplicate_lines, repetition.max_duplicate_paragraphs) == (0.3, 0.3)
    assert (repetition.max_duplicate_line_chars, repetition.max_duplicate_paragraph_chars) == (0.2, 0.2)
    assert (settings.c4.min_sentences, settings.c4.min_line_words) == (5, 3)
    assert (settings.punctuation.min_ended_lines, settings.punctuation.max_short_lines) == (0.12, 0.67)
    assert (settings.punctuation.short_line_chars, settings.punctuation.max_duplicate_line_chars) == (30, 0.1)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"language": {"allowed": ["english"]}}, "knows no 'english'; it knows ace af"),
        ({"language": {"allowed": []}}, "at least 1 item"),
        ({"stop_words": {"words": []}}, "at least 1 item"),
        ({"boilerplate": {"phrases": ["fine", " "]}}, "may not be blank"),
        ({"repetition": {"max_top_2gram": 1.5}}, "less than or equal to 1"),
        ({"c4": {"phrases": [""]}}, "may not be blank"),
        ({"symbols": {"bullets": ["--"]}}, "one character"),
    ],
)
def test_what_cannot_work_is_refused(section: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        QualitySettings.model_validate(section)


def test_phrases_are_compared_in_lower_case() -> None:
    settings = QualitySettings.model_validate({"c4": {"phrases": ["JavaScript"]}, "stop_words": {"words": ["Der"]}})

    assert settings.c4
    assert settings.stop_words
    assert (settings.c4.phrases, settings.stop_words.words) == (("javascript",), ("der",))


def test_the_languages_are_the_model_s() -> None:
    from tessera.prepare.quality import language

    assert set(language._model().labels) == LANGUAGES


def test_settings_import_neither_spark_nor_numpy() -> None:
    code = (
        "import sys, tessera.prepare.quality.settings; "
        "print(sorted({'pyspark', 'numpy', 'pandas', 'py3langid'} & set(sys.modules)))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
