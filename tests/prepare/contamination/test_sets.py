"""Reading evaluation sets: each format, what is counted, what identifies a set, and what is refused."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake

from tessera.errors import SourceError
from tessera.prepare.contamination.sets import EvaluationSet, identities, read_sets
from tessera.prepare.contamination.settings import DecontaminateSettings, EvaluationSetSettings

ITEMS = [
    {"question": "what is the boiling point of water", "answer": "one hundred degrees celsius"},
    {"question": "who, then, wrote the opera", "answer": "yes"},
    {"question": "too short", "answer": "no"},
]


def read(path: Path, *, words: int = 4, **more: Any) -> EvaluationSet:
    settings = DecontaminateSettings.model_validate(
        {"sets": [{"name": "exam", "path": str(path), **more}], "ngram_words": words}
    )
    (found,) = read_sets(settings)
    return found


def identities_of(*paths: Path) -> list[str]:
    sets = [{"name": f"set{number}", "path": str(path)} for number, path in enumerate(paths)]
    return list(identities(DecontaminateSettings.model_validate({"sets": sets})).values())


def write_json(path: Path, items: list[Any]) -> Path:
    path.write_text("".join(json.dumps(item) + "\n" for item in items) + "\n", encoding="utf-8")
    return path


def write_all(folder: Path) -> list[Path]:
    """The same items in every format."""
    table = pa.Table.from_pylist(ITEMS)
    paths = [folder / name for name in ("items.jsonl", "items.parquet", "items.csv", "items.v2.ndjson.gz", "table")]
    write_json(paths[0], ITEMS)
    pq.write_table(table, paths[1])
    pyarrow.csv.write_csv(table, paths[2])
    paths[3].write_bytes(gzip.compress(paths[0].read_bytes()))
    write_deltalake(paths[4], table)
    return paths


def test_every_format_gives_the_same_ngrams(tmp_path: Path) -> None:
    found = [read(path) for path in write_all(tmp_path)]

    assert [(one.num_items, one.num_short) for one in found] == [(3, 1)] * 5
    assert len(found[0].ngrams) == 4 + 1 + 2
    assert (found[0].ngrams[1:] > found[0].ngrams[:-1]).all()
    assert all((one.ngrams == found[0].ngrams).all() for one in found)


def test_a_line_of_plain_text_is_an_item(tmp_path: Path) -> None:
    (tmp_path / "items.txt").write_text("what is the boiling point\n\nno\nwho then wrote the opera", encoding="utf-8")

    found = read(tmp_path / "items.txt")

    assert (found.num_items, found.num_short, len(found.ngrams)) == (3, 1, 4)


def test_lists_of_texts_are_taken_one_by_one_and_numbers_left(tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.jsonl", [{"choices": ["one two three four", "five six seven eight"], "gold": 1}])

    assert len(read(path).ngrams) == 2


def test_columns_choose(tmp_path: Path) -> None:
    path = write_json(tmp_path / "items.jsonl", ITEMS)

    assert len(read(path, columns=["answer"]).ngrams) == 1
    with pytest.raises(SourceError, match=r"exam has an item without column 'query'; it has: question, answer"):
        read(path, columns=["query"])


def test_identity_is_of_the_contents(tmp_path: Path) -> None:
    first, parquet, *_, table = write_all(tmp_path)
    moved = tmp_path / "elsewhere.jsonl"
    moved.write_bytes(first.read_bytes())
    found = identities_of(first, moved, parquet, table)

    assert found[0] == found[1] == read(first).identity
    assert len(set(found)) == 3
    write_deltalake(table, pa.Table.from_pylist(ITEMS[:1]), mode="append")
    assert identities_of(table) != found[3:]
    one = EvaluationSetSettings(name="x", path="a.jsonl")
    assert one.identity() == one.model_copy(update={"path": "b.jsonl"}).identity()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("absent.jsonl", None, "neither a file nor a folder with a Delta table"),
        ("items.pdf", b"PRIVATE", "is of no known format"),
        ("items.jsonl", b'{"text": "PRIVATE', r"cannot be read as jsonl \(JSONDecodeError\)"),
        ("items.jsonl", b'["PRIVATE"]', "cannot be read as jsonl"),
        ("items.parquet", b"PRIVATE", r"cannot be read as parquet \(ArrowInvalid\)"),
        ("items.txt", b"PRIVATE \xff", r"cannot be read as txt \(UnicodeDecodeError\)"),
        ("items.csv", b"a,b\nPRIVATE\n", "cannot be read as csv"),
        ("items.txt", b"PRIVATE words\nPRIVATE", "none of 2 items has a text of 4 words"),
        ("items.txt", b"", "none of 0 items"),
    ],
)
def test_what_cannot_be_used_is_said_without_its_text(
    tmp_path: Path, name: str, content: bytes | None, said: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)

    with pytest.raises(SourceError, match=said) as raised:
        read(tmp_path / name)
    assert "PRIVATE" not in str(raised.value)
    assert raised.value.__cause__ is None


def test_ngrams_are_not_printed(tmp_path: Path) -> None:
    assert "ngrams" not in repr(read(write_json(tmp_path / "items.jsonl", ITEMS))).replace("ngram_words", "")


def test_two_sets_of_one_name_are_refused() -> None:
    one = {"name": "exam", "path": "a.jsonl"}
    with pytest.raises(ValueError, match="two evaluation sets are called 'exam'"):
        DecontaminateSettings.model_validate({"sets": [one, one]})
