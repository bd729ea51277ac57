"""Documents of all kinds as tokenized rows, whatever company they come in."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tests.shard.test_chat import CHATML, save

from tessera.errors import ShardSetError, TokenizerError
from tessera.shard import chat, encode, tokenizer
from tessera.shard.cell import Recipe

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
SCHEMA = pa.schema(
    [("doc_id", pa.string()), ("sha256", pa.string()), ("added", pa.int64()), ("split", pa.string()),
     ("num_bytes", pa.int64()), ("text", pa.string()), ("source", pa.string()), ("kind", pa.string()),
     ("messages", MESSAGES), ("prompt", pa.string()), ("chosen", pa.string()), ("rejected", pa.string())]
)  # fmt: skip


def row(key: int, **values: Any) -> dict[str, Any]:
    digest = hashlib.sha256(str(key).encode()).hexdigest()
    return {
        "doc_id": digest,
        "sha256": digest[::-1],
        "added": 0,
        "split": "train",
        "num_bytes": 50,
        "source": "s",
        **values,
    }


def text_row(key: int, words: str) -> dict[str, Any]:
    return row(key, kind="text", text=words)


def chat_row(key: int, *contents: str, kind: str = "chat") -> dict[str, Any]:
    turns = [{"role": ("user", "assistant")[place % 2], "content": content} for place, content in enumerate(contents)]
    return row(key, kind=kind, messages=turns)


def preference_row(key: int, prompt: str, chosen: str, rejected: str) -> dict[str, Any]:
    return row(key, kind="preference", prompt=prompt, chosen=chosen, rejected=rejected)


def batch(rows: list[dict[str, Any]]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(rows, schema=SCHEMA)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(tmp_path, template=CHATML)
    return tmp_path


def make_recipe(folder: Path, **changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "buckets": {0: 4}, "compacted": -1, "seq_len": 64, "seed": 3, "shard_bytes": 2**16, "truncate": "turns"
    }  # fmt: skip
    return Recipe(tokenizer=tokenizer.definition(folder), template=chat.load(folder), **{**values, **changes})


def tokenize(rows: list[dict[str, Any]], recipe: Recipe) -> pa.Table:
    parts = encode.tokenize(batch(rows), tokenizer=tokenizer.Tokenizer(recipe.tokenizer), recipe=recipe)
    return pa.Table.from_batches(list(parts))


ROWS = [
    text_row(1, "the user said the same"),
    chat_row(2, "who are you", "the assistant"),
    text_row(3, "a longer text " * 40),
    chat_row(4, "and then", "the end", "really", "yes", kind="instruction"),
    text_row(5, "猫 and <|im_end|> in text"),
    chat_row(6, *["a turn of this conversation"] * 12),
]


def test_a_document_is_encoded_alike_in_any_company(folder: Path) -> None:
    recipe = make_recipe(folder)
    alone = [tokenize([one], recipe).to_pylist()[0] for one in ROWS]

    for order in ([0, 1, 2, 3, 4, 5], [5, 1, 3, 0, 2, 4], [4, 0]):
        together = tokenize([ROWS[place] for place in order], recipe).to_pylist()
        assert together == [alone[place] for place in order]
    names = [column.split()[0] for column in encode.TOKENIZED.split(", ")]
    assert list(alone[0]) == names
    assert [one["loss"] is None for one in alone] == [True, False, True, False, True, False]
    assert alone[5]["dropped_turns"] > 0
    assert alone[5]["truncated_tokens"] > 0
    assert alone[2]["num_tokens"] > recipe.seq_len
    assert alone[2]["truncated_tokens"] == 0


def test_the_columns_say_what_the_tokens_are(folder: Path) -> None:
    recipe = make_recipe(folder)
    loaded = tokenizer.Tokenizer(recipe.tokenizer)

    rows = tokenize([ROWS[0], ROWS[1]], recipe).to_pylist()
    (preference,) = tokenize([preference_row(9, "which", "this one", "that")], recipe).to_pylist()

    tokens = [np.frombuffer(one["tokens"], "<u2") for one in rows]
    assert loaded.decode(tokens[0].tolist()) == "the user said the same"
    loss = np.frombuffer(rows[1]["loss"], np.uint8)
    assert loaded.decode(tokens[1][loss == 1].tolist()) == "the assistant"
    for one, ids in zip(rows, tokens, strict=True):
        assert one["num_tokens"] == len(ids)
        assert ids[-1] == loaded.end_id
        assert (one["rejected"], one["prompt_tokens"], one["source"]) == (None, None, "s")
    chosen, rejected = (np.frombuffer(preference[name], "<u2").tolist() for name in ("tokens", "rejected"))
    begin = preference["prompt_tokens"]
    assert (loaded.decode(chosen[begin:]), loaded.decode(rejected[begin:])) == ("this one", "that")
    assert chosen[:begin] == rejected[:begin]
    assert preference["num_tokens"] == len(chosen) + len(rejected)
    assert preference["loss"] is None


def test_a_documents_table_of_format_1_is_all_text(folder: Path) -> None:
    recipe = make_recipe(folder)
    texts = [one for one in ROWS if one["kind"] == "text"]
    old = batch(texts).select(["doc_id", "sha256", "added", "split", "num_bytes", "text"])

    (found,) = encode.tokenize(old, tokenizer=tokenizer.Tokenizer(recipe.tokenizer), recipe=recipe)

    wanted = tokenize(texts, recipe)
    assert found.select(["doc_id", "tokens"]).to_pylist() == wanted.select(["doc_id", "tokens"]).to_pylist()


def test_truncation_is_refused_when_asked(folder: Path) -> None:
    recipe = make_recipe(folder, truncate="refuse")

    assert tokenize(ROWS[:5], recipe).num_rows == 5
    with pytest.raises(ShardSetError, match=r"1 of 6 documents are longer than shard.seq_len.*at most 64") as refused:
        tokenize(ROWS, recipe)
    assert ROWS[5]["doc_id"] in str(refused.value)
    with pytest.raises(ShardSetError, match="wanted at most 128"):
        tokenize([preference_row(9, "which " * 90, "this one", "that")], recipe)


def test_a_text_without_a_token_is_refused_by_id(folder: Path) -> None:
    with pytest.raises(TokenizerError, match=f"1 documents, such as doc_id {row(7)['doc_id']}"):
        tokenize([ROWS[0], text_row(7, "")], make_recipe(folder))
