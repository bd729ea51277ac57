"""Every filter in Spark against plain Python, over texts made of what filters look for, and texts that should hurt."""

# ruff: noqa: RUF001

import random
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pytest

from tessera.prepare.quality import filters, repetition
from tessera.prepare.quality.settings import QualitySettings

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

pytestmark = pytest.mark.spark

SENTENCE = "The members of the committee have met and said that they agree with what was proposed."
PROSE = "\n\n".join(f"{SENTENCE[:-1]} on day {word}." for word in ("one", "two", "three", "four", "five", "six"))
KEPT = """Most bridges of the valley were built by masons who had never seen a drawing of one.
They chose each stone where it lay, and they left the river to tell them which pier was too narrow.

When the railway came, its engineers measured what stood there and found that nothing could be bettered.
One of them wrote home that he had been to school with people less careful than those old men.
Today two of the seven arches carry lorries, and nobody has thought it necessary to limit their weight.
"""
CHINESE = "委员会将于星期四再次开会讨论新的提案，" * 40 + "。"
THAI = "คณะกรรมการจะประชุมอีกครั้งในวันพฤหัสบดีเพื่อหารือข้อเสนอใหม่" * 20
RUSSIAN = "Комитет снова соберётся в четверг, чтобы обсудить новое предложение о дорогах. " * 8
PIECES = (
    "word", "The", "that", "a", "of", "naïve", "12345", "...", "…", "#", "## ", "- item", "* item", "• item", "\n",
    "\n\n", " \n \n ", "\u3000", "\t", ".", "!", "?\n", '"', "end.", "Accept cookies", "privacy policy", "lorem ipsum",
    "JavaScript is off.\n", "{", "猫", "猫猫猫猫猫猫。", "Log in\n", "a line that says much the same.\n", "\f", "\x1c",
    "--", "x" * 30,
)  # fmt: skip
ODD = (
    "", " ", "\n", "\x00", "   \n\t\u3000", "a", ".", "...", "…" * 500, "#" * 500, "1" * 500, "1 2 3 " * 100,
    "x" * 5000, "a " * 5000, "-\n" * 500, "\n" * 5000, "the the the", PROSE, CHINESE, THAI, RUSSIAN, PROSE.upper(),
    f"{PROSE} {{", f"{PROSE}\n{PROSE}", f"{PROSE}\n\n" * 2,
    "\na\n\na\n\n\u3000b", "ab cd ٣٤٥٦ ef", "\n\nc c\n \n c c\n", f"{CHINESE} # # # {CHINESE}", "🐈" * 300,
    "\ufeff" + PROSE,
)  # fmt: skip

WHITE = "\n\t\r\f" + "".join(chr(code) for code in range(0x3001) if unicodedata.category(chr(code))[0] == "Z")

Judge = Callable[[str, Any], str | None]


def words_of(text: str) -> list[str]:
    return re.findall(f"[^{WHITE}]+", text)


