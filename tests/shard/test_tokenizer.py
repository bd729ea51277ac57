"""The tokenizer: the same file for the same texts, byte for byte round trips, text that looks like special tokens."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.errors import TokenizerError
from tessera.shard import tokenizer

WORDS = ["the", "returned", "array", "has", "shape", "of", "n", "by", "m", "and", "values", "along", "last", "axis"]
TEXTS = [
    " ".join(WORDS[(start * step) % len(WORDS)] for start in range(30 + step)) + f"\n\tvalue_{step} = {step} ü 漢字\n"
    for step in range(1, 60)
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.train(TEXTS, folder=folder, vocab_size=400)
    return folder


TRAIN = """
import json, sys
from pathlib import Path
from tessera.shard import tokenizer
texts = json.load(sys.stdin)
tokenizer.train(texts, folder=Path(sys.argv[1]), vocab_size=400)
"""


@pytest.mark.parametrize(
    "environment",
    [{"RAYON_NUM_THREADS": "1"}, {"RAYON_NUM_THREADS": "7"}, {"TOKENIZERS_PARALLELISM": "false"}],
    ids=str,
)
def test_same_texts_in_any_order_and_any_threads_give_the_same_files(
    folder: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    shuffled = TEXTS[::-1] if "1" in environment.values() else [*TEXTS[20:], *TEXTS[:20]]
    subprocess.run(
        [sys.executable, "-c", TRAIN, tmp_path], input=json.dumps(shuffled), text=True, check=True,
        env={**os.environ, **environment},
    )  # fmt: skip

    for file in tokenizer.files(folder):
        assert (tmp_path / file.name).read_bytes() == file.read_bytes()
    assert tokenizer.identity(tmp_path) == tokenizer.identity(folder)


@given(st.text(min_size=1))
def test_any_text_comes_back(folder: Path, text: str) -> None:
    loaded = tokenizer.load(folder)
    (ids,) = loaded.encode_batch([text])

    assert loaded.decode(ids) == text
    assert max(ids) < loaded.vocab_size


def test_trained_vocabulary_is_used(folder: Path) -> None:
    loaded = tokenizer.load(folder)

    assert loaded.vocab_size == 400
    assert len(loaded.encode_batch([TEXTS[3]])[0]) < len(TEXTS[3].encode()) / 2


def test_special_tokens_in_text_are_text(folder: Path) -> None:
    loaded = tokenizer.load(folder)
    text = f"before{tokenizer.END_TOKEN}after"
    (ids,) = loaded.encode_batch([text])

    assert loaded.end_id not in ids
    assert loaded.decode(ids) == text
    assert loaded.decode([*ids, loaded.end_id]) == text, "the end token itself gives no text"


def test_transformers_loads_it_and_agrees(folder: Path) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    ours = tokenizer.load(folder)

    assert theirs.eos_token == tokenizer.END_TOKEN
    assert (theirs.eos_token_id, len(theirs)) == (ours.end_id, ours.vocab_size)
    assert [theirs(text)["input_ids"] for text in TEXTS] == ours.encode_batch(TEXTS)
    assert theirs.decode(ours.encode_batch([TEXTS[0]])[0]) == TEXTS[0]


def test_identity_is_of_names_and_contents_not_of_the_place(folder: Path, tmp_path: Path) -> None:
    for file in tokenizer.files(folder):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"of no concern")
    same = tokenizer.identity(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    config.write_text(config.read_text() + "\n")

    assert same == tokenizer.identity(folder)
    assert tokenizer.identity(tmp_path) != same


def foreign(folder: Path, target: Path, **changes: object) -> Path:
    """A tokenizer folder as others save them: with truncation, padding, a template, and tokens not marked special."""
    saved = json.loads((folder / "tokenizer.json").read_text())
    saved["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    saved["padding"] = {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                        "pad_type_id": 0, "pad_token": tokenizer.END_TOKEN}  # fmt: skip
    chat = {"id": 400, "content": "<|user|>", "special": False, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False}  # fmt: skip
    saved["added_tokens"] = [{**saved["added_tokens"][0], "special": False}, chat]
    saved["post_processor"] = {
        "type": "TemplateProcessing", "pair": [], "single": [{"SpecialToken": {"id": "<|user|>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {"<|user|>": {"id": "<|user|>", "ids": [400], "tokens": ["<|user|>"]}},
    }  # fmt: skip
    (target / "tokenizer.json").write_text(json.dumps(saved))
    config = {"eos_token": {"content": tokenizer.END_TOKEN, "lstrip": False}, **changes}
    (target / "tokenizer_config.json").write_text(json.dumps(config))
    return target


def test_a_foreign_folder_is_used_without_its_truncation_padding_and_template(folder: Path, tmp_path: Path) -> None:
    loaded = tokenizer.load(foreign(folder, tmp_path))
    texts = [TEXTS[0], f"a{tokenizer.END_TOKEN}b"]

    assert loaded.vocab_size == 401
    assert loaded.encode_batch(texts) == tokenizer.load(folder).encode_batch(texts)


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda at: (at / "tokenizer.json").unlink(), "no download is tried"),
        (lambda at: (at / "tokenizer.json").write_text("{"), "cannot be read"),
        (lambda at: (at / "tokenizer.json").write_text("[]"), "wanted a mapping"),
        (lambda at: (at / "tokenizer.json").write_text('{"model": 3}'), "cannot be read"),
        (lambda at: (at / "tokenizer_config.json").write_text('{"eos_token": "</s>"}'), "names no end token"),
    ],
)
def test_an_unfit_folder_is_refused(folder: Path, tmp_path: Path, break_it, words: str) -> None:  # type: ignore[no-untyped-def]
    break_it(foreign(folder, tmp_path))

    with pytest.raises(TokenizerError, match=words) as caught:
        tokenizer.load(tmp_path)
    assert str(tmp_path) in str(caught.value)
