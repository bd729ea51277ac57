"""Documents come out of shard files as they went in, of every kind and packing: packing the rest is a rebuild."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tessera.errors import CorruptShard
from tessera.shard import encode, forget, tokenizer
from tessera.shard.cell import Cell, Recipe, cell_files
from tessera.shard.tokenizer import Tokenizer
from tessera.shard.write.changes import CellName

WORDS = ("array", "axis", "value", "shape", "matrix", "index", "dtype", "error", "number", "result")
MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
NAME = CellName("train", 0, 0)


def words(number: int, *, longest: int = 30) -> str:
    random = np.random.default_rng(number)
    return f"{number} " + " ".join(random.choice(WORDS, int(random.integers(1, longest))))


def document(number: int, kind: str) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(("text", "messages", "prompt", "chosen", "rejected"))
    if kind == "text":
        row["text"] = words(number, longest=90)
    elif kind == "preference":
        row |= {
            name: words(number * 7 + place, longest=9) for place, name in enumerate(("prompt", "chosen", "rejected"))
        }
    else:
        turns = [("user", words(number)), ("assistant", words(number + 1)), ("user", "and?"), ("assistant", "no more")]
        row["messages"] = [{"role": role, "content": content} for role, content in turns]
    identity = hashlib.sha256(f"{kind} {number}".encode()).hexdigest()
    return {
        **row, "kind": kind, "doc_id": identity, "sha256": hashlib.sha256(identity.encode()).hexdigest(), "added": 0,
        "split": "train", "num_bytes": 10 + number, "source": f"s{number % 3}",
    }  # fmt: skip


def tokenized(rows: list[dict[str, Any]], *, recipe: Recipe) -> pa.Table:
    types = {"messages": MESSAGES, "added": pa.int64(), "num_bytes": pa.int64()}
    schema = pa.schema([(name, types.get(name, pa.string())) for name in encode.DOCUMENT_COLUMNS])
    batch = pa.RecordBatch.from_pylist(rows, schema=schema)
    made = encode.tokenize(batch, tokenizer=Tokenizer(recipe.tokenizer), recipe=recipe)
    return pa.Table.from_batches(list(made)).sort_by([("doc_id", "ascending"), ("sha256", "ascending")])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    tokenizer.train([words(number) for number in range(200)], folder=path, vocab_size=330)
    return path


def make_recipe(folder: Path, *, packing: str, seq_len: int = 64) -> Recipe:
    return Recipe(
        buckets={0: 1}, compacted=-1, tokenizer=tokenizer.definition(folder), seq_len=seq_len, seed=5,
        shard_bytes=2**14, packing=packing,  # type: ignore[arg-type]
    )  # fmt: skip


def write(folder: Path, documents: pa.Table, *, recipe: Recipe) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """The files' hashes by name, and the places of their pieces as the side table gives them."""
    found, places = {}, []
    for file in cell_files(Cell(generation=0, bucket=0, split="train", documents=documents), recipe=recipe):
        (folder / file.name).parent.mkdir(parents=True, exist_ok=True)
        (folder / file.name).write_bytes(file.data)
        found[file.name] = hashlib.sha256(file.data).hexdigest()
        places += file.spans.to_pylist()
    return found, sorted(places, key=lambda row: (row["doc_id"], row["sha256"], row["piece"]))


@pytest.mark.parametrize("packing", ["best-fit", "concat", "none"])
@pytest.mark.parametrize("kinds", [("text",), ("text", "chat"), ("chat",), ("preference",)], ids="-".join)
def test_what_is_left_of_a_cell_is_packed_as_if_the_rest_had_never_been(
    kinds: tuple[str, ...], packing: str, folder: Path, tmp_path: Path
) -> None:
    recipe = make_recipe(folder, packing=packing)
    rows = [document(number, kind) for kind in kinds for number in range(40)]
    whole = tokenized(rows, recipe=recipe)
    _, places = write(tmp_path / "set", whole, recipe=recipe)
    gone = {row["doc_id"] for row in rows[::5]}

    left = [row for row in places if row["doc_id"] not in gone]
    samples = forget._samples(tmp_path / "set", left)
    documents = forget._documents(left, cell=NAME, samples=samples, dtype=recipe.dtype)
    again, _ = write(tmp_path / "again", documents, recipe=recipe)

    rebuilt = tokenized([row for row in rows if row["doc_id"] not in gone], recipe=recipe)
    wanted, _ = write(tmp_path / "rebuilt", rebuilt, recipe=recipe)
    assert documents.select(rebuilt.column_names).to_pylist() == rebuilt.to_pylist()
    assert again == wanted


def test_no_mask_stays_when_the_last_conversation_of_a_cell_goes(folder: Path, tmp_path: Path) -> None:
    recipe = make_recipe(folder, packing="best-fit")
    texts = [document(number, "text") for number in range(20)]
    _, places = write(tmp_path / "set", tokenized([*texts, document(1, "chat")], recipe=recipe), recipe=recipe)
    left = [row for row in places if row["doc_id"] in {one["doc_id"] for one in texts}]

    documents = forget._documents(left, cell=NAME, samples=forget._samples(tmp_path / "set", left), dtype=recipe.dtype)

    assert (
        write(tmp_path / "again", documents, recipe=recipe)[0]
        == (write(tmp_path / "rebuilt", tokenized(texts, recipe=recipe), recipe=recipe)[0])
    )


@pytest.mark.parametrize("damage", ["flipped", "gone"])
def test_a_damaged_file_is_named_and_nothing_is_packed_from_it(damage: str, folder: Path, tmp_path: Path) -> None:
    recipe = make_recipe(folder, packing="best-fit")
    files, places = write(tmp_path, tokenized([document(1, "text"), document(2, "text")], recipe=recipe), recipe=recipe)
    (name,) = files
    data = bytearray((tmp_path / name).read_bytes())
    data[-1] ^= 1
    (tmp_path / name).write_bytes(bytes(data))
    if damage == "gone":
        (tmp_path / name).unlink()

    with pytest.raises(CorruptShard, match=Path(name).name):
        forget._samples(tmp_path, places)
