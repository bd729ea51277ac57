"""Long and odd documents: the tokens of the whole in bounded memory; what is no text is refused by its id."""

import json
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import Tokenizer as FastTokenizer

from tessera.errors import TokenizerError
from tessera.shard import cuts, encode, tokenizer

PROSE = Path(cuts.__file__).read_text(encoding="utf-8") + Path(__file__).read_text(encoding="utf-8")
MEMORY = """
import resource, sys
from pathlib import Path
from tessera.shard import tokenizer
loaded = tokenizer.load(Path(sys.argv[1]))
text = Path(sys.argv[2]).read_text(encoding="utf-8") * 400
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
ids = loaded.encode_arrays([text])[0]
print(len(text), len(ids), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.train([PROSE], folder=folder, vocab_size=600)
    return folder


def whole(folder: Path, text: str) -> list[int]:
    """The library alone, in one call."""
    fast = FastTokenizer.from_file(str(folder / "tokenizer.json"))
    fast.encode_special_tokens = True
    return list(fast.encode(text, add_special_tokens=False).ids)


def test_a_long_document_has_the_tokens_of_the_whole(folder: Path) -> None:
    text = PROSE * (3 * cuts.PIECE_CHARS // len(PROSE) + 1)
    loaded = tokenizer.load(folder)

    assert loaded.definition.cut_rule == "sign"
    assert len(list(cuts.pieces(text, rule="sign"))) > 2
    assert loaded.encode_batch(["before", text, "after"]) == [whole(folder, one) for one in ("before", text, "after")]


def test_memory_of_a_long_document_does_not_grow_with_the_library(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text(PROSE, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, folder, tmp_path / "text"], capture_output=True, text=True, check=True
    )
    chars, tokens, kib = map(int, done.stdout.split())
    assert chars > 3_000_000
    assert kib * 1024 < 40 * 2**20 + 16 * tokens, "whole, the library takes over 100 bytes a character"
    assert resource.getpagesize()


def test_a_document_without_a_sure_cut_is_encoded_whole_or_refused_above_the_limit(folder: Path) -> None:
    text = "é" * (2 * cuts.PIECE_CHARS)
    loaded = tokenizer.load(folder)
    assert loaded.encode_batch([text])[0] == whole(folder, text)
    strict = tokenizer.Tokenizer(replace(loaded.definition, max_uncut_bytes=2**19))

    with pytest.raises(TokenizerError, match=rf"doc_id abc has {2 * len(text)} bytes .* at most {2**19} are encoded"):
        strict.encode_arrays(["short", text], names=["x", "abc"])


def test_odd_text_comes_back(folder: Path) -> None:
    loaded = tokenizer.load(folder)
    texts = [
        "🙂👩‍👩‍👧🏳️‍🌈",
        "\0",
        "a\0b\0",
        "<|endoftext|>",
        "<|endoftext|><|endoftext|>",
        "\ufeff",
        "\u202eabc",
        "e\u0301",
    ]

    for text, ids in zip(texts, loaded.encode_batch(texts), strict=True):
        assert loaded.decode(ids) == text
        assert loaded.end_id not in ids
    assert loaded.encode_batch([""]) == [[]]


@pytest.mark.parametrize("text", ["a\ud800b", "\udfff" * 3, "x " * cuts.PIECE_CHARS + "\ud800"])
def test_half_a_surrogate_pair_is_refused_with_the_id_and_without_the_text(folder: Path, text: str) -> None:
    with pytest.raises(TokenizerError, match=r"doc_id two: character .* half a surrogate pair") as caught:
        tokenizer.load(folder).encode_arrays(["fine", text], names=["one", "two"])
    assert "\ud800" not in str(caught.value)


def test_bytes_that_are_no_utf8_are_refused_with_the_id_and_without_the_text() -> None:
    data = b"good" + b"se\xffcret" + b"good"
    offsets = np.array([0, 4, 4 + 7, len(data)], np.int32)
    column = pa.StringArray.from_buffers(3, pa.py_buffer(offsets), pa.py_buffer(data))

    with pytest.raises(TokenizerError, match="doc_id two: byte 2 of its text is not UTF-8") as caught:
        encode.unicode_texts(column, names=["one", "two", "three"])
    assert "cret" not in str(caught.value)
    assert encode.unicode_texts(column.take(pa.array([0, 2])), names=["one", "three"]) == ["good", "good"]


def test_dropout_of_training_is_off(folder: Path, tmp_path: Path) -> None:
    for file in tokenizer.files(folder):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    saved = json.loads((tmp_path / "tokenizer.json").read_text())
    saved["model"]["dropout"] = 0.5
    (tmp_path / "tokenizer.json").write_text(json.dumps(saved))

    assert tokenizer.load(tmp_path).encode_batch([PROSE]) == tokenizer.load(folder).encode_batch([PROSE])
