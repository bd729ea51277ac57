"""Documents that share words with evaluation sets: found where planted, and only there."""

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyspark.sql import functions as F

from tessera.prepare.contamination import find
from tessera.prepare.contamination.sets import EvaluationSet, read_sets
from tessera.prepare.contamination.settings import DecontaminateSettings
from tessera.prepare.duplicates.shingles import shingles

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

EVALUATION = Path("/work/shared/data/eval")

QUESTION = "How many grains of rice lie on the sixty-fourth square of the board, if each has twice as many as the last?"


def write_set(folder: Path, *, name: str, texts: list[str]) -> dict[str, str]:
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return {"name": name, "path": str(path)}


def counts(texts: list[str | None], *, sets: tuple[EvaluationSet, ...]) -> tuple[list[list[int]], list[int]]:
    ngrams = [one.ngrams for one in sets]
    found, total = find.count(
        pa.array(texts, pa.string()), ngrams=ngrams, bitmap=find.bitmap_of(ngrams), words=sets[0].ngram_words
    )
    return found.tolist(), total.tolist()


letters = st.lists(st.sampled_from("abcd"), max_size=25)


@given(documents=st.lists(letters, min_size=1, max_size=5), sets=st.lists(st.lists(letters, max_size=4), max_size=3))
@settings(deadline=None)
def test_counts_are_those_of_plain_sets(documents: list[list[str]], sets: list[list[list[str]]]) -> None:
    def ngrams(words: list[str]) -> list[tuple[str, ...]]:
        return [tuple(words[i : i + 3]) for i in range(len(words) - 2)]

    known = [{gram for item in items for gram in ngrams(item)} for items in sets]
    hashes = []
    for items in sets:
        texts = pa.array([" ".join(item) for item in items], pa.string())
        parts = [part.hashes.tolist() for part in shingles(texts, words=3, whole_if_short=False)]
        hashes.append(pa.array(sorted({value for part in parts for value in part}), pa.uint64()).to_numpy())

    found, total = find.count(
        pa.array([" ".join(words) for words in documents]), ngrams=hashes, bitmap=find.bitmap_of(hashes), words=3
    )

    assert found.tolist() == [[sum(gram in some for gram in ngrams(words)) for words in documents] for some in known]
    assert total.tolist() == [len(ngrams(words)) for words in documents]


def test_a_long_document_is_counted_over_its_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = read_sets(
        DecontaminateSettings.model_validate({"sets": [write_set(tmp_path, name="exam", texts=[QUESTION])]})
    )
    monkeypatch.setattr("tessera.prepare.duplicates.shingles.SLICE_BYTES", 150)
    found, total = counts([f"{'before it ' * 100}{QUESTION}{' after it' * 100}", QUESTION, None], sets=sets)

    assert found == [[11, 11, 0]]
    assert total == [200 + 23 + 200 - 12, 11, 0]


@pytest.mark.spark
def test_planted_questions_are_found_by_the_first_set_that_has_them(spark: "SparkSession", tmp_path: Path) -> None:
    other = "Which of the two brothers, the one who always lies or the one who never does, guards the left door?"
    sets = [
        write_set(tmp_path, name="first", texts=[QUESTION]),
        write_set(tmp_path, name="second", texts=[other, QUESTION]),
    ]
    upper = QUESTION.upper().replace(" ", "  \n")
    words = QUESTION.split()
    texts = {
        "plain": (f"Some words before. {QUESTION} And some after.", "first"),
        "disguised": (f"Some words before: {upper}", "first"),
        "second": (f"Before. {other} After.", "second"),
        "both": (f"{other} {QUESTION}", "first"),
        "thirteen": (" ".join(["here", *words[3:15], "there"]), "first"),  # sixty-fourth is two words
        "twelve": (" ".join(["here", *words[3:14], "there"]), None),
        "clean": ("Nothing of the sort is asked " * 10, None),
        "empty": ("", None),
        "null": (None, None),
    }  # fmt: skip
    settings = DecontaminateSettings.model_validate({"sets": sets})
    rows = spark.createDataFrame([(key, text) for key, (text, _) in texts.items()], "id string, text string")

    found = rows.repartition(3).select(
        "id", find.contaminated_by(F.col("text"), sets=read_sets(settings), settings=settings).alias("set")
    )

    assert dict(map(tuple, found.collect())) == {key: expected for key, (_, expected) in texts.items()}


@pytest.mark.spark
def test_count_and_share_must_both_be_reached(spark: "SparkSession", tmp_path: Path) -> None:
    one = write_set(tmp_path, name="exam", texts=[QUESTION])  # 23 words, 11 n-grams
    texts = {"question": QUESTION, "half": f"{QUESTION} {'and more ' * 5}", "part": " ".join(QUESTION.split()[:14])}
    rows = spark.createDataFrame(list(texts.items()), "id string, text string")
    for limits, expected in (
        ({}, {"question", "half", "part"}),
        ({"min_ngrams": 11}, {"question", "half"}),
        ({"min_share": 0.5}, {"question", "half", "part"}),
        ({"min_share": 0.53}, {"question", "part"}),
        ({"min_share": 0.53, "min_ngrams": 11}, {"question"}),
    ):
        settings = DecontaminateSettings.model_validate({"sets": [one], **limits})
        name = find.contaminated_by(F.col("text"), sets=read_sets(settings), settings=settings)
        assert {row["id"] for row in rows.where(name.isNotNull()).collect()} == expected


@pytest.mark.skipif(not EVALUATION.is_dir(), reason=f"the evaluation sets are not here: {EVALUATION}")
def test_questions_of_real_sets_are_found_in_real_documents() -> None:
    """An item planted in each document of other text is found by its own set; the text alone is not."""
    names = ["arc_easy", "boolq", "gsm8k", "lambada_openai"]
    sets = read_sets(
        DecontaminateSettings.model_validate(
            {"sets": [{"name": name, "path": str(EVALUATION / f"{name}.jsonl")} for name in names]}
        )
    )
    assert [one.num_items for one in sets] == [2376, 3270, 1319, 5153]
    random.seed(5)
    clean = [document for document in (find.__doc__, F.__doc__, json.__doc__, random.__doc__) if document]
    assert not any(map(sum, counts(list(clean), sets=sets)[0]))
    for number, name in enumerate(names):
        lines = (EVALUATION / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        items = [json.loads(line) for line in random.sample(lines, 50)]
        texts = [str(item.get("query") or item.get("context")) for item in items]
        long = [text for text in texts if len(text.split()) >= 16]
        found, _ = counts([f"{random.choice(clean)}\n{text.upper()}!" for text in long], sets=sets)
        assert len(long) >= 10
        assert all(found[number])