def is_spaceless(text: str) -> bool:
    names = [unicodedata.name(char, "") for char in text if char not in WHITE]
    scripts = ("CJK UNIFIED", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")
    return sum(name.startswith(scripts) for name in names) * 2 > len(names)


def lines_of(text: str) -> list[str]:
    return [line.strip(WHITE) for line in text.split("\n") if line.strip(WHITE)]


def paragraphs_of(text: str) -> list[str]:
    found: list[list[str]] = [[]]
    for line in text.split("\n"):
        if line.strip(WHITE):
            found[-1].append(line)
        else:
            found.append([])
    return ["\n".join(line.strip(WHITE) for line in lines) for lines in found if lines]


def again(parts: Sequence[str]) -> list[str]:
    return [part for number, part in enumerate(parts) if part in parts[:number]]


def chars(parts: Sequence[str]) -> int:
    return sum(map(len, parts))


def length(text: str, limits: Any) -> str | None:
    words = words_of(text)
    if limits.min_chars and len(text) < limits.min_chars:
        return "min_chars"
    if limits.max_chars and len(text) > limits.max_chars:
        return "max_chars"
    if is_spaceless(text):
        return None
    if len(words) < limits.min_words:
        return "min_words"
    if len(words) > limits.max_words:
        return "max_words"
    if chars(words) / len(words) < limits.min_mean_word_chars:
        return "min_mean_word_chars"
    return "max_mean_word_chars" if chars(words) / len(words) > limits.max_mean_word_chars else None


def digits(text: str, limits: Any) -> str | None:
    return "max_digits" if sum(char.isdecimal() for char in text) > limits.max_digits * chars(words_of(text)) else None


def stop_words(text: str, limits: Any) -> str | None:
    few = len({word.lower() for word in words_of(text)} & set(limits.words)) < limits.min_words
    return "min_words" if few and not is_spaceless(text) else None


def symbols(text: str, limits: Any) -> str | None:
    words, lines = words_of(text), lines_of(text)
    if not is_spaceless(text):
        if text.count("#") > limits.max_hashes_per_word * len(words):
            return "max_hashes_per_word"
        if text.count("...") + text.count("…") > limits.max_ellipses_per_word * len(words):
            return "max_ellipses_per_word"
        if sum(any(char.isalpha() for char in word) for word in words) < limits.min_words_with_letter * len(words):
            return "min_words_with_letter"
    if sum(line.startswith(limits.bullets) for line in lines) > limits.max_bullet_lines * len(lines):
        return "max_bullet_lines"
    cut_off = sum(line.endswith(("...", "…")) for line in lines)
    return "max_ellipsis_lines" if cut_off > limits.max_ellipsis_lines * len(lines) else None


def punctuation(text: str, limits: Any) -> str | None:
    lines = lines_of(text)
    if sum(line.endswith((".", "!", "?", '"', "…", "。")) for line in lines) < limits.min_ended_lines * len(lines):
        return "min_ended_lines"
    if sum(len(line) < limits.short_line_chars for line in lines) > limits.max_short_lines * len(lines):
        return "max_short_lines"
    much = chars(again(lines)) > limits.max_duplicate_line_chars * chars(lines)
    return "max_duplicate_line_chars" if much else None


def c4(text: str, limits: Any) -> str | None:
    if "{" in text:
        return "no_braces"
    if "lorem ipsum" in text.lower():
        return "no_lorem_ipsum"
    sentences = 0
    for line in lines_of(text.lower()):
        ended = line.endswith((".", "!", "?", '"', "。")) and not line.endswith("...")
        enough = len(words_of(line)) >= limits.min_line_words or "猫" in line or "委" in line
        if ended and enough and not any(phrase in line for phrase in limits.phrases):
            sentences += 1 + len(re.findall(r"[.!?]+[\")\]]*[ \t]|[。](?=.)", line))
    return "min_sentences" if sentences < limits.min_sentences else None


def boilerplate(text: str, limits: Any) -> str | None:
    lines = lines_of(text.lower())
    found = sum(any(phrase in line for phrase in limits.phrases) for line in lines)
    return "max_lines" if found > limits.max_lines * len(lines) else None


def repeated(text: str, limits: Any) -> str | None:
    for name, parts in (("line", lines_of(text)), ("paragraph", paragraphs_of(text))):
        shares = {f"max_duplicate_{name}s": (len(again(parts)), len(parts))}
        shares[f"max_duplicate_{name}_chars"] = (chars(again(parts)), chars(parts))
        for setting, (part, whole) in shares.items():
            limit = getattr(limits, setting)
            if limit is not None and part > limit * whole:
                return setting
    found = repetition.reasons([text], settings=limits)[0]
    return found and found.removeprefix("quality:repetition:")


JUDGES: dict[str, Judge] = {
    "length": length,
    "digits": digits,
    "stop_words": stop_words,
    "symbols": symbols,
    "punctuation": punctuation,
    "c4": c4,
    "boilerplate": boilerplate,
    "repetition": repeated,
}
SECTIONS: dict[str, dict[str, Any]] = {name: {} for name in JUDGES} | {
    "length": {"min_chars": 5, "max_chars": 20_000, "min_words": 10, "max_words": 2000},
    "c4": {"min_sentences": 2},
}


def random_texts(count: int) -> list[str]:
    chooser = random.Random(6)
    made = []
    for _ in range(count):
        pieces = chooser.sample(PIECES, chooser.randint(1, 12))
        gap = chooser.choice([" ", " ", "", "\n"])
        made.append(gap.join(chooser.choices(pieces, k=chooser.randint(1, 60))))
    return made


def table(spark: "SparkSession", texts: Sequence[str | None]) -> "DataFrame":
    return spark.createDataFrame(list(enumerate(texts)), "number int, text string")


def judged(rows: "DataFrame", *settings: QualitySettings) -> list[tuple[str | None, ...]]:
    from pyspark.sql import functions as F

    columns = [filters.reason(F.col("text"), settings=one).alias(f"r{place}") for place, one in enumerate(settings)]
    found = rows.select("number", *columns).collect()
    return [tuple(row)[1:] for row in sorted(found)]


def test_every_filter_alone_judges_as_plain_python_does(spark: "SparkSession") -> None:
    texts = [*ODD, *random_texts(300)]
    by_paragraphs = {"max_duplicate_lines": None, "max_duplicate_line_chars": None}
    cases = [*SECTIONS.items(), ("repetition", by_paragraphs)]
    settings = [QualitySettings.model_validate({name: section}) for name, section in cases]

    found = judged(table(spark, texts), *settings)

    for place, (name, _) in enumerate(cases):
        expected = [JUDGES[name](text, getattr(settings[place], name)) for text in texts]
        reasons = [row[place] for row in found]
        assert reasons == [rule and f"quality:{name}:{rule}" for rule in expected], name
        assert len(set(reasons)) > (1 if name in ("digits", "stop_words", "boilerplate") else 2), name


def test_the_first_filter_that_drops_is_the_reason_whatever_the_partitions(spark: "SparkSession") -> None:
    texts = [*ODD, KEPT, *random_texts(150), None]
    everything = QualitySettings.model_validate({**SECTIONS, "language": {}})
    alone = [QualitySettings.model_validate({name: SECTIONS[name]}) for name in JUDGES]
    by_language = QualitySettings.model_validate({"language": {}})

    found = judged(table(spark, texts).repartition(1), everything)
    each = judged(table(spark, texts), *alone, by_language)

    assert found == [(next(filter(None, row), None),) for row in each]
    assert found[-1] == (None,), "a null text has no reason"
    assert [text for text, row in zip(texts[:-1], found, strict=False) if row == (None,)] == [KEPT]
    for partitions in (3, 50):
        assert judged(table(spark, texts).repartition(partitions), everything) == found


def test_scripts_without_spaces_are_not_judged_by_words(spark: "SparkSession") -> None:
    by_words = QualitySettings.model_validate({"length": {}, "symbols": {}, "stop_words": {}})
    c4 = QualitySettings.model_validate({"c4": {"min_sentences": 1}})
    russian = QualitySettings.model_validate({"length": {}, "symbols": {}, "stop_words": {"words": ["в", "о"]}})

    found = judged(table(spark, [CHINESE, THAI, RUSSIAN, "abc" * 100]), by_words, c4, russian)

    assert [row[0] for row in found] == [None, None, "quality:stop_words:min_words", "quality:length:min_words"]
    assert found[0][1] is None
    assert found[2][2] is None


def test_only_the_start_of_a_long_document_is_looked_at(spark: "SparkSession") -> None:
    text = PROSE + "\n" + "# " * 5000
    rows = table(spark, [text])
    start = {"max_chars": 1000, "symbols": {}, "repetition": {"max_duplicate_line_chars": None}}

    assert judged(rows, QualitySettings.model_validate({"symbols": {}})) == [("quality:symbols:max_hashes_per_word",)]
    assert len(PROSE[:1000].split()) > 50
    whole_chars = {**start, "length": {"max_chars": 5000}}
    found = judged(
        table(spark, [PROSE * 2 + "# " * 5000]),
        QualitySettings.model_validate({"max_chars": 1000, "symbols": {}}),
        QualitySettings.model_validate(whole_chars),
    )
    assert found == [(None, "quality:length:max_chars")]


def test_no_text_takes_more_than_linear_time(spark: "SparkSession") -> None:
    """Half a million characters each: a pattern that tries again from every one of them would not end."""
    signs = (" ", "\n", "-", "1", ".", "猫", " \n", "a.", "\u3000", '"', "{")
    texts = ["x" + sign * (500_000 // len(sign)) + "y" for sign in signs]
    alone = [QualitySettings.model_validate({name: {}}) for name in JUDGES]

    found = judged(table(spark, [*texts, KEPT]), *alone)

    assert [any(row) for row in found] == [True] * len(texts) + [False]


def test_words_are_split_once_and_workers_asked_once(spark: "SparkSession") -> None:
    from pyspark.sql import functions as F

    everything = QualitySettings.model_validate({**SECTIONS, "language": {}})
    rows = table(spark, [PROSE]).select(filters.reason(F.col("text"), settings=everything).alias("reason"))

    plan = rows._jdf.queryExecution().executedPlan().toString()

    assert plan.count("ArrowEvalPython") == 1
    assert plan.count("split(lower(replace(") == 1


@pytest.mark.parametrize("ansi", ["true", "false"])
def test_a_null_text_has_no_reason(spark: "SparkSession", ansi: str) -> None:
    """Without ANSI rules the size of null is -1."""
    settings = [QualitySettings.model_validate(sections) for sections in (SECTIONS, {"language": {}})]
    before = spark.conf.get("spark.sql.ansi.enabled")
    spark.conf.set("spark.sql.ansi.enabled", ansi)
    try:
        found = judged(table(spark, [None, ""]), *settings)
    finally:
        spark.conf.set("spark.sql.ansi.enabled", str(before))

    assert found[0] == (None, None)
    assert all(found[1])


def test_no_filter_no_reason(spark: "SparkSession") -> None:
    assert judged(table(spark, ["", PROSE, None]), QualitySettings()) == [(None,)] * 3
