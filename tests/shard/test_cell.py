"""Cells as files: read back by the generic MDS decoder, which knows nothing of packing."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.shard.test_chat import CHATML, save
from tests.shard.test_encode import chat_row, make_recipe, preference_row, text_row, tokenize

from tessera.errors import ShardSetError
from tessera.shard import tokenizer
from tessera.shard.cell import Cell, CellFile, Recipe, cell_files
from tessera.shard.format import mds
from tessera.shard.pack import Packing

TEXTS = [text_row(key, f"the text number {key} " * (1 + key % 9)) for key in range(60)]
CHATS = [
    chat_row(100 + key, *[f"{word} {key} says this" for word in ("user", "assistant") * (1 + key % 3)])
    for key in range(60)
]
PREFERENCES = [
    preference_row(200 + key, f"which of {key} " * (1 + key % 5), f"the better {key}", f"a worse {key}" * (1 + key % 3))
    for key in range(60)
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(tmp_path, template=CHATML)
    return tmp_path


def make_cell(rows: list[dict[str, Any]], *, recipe: Recipe) -> Cell:
    documents = tokenize(rows, recipe).sort_by([("doc_id", "ascending"), ("sha256", "ascending")])
    return Cell(generation=0, bucket=0, split="train", documents=documents)


def read(file: CellFile, *, folder: Path) -> tuple[dict[str, str], list[dict[str, Any]]]:
    path = folder / "one.mds"
    path.write_bytes(file.data)
    config = mds.read_config(path)
    columns = dict(zip(config["column_names"], config["column_encodings"], strict=True))
    return columns, list(mds.read_samples(path))


def documents_of(files: list[CellFile], *, folder: Path, column: str) -> dict[str, np.ndarray]:
    """doc_id -> what the spans say that the column holds of it."""
    pieces: dict[str, dict[int, np.ndarray]] = {}
    for file in files:
        _, samples = read(file, folder=folder)
        for span in file.spans.to_pylist():
            begin = span["start"]
            piece = samples[span["sample"]][column][begin : begin + span["num_tokens"]]
            pieces.setdefault(span["doc_id"], {})[span["piece"]] = piece
    return {name: np.concatenate([own[number] for number in sorted(own)]) for name, own in pieces.items()}


@pytest.mark.parametrize("packing", get_args(Packing))
@pytest.mark.parametrize("rows", [TEXTS, CHATS, [*TEXTS, *CHATS]], ids=["texts", "chats", "both"])
def test_every_document_and_label_is_found_by_its_spans(
    folder: Path, packing: Packing, rows: list[dict[str, Any]]
) -> None:
    recipe = make_recipe(folder, packing=packing)
    cell = make_cell(rows, recipe=recipe)

    files = list(cell_files(cell, recipe=recipe))

    assert len(files) > 0
    tokens = documents_of(files, folder=folder, column="tokens")
    tokenized = {row["doc_id"]: row for row in cell.documents.to_pylist()}
    assert {name: own.tobytes() for name, own in tokens.items()} == {
        name: row["tokens"] for name, row in tokenized.items()
    }
    columns, samples = read(files[0], folder=folder)
    assert ("loss" in columns) == (rows is not TEXTS)
    assert columns["tokens"] == f"ndarray:uint16:{recipe.seq_len}"
    spans = [span for file in files for span in file.spans.to_pylist()]
    if rows is not TEXTS:
        loss = documents_of(files, folder=folder, column="loss")
        for name, row in tokenized.items():
            wanted = row["loss"] or bytes([1]) * row["num_tokens"]
            assert loss[name].tobytes() == wanted
        assert sum(int(sample["loss"].sum()) for file in files for sample in read(file, folder=folder)[1]) == sum(
            span["loss_tokens"] for span in spans
        )
    labels: dict[str, int] = {}
    for span in spans:
        labels[span["doc_id"]] = labels.get(span["doc_id"], 0) + span["loss_tokens"]
    assert labels == {name: sum(row["loss"]) if row["loss"] else row["num_tokens"] for name, row in tokenized.items()}
    assert sum(file.spans["file_padding"][0].as_py() for file in files) == sum(
        recipe.seq_len * file.spans["file_samples"][0].as_py() for file in files
    ) - sum(row["num_tokens"] for row in tokenized.values())
    assert samples[0]["starts"][0] == 0


def test_the_assistants_words_are_what_the_mask_leaves(folder: Path) -> None:
    recipe = make_recipe(folder, seq_len=256)
    loaded = tokenizer.Tokenizer(recipe.tokenizer)
    files = list(cell_files(make_cell(CHATS, recipe=recipe), recipe=recipe))

    tokens = documents_of(files, folder=folder, column="tokens")
    loss = documents_of(files, folder=folder, column="loss")

    for row in CHATS:
        name = row["doc_id"]
        said = "".join(turn["content"] for turn in row["messages"] if turn["role"] == "assistant")
        assert loaded.decode(tokens[name][loss[name] == 1].tolist()) == said


def test_a_preference_is_a_sample_of_two_answers(folder: Path) -> None:
    recipe = make_recipe(folder)
    loaded = tokenizer.Tokenizer(recipe.tokenizer)
    cell = make_cell(PREFERENCES, recipe=recipe)

    (file,) = cell_files(cell, recipe=recipe)

    columns, samples = read(file, folder=folder)
    assert columns == {"chosen": "ndarray:uint16", "prompt": "uint32", "rejected": "ndarray:uint16"}
    spans = {span["doc_id"]: span for span in file.spans.to_pylist()}
    assert len(samples) == len(spans) == len(PREFERENCES)
    for row in PREFERENCES:
        span = spans[row["doc_id"]]
        sample = samples[span["sample"]]
        begin = int(sample["prompt"])
        assert sample["chosen"][:begin].tolist() == sample["rejected"][:begin].tolist()
        assert max(len(sample["chosen"]), len(sample["rejected"])) <= recipe.seq_len
        assert loaded.decode(sample["chosen"][begin:].tolist()) == row["chosen"]
        assert loaded.decode(sample["rejected"][begin:].tolist()) == row["rejected"]
        assert span["num_tokens"] == len(sample["chosen"]) + len(sample["rejected"])
        assert span["loss_tokens"] == span["num_tokens"] - 2 * begin
    order = [span["sample"] for _, span in sorted(spans.items())]
    assert abs(np.corrcoef(np.arange(len(order)), order)[0, 1]) < 0.4
    padding = 2 * recipe.seq_len * len(samples) - sum(span["num_tokens"] for span in spans.values())
    assert file.spans["file_padding"][0].as_py() == padding


def test_preferences_and_others_are_not_mixed(folder: Path) -> None:
    recipe = make_recipe(folder)
    cell = make_cell([*TEXTS[:3], *PREFERENCES[:2]], recipe=recipe)

    with pytest.raises(ShardSetError, match="2 of 5 documents are of kind preference"):
        next(cell_files(cell, recipe=recipe))


@pytest.mark.parametrize("rows", [CHATS, PREFERENCES], ids=["chats", "preferences"])
def test_files_are_a_function_of_the_documents_and_the_recipe(folder: Path, rows: list[dict[str, Any]]) -> None:
    documents = make_cell(rows, recipe=make_recipe(folder, seq_len=256)).documents
    in_parts = pa.concat_tables([documents.slice(0, 7), documents.slice(7, 30), documents.slice(37)])

    def names(table: pa.Table, **changes: Any) -> list[str]:
        cell = Cell(generation=0, bucket=0, split="train", documents=table)
        return [file.name for file in cell_files(cell, recipe=make_recipe(folder, seq_len=256, **changes))]

    assert names(in_parts) == names(documents)
    assert names(documents, seed=4) != names(documents)
    if rows is CHATS:
        assert len({tuple(names(documents, packing=packing)) for packing in get_args(Packing)}) == 3


def sequences(number: int, *, seq_len: int, seed: int) -> Iterator[dict[str, np.ndarray]]:
    random = np.random.default_rng(seed)
    for _ in range(number):
        starts = np.unique(random.integers(0, seq_len, int(random.integers(1, 400))))
        yield {
            "tokens": random.integers(0, 2**16, seq_len).astype(np.uint16),
            "starts": np.union1d([0], starts).astype(np.uint16),
            "loss": random.integers(0, 2, seq_len).astype(np.uint8),
        }


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.sampled_from([16, 64, 600]), st.integers(0, 99), st.sampled_from([2**12, 2**16]))
def test_laid_out_samples_with_labels_are_those_of_the_generic_encoder(
    number: int, seq_len: int, seed: int, size_limit: int
) -> None:
    samples = list(sequences(number, seq_len=seq_len, seed=seed))
    columns = {"tokens": f"ndarray:uint16:{seq_len}", "starts": "ndarray:uint16", "loss": f"ndarray:uint8:{seq_len}"}
    config = mds.make_config(columns, size_limit=size_limit)

    fast = mds.token_shards(
        np.stack([sample["tokens"] for sample in samples]),
        starts_P=np.concatenate([sample["starts"] for sample in samples]),
        num_starts_S=np.array([len(sample["starts"]) for sample in samples]),
        loss_ST=np.stack([sample["loss"] for sample in samples]),
        config=config,
    )

    assert list(fast) == list(mds.shard_bytes(config, samples))
