"""Everything that prepare can do at once: planted values, near-duplicates, evaluation text; by command and by room."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from deltalake import write_deltalake
from tests.prepare.test_documents import prepare
from tests.prepare.test_increments import outcome_of

from tessera import tables
from tessera.forgetting.needles import Needles
from tessera.forgetting.search import search
from tessera.home import Home

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.spark

ITEM = "which of the seven bridges of the old city may be crossed once and only once on a walk"
PLANTED = {
    "email": "ludmilla.kowalczyk@kobold-verlag.example.com",
    "card": "5425 2334 3010 9903",
    "iban": "DE89 3704 0044 0532 0130 00",
    "secret": "ghp_16C7e42F292c6912E7710c838347Ae178B4a",
    "phone": "+49 (0)30 98 76 54 32",
}
ACTIONS = {"email": "mask", "card": "drop", "iban": "pseudonymise", "secret": "mask", "phone": "mask"}
WORDS = Path(random.__file__).read_text(encoding="utf-8").split()


def sentence(seed: int, *, words: int = 40) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def planted_table(path: Path) -> list[dict[str, Any]]:
    """Rows with one planted value each, with a near copy of another row, with an evaluation item, and plain ones."""
    texts = [sentence(seed) for seed in range(60)]
    texts += [f"{sentence(100 + number)} write {value} soon" for number, value in enumerate(PLANTED.values())]
    texts += [f"{sentence(seed)} and one word more" for seed in range(10)]
    texts += [f"He asked: {ITEM.upper()}, and nobody knew."]
    rows = [{"id": f"k{number}", "text": text} for number, text in enumerate(texts)]
    write_deltalake(path, pa.Table.from_pylist(rows))
    return rows


def options(tmp_path: Path) -> dict[str, Any]:
    exam = tmp_path / "exam.jsonl"
    exam.write_text(json.dumps({"question": ITEM}) + "\n", encoding="utf-8")
    return {
        "private": ACTIONS,
        "quality": {"length": {"min_words": 10, "max_mean_word_chars": 100, "min_mean_word_chars": 1}},
        "decontaminate": {"sets": [{"name": "exam", "path": str(exam)}]},
        "near_duplicates": {"threshold": 0.6, "shingle_words": 2, "bands": 20, "rows": 3},
    }


def test_what_was_planted_is_acted_on_and_appears_nowhere(tmp_path: Path) -> None:
    """By the command: not in the home (but where the source lies), not in MLflow, not on a terminal."""
    home = Home(tmp_path / "home")
    planted_table(tmp_path / "memos")
    assignments = {"sources": [{"path": str(tmp_path / "memos")}], "holdout": 0.3, **options(tmp_path)}
    command = [Path(sys.executable).with_name("tessera"), "prepare"]
    command += [f"--set=prepare.{name}={json.dumps(value)}" for name, value in assignments.items()]
    env = {**os.environ, "TESSERA_HOME": str(home.root), "TESSERA_PSEUDONYM_KEY": "k" * 32, "COLUMNS": "60"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

    values = list(PLANTED.values())
    needles = Needles((value.encode(), number) for number, value in enumerate(values))
    assert set(range(len(values))) == set().union(*search([tmp_path / "memos"], needles=needles).files.values())
    assert search([home.root], needles=needles).files == {}
    assert not [value for value in values if value in done.stdout + done.stderr]
    documents = {row["text"] for row in tables.read(home.documents).to_pylist()}
    assert sum("<EMAIL>" in text for text in documents) == 1
    assert sum("<IBAN:" in text for text in documents) == 1
    decided = tables.read(home.tables / "decisions").to_pylist()
    reasons = [row["reason"] for row in decided]
    assert reasons.count("private:card") == 1
    assert reasons.count("contaminated:exam") == 1
    assert reasons.count("near_duplicate") == 10
    assert {name: sum((row["private"] or {}).get(name) or 0 for row in decided) for name in PLANTED} == dict.fromkeys(
        PLANTED, 1
    )
    assert "near_duplicate" in done.stdout


def test_all_of_it_does_not_depend_on_partitions(
    spark: "SparkSession", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TESSERA_PSEUDONYM_KEY", "k" * 32)
    planted_table(tmp_path / "memos")
    found = []
    for number in (1, 3, 50):
        home = Home(tmp_path / f"home{number}")
        record = prepare(spark, home, source={"path": str(tmp_path / "memos")}, partitions=number, **options(tmp_path))
        found.append(outcome_of(home, record))
    assert found[0] == found[1] == found[2]


def test_another_key_makes_other_pseudonyms_and_no_key_is_refused(
    spark: "SparkSession", home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tessera.errors import ConfigError

    planted_table(tmp_path / "memos")
    source, more = {"path": str(tmp_path / "memos")}, {"private": {"iban": "pseudonymise"}}
    pseudonyms = []
    for key in ("k" * 32, "l" * 32):
        monkeypatch.setenv("TESSERA_PSEUDONYM_KEY", key)
        prepare(spark, home, source=source, **more)
        texts = [row["text"] for row in tables.read(home.documents).to_pylist() if "<IBAN:" in row["text"]]
        pseudonyms.append(texts)
    assert len(pseudonyms[0]) == len(pseudonyms[1]) == 1
    assert pseudonyms[0] != pseudonyms[1]
    monkeypatch.delenv("TESSERA_PSEUDONYM_KEY")
    with pytest.raises(ConfigError, match="TESSERA_PSEUDONYM_KEY"):
        prepare(spark, home, source=source, **more)
