"""Sure cuts: for every split listed, random and real text in pieces gives the tokens that the whole gives."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from tessera.shard import cuts

SIGNED = (
    "Größe — 漢字とかな、がぎ。한국어 텍스트, русский ёлка й. naïve café e\u0301 don't WE'LL it's x's 12345 3.14"
    "\r\n\r\n  \t x"
)
REAL = "\n".join(Path(file).read_text(encoding="utf-8") for file in (cuts.__file__, __file__)) + SIGNED


def split(regex: str) -> Any:
    return pre_tokenizers.Split(Regex(regex), "isolated")


def in_order(*parts: Any) -> Any:
    return pre_tokenizers.Sequence(list(parts))


BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
KNOWN: dict[str, tuple[Any, str]] = {
    "ByteLevel": (pre_tokenizers.ByteLevel(add_prefix_space=False), "sign"),
    "ByteLevel with a prefix": (pre_tokenizers.ByteLevel(add_prefix_space=True), "space"),
    **{f"Split {number}": (in_order(split(regex), BYTES), "sign") for number, regex in enumerate(sorted(cuts.SPLITS))},
    "Digits first": (in_order(pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)), "sign"),
    "runs first": (in_order(*map(split, sorted(cuts.RUNS)), split(max(cuts.SPLITS, key=len)), BYTES), "sign"),
    "Whitespace": (pre_tokenizers.Whitespace(), "sign"),
    "WhitespaceSplit": (pre_tokenizers.WhitespaceSplit(), "space"),
    "Bert": (pre_tokenizers.BertPreTokenizer(), "space"),
    "words, then Metaspace": (in_order(pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()), "space"),
    **{
        f"Metaspace {scheme}": (pre_tokenizers.Metaspace(prepend_scheme=scheme), "space")
        for scheme in ("always", "first", "never")
    },
}


def make(pre_tokenizer: Any, *, normalizer: Any = None) -> Tokenizer:
    fast = Tokenizer(models.BPE(unk_token="[unk]"))
    if normalizer is not None:
        fast.normalizer = normalizer
    if pre_tokenizer is not None:
        fast.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=["[unk]"], show_progress=False)
    fast.train_from_iterator([REAL, "a b c, d. 'll s 're d t  \n"], trainer=trainer)
    return fast


def encode(fast: Tokenizer, text: str) -> list[int]:
    return list(fast.encode(text, add_special_tokens=False).ids)


@pytest.fixture(scope="module", params=KNOWN)
def known(request: pytest.FixtureRequest) -> tuple[Tokenizer, cuts.Rule]:
    pre_tokenizer, wanted = KNOWN[request.param]
    fast = make(pre_tokenizer, normalizer=normalizers.NFC() if "Split" in request.param else None)
    rule = cuts.rule_of(json.loads(fast.to_str()))
    assert rule == wanted
    return fast, rule


ODD = [
    *[
        "'s",
        "'ll",
        "'RE",
        " ",
        "  ",
        "\n",
        "\r\n",
        "\t",
        "\xa0",
        "\u3000",
        "a",
        "bc",
        "Ü",
        "e\u0301",
        "\u0301",
        "漢",
        "が",
    ],
    *[
        "か\u3099",
        "한",
        "й",
        "и\u0306",
        "ё",
        "नि",
        "न\u093c",
        "1",
        "234",
        "٣",
        ".",
        ",",
        "。",
        "、",
        "!",
        "/",
        "--",
        "(",
        "🙂",
    ],
    *["👩\u200d👧", "\0", "\u200b", "_", "'", "<|endoftext|>", "ﬁ", "Ǆ", "ª"],
]


@settings(max_examples=60, deadline=None)
@given(
    text=st.lists(st.sampled_from(ODD) | st.characters(exclude_categories=["Cs"])).map("".join), every=st.integers(0, 9)
)
def test_pieces_give_the_tokens_of_the_whole(known: tuple[Tokenizer, cuts.Rule], text: str, every: int) -> None:
    fast, rule = known
    parts = cut_often(text, rule=rule, every=every)

    assert "".join(parts) == text
    assert [token for part in parts for token in encode(fast, part)] == encode(fast, text)


def cut_often(text: str, *, rule: cuts.Rule, every: int) -> list[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuts, "PIECE_CHARS", every)
        return list(cuts.pieces(text, rule=rule)) if every else at_all_cuts(text, rule=rule)


def at_all_cuts(text: str, *, rule: cuts.Rule) -> list[str]:
    places = [0, *(found.start() for found in cuts.PATTERNS[rule].finditer(text)), len(text)]
    return [text[first:last] for first, last in pairwise(places) if last > first]


def test_real_text_is_cut_often_and_gives_the_same_tokens(known: tuple[Tokenizer, cuts.Rule]) -> None:
    fast, rule = known
    parts = at_all_cuts(REAL, rule=rule)

    assert len(parts) > len(REAL) / 40
    assert [token for part in parts for token in encode(fast, part)] == encode(fast, REAL)


@pytest.mark.parametrize(
    "pre_tokenizer",
    [None, split(r"\s+"), split("'[a-z]+ |x y"), pre_tokenizers.Punctuation(), pre_tokenizers.UnicodeScripts(), BYTES,
     pre_tokenizers.Metaspace(split=False), in_order(split("[ab]"), pre_tokenizers.ByteLevel()),
     in_order(pre_tokenizers.Whitespace(), pre_tokenizers.Metaspace(prepend_scheme="first"))],
)  # fmt: skip
def test_a_split_that_is_not_known_is_never_cut(pre_tokenizer: Any) -> None:
    assert cuts.rule_of(json.loads(make(pre_tokenizer).to_str())) == ""
    assert list(cuts.pieces("a b " * cuts.PIECE_CHARS, rule="")) == ["a b " * cuts.PIECE_CHARS]


@pytest.mark.parametrize(
    "normalizer", [normalizers.NFD(), normalizers.Replace("a b", "c"), normalizers.Prepend("_"), normalizers.Strip(),
                   normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])],
)  # fmt: skip
def test_a_normalizer_that_may_join_characters_forbids_cuts(normalizer: Any) -> None:
    fast = make(pre_tokenizers.ByteLevel(add_prefix_space=False), normalizer=normalizer)

    assert cuts.rule_of(json.loads(fast.to_str())) == ""


@pytest.mark.parametrize(
    ("token", "rule"),
    [({"content": "<tool>"}, "sign"), ({"content": "   "}, "sign"), ({"content": "<a b>"}, ""), ({"content": "x,"}, ""),
     ({"content": "<m>", "lstrip": True}, ""), ({"content": "<m>", "rstrip": True}, ""),
     ({"content": "<m>", "lstrip": True, "special": True}, "sign"), ({"content": "x", "single_word": True}, "")],
)  # fmt: skip
def test_an_added_token_that_may_lie_across_a_cut_forbids_them(token: dict[str, Any], rule: str) -> None:
    saved = json.loads(make(pre_tokenizers.ByteLevel(add_prefix_space=False)).to_str())

    assert cuts.rule_of({**saved, "added_tokens": [token]}) == rule
