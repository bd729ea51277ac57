"""Languages: sentences of the writer's own, each told from the others; what is sure enough, and what is none."""

# ruff: noqa: RUF001

import subprocess
import sys

import pytest

from tessera.errors import SetupError
from tessera.prepare.quality import language
from tessera.prepare.quality.settings import LanguageSettings

SENTENCES = {
    "ar": "ستجتمع اللجنة مرة أخرى يوم الخميس لمناقشة الاقتراح الجديد.",
    "cs": "Výbor se znovu sejde ve čtvrtek, aby projednal nový návrh.",
    "da": "Udvalget mødes igen på torsdag for at drøfte forslaget.",
    "de": "Der Ausschuss trifft sich am Donnerstag erneut, um den Vorschlag zu besprechen.",
    "el": "Η επιτροπή θα συνεδριάσει ξανά την Πέμπτη για να συζητήσει την πρόταση.",
    "en": "The committee will meet again on Thursday to discuss the new proposal.",
    "es": "El comité se reunirá de nuevo el jueves para hablar de la propuesta.",
    "fr": "Le comité se réunira de nouveau jeudi pour discuter de la proposition.",
    "hi": "समिति नए प्रस्ताव पर चर्चा करने के लिए गुरुवार को फिर मिलेगी।",
    "it": "Il comitato si riunirà di nuovo giovedì per discutere la proposta.",
    "ja": "委員会は木曜日に再び会合を開き、新しい提案について話し合います。",
    "ko": "위원회는 목요일에 다시 만나 새로운 제안을 논의할 것입니다.",
    "nl": "De commissie komt donderdag weer bijeen om het voorstel te bespreken.",
    "pl": "Komisja spotka się ponownie w czwartek, aby omówić nową propozycję.",
    "pt": "A comissão volta a reunir-se na quinta-feira para discutir a proposta.",
    "ru": "Комитет снова соберётся в четверг, чтобы обсудить предложение.",
    "sv": "Kommittén träffas igen på torsdag för att diskutera förslaget.",
    "th": "คณะกรรมการจะประชุมอีกครั้งในวันพฤหัสบดีเพื่อหารือข้อเสนอใหม่",
    "tr": "Komite yeni öneriyi görüşmek üzere perşembe günü yeniden toplanacak.",
    "zh": "委员会将于星期四再次开会讨论新的提案。",
}


@pytest.mark.parametrize("code", SENTENCES)
def test_a_sentence_is_of_its_language(code: str) -> None:
    found, probability = language.identify(SENTENCES[code])

    assert found == code
    assert 0.65 <= probability <= 1


def test_other_languages_are_dropped_and_so_is_what_is_unsure() -> None:
    texts = [SENTENCES["en"], SENTENCES["de"], SENTENCES["fr"]]

    both = language.reasons(texts, settings=LanguageSettings(allowed=("en", "de")))
    surer = language.reasons(texts[:1], settings=LanguageSettings(min_probability=1.0))

    assert both == [None, None, "quality:language:allowed"]
    assert surer == ["quality:language:min_probability"]


@pytest.mark.parametrize("text", ["", " ", "12 34 56 78", "\x00\x01", "{}[]<>;:"])
def test_what_is_no_language_is_dropped_and_no_error(text: str) -> None:
    assert language.reasons([text], settings=LanguageSettings()) != [None]


def test_only_the_start_of_a_long_text_is_read() -> None:
    text = SENTENCES["de"] + SENTENCES["en"] * 1000
    start = len(SENTENCES["de"])

    assert language.reasons([text], settings=LanguageSettings(allowed=("de",), max_chars=start)) == [None]
    assert language.reasons([text], settings=LanguageSettings(allowed=("en",))) == [None]


def test_another_process_finds_the_same() -> None:
    code = (
        "import sys; from tessera.prepare.quality import language; "
        "print([language.identify(line.strip()) for line in sys.stdin])"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], input="\n".join(SENTENCES.values()), capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == str([language.identify(text) for text in SENTENCES.values()])


def test_an_absent_library_is_said_on_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language.importlib.util, "find_spec", lambda _: None)

    with pytest.raises(SetupError, match="py3langid"):
        language.check_installed()
