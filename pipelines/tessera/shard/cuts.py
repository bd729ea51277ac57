"""Where a long text may be cut so that its pieces give the tokens of the whole: memory then does not grow with it.

A tokenizer that splits text into words before it merges never merges across a word's edge. For the splits listed here
a run of letters surely ends before a space, and for some before other signs; nothing in them looks at what lies before
a word. So encoding piece by piece is encoding the whole. For any other split, or with a normalizer that may join
characters, there is no sure cut. Finding a cut is one search of a regular expression, some milliseconds a MiB.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

PIECE_CHARS = 2**18
"""A piece ends at the first sure cut after as many characters."""

Rule = Literal["", "space", "sign"]
"""After a letter: no sure cut; before a space; before a space or another sign of SIGNS."""

LETTERS = r"A-Za-z\u0410-\u0418\u041a-\u0438\u043a-\u044f\u05d0-\u05ea\u0915-\u0928\u4e00-\u9fa5\uac00-\ud7a3"
"""Letters for every version of Unicode, of which no normal form makes a mark: Latin, Cyrillic, Hebrew, Devanagari, Han,
Hangul."""
SIGNS = r" \n\t.,;:!?()\u3002\u3001"

PATTERNS: dict[Rule, re.Pattern[str]] = {
    "space": re.compile(f"(?<=[{LETTERS}])(?= )"),
    "sign": re.compile(f"(?<=[{LETTERS}])(?=[{SIGNS}])"),
}

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
O200K_WORDS = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
)
SPLITS = frozenset(
    {
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        *(
            CONTRACTIONS + rf"|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+"
            r"|\s+(?!\S)|\s+"
            for digits in (r"\p{N}{1,3}", r"\p{N}")
        ),
        *(
            "|".join(words + ends for words in O200K_WORDS)
            + rf"|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            for ends in ("", CONTRACTIONS + "?")
            for digits in (r"\p{N}{1,3}", r"\p{N}")
        ),
        r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
        r"""| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+""",
    }
)
"""Of GPT-2, of cl100k, Llama 3 and Qwen 2, of o200k and Tekken, of DeepSeek: each ends a run of letters at any sign."""

RUNS = frozenset({r"\p{N}{1,3}", r"\p{N}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"})
"""Splits that cut out runs of one class and leave all else as it is; they may come first."""


def rule_of(definition: Mapping[str, Any]) -> Rule:
    """The sure cuts of a tokenizer, given as the content of its tokenizer.json."""
    normalizer = definition.get("normalizer") or {}
    if not all(part.get("type") == "NFC" for part in _parts(normalizer, "normalizers")):
        return ""
    rule = _rule_of_splits(_parts(definition.get("pre_tokenizer") or {}, "pretokenizers"))
    if rule and any(_may_lie_across(token, rule=rule) for token in definition.get("added_tokens") or ()):
        return ""
    return rule


def pieces(text: str, *, rule: Rule) -> Iterator[str]:
    """Cuts a text at sure places into pieces of at least PIECE_CHARS, longer where there is no cut; in order.

    Without a rule, the text itself.
    """
    first = 0
    while rule and (found := PATTERNS[rule].search(text, first + PIECE_CHARS)):
        yield text[first : found.start()]
        first = found.start()
    yield text[first:] if first else text


def _rule_of_splits(parts: list[Mapping[str, Any]]) -> Rule:
    """Of pre-tokenizers that follow one another: the first that surely cuts, if none before it makes that unsure."""
    for number, part in enumerate(parts):
        if rule := _rule_of_split(part):
            return rule if all(map(_is_local, parts[number + 1 :])) else ""
        if not _only_cuts_runs(part):
            return ""
    return ""


def _rule_of_split(part: Mapping[str, Any]) -> Rule:
    match part:
        case {"type": "ByteLevel", "use_regex": True, "add_prefix_space": add}:
            return "space" if add else "sign"
        case {"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": invert}:
            return "sign" if regex in SPLITS and (behavior, invert) in _AS_MATCHED else ""
        case {"type": "Whitespace"}:
            return "sign"
        case {"type": "WhitespaceSplit" | "BertPreTokenizer"}:
            return "space"
        case {"type": "Metaspace", "split": True, "replacement": "▁"}:
            return "space"
    return ""


_AS_MATCHED = {("Isolated", False), ("Removed", True)}
"""How a Split gives each match as a word of its own."""


def _only_cuts_runs(part: Mapping[str, Any]) -> bool:
    match part:
        case {"type": "Digits"} | {"type": "Punctuation", "behavior": "Isolated"}:
            return True
        case {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}:
            return regex in RUNS
    return False


def _is_local(part: Mapping[str, Any]) -> bool:
    """Whether it sees a word only, not the word's place in the text."""
    return part.get("type") != "Metaspace" or part.get("prepend_scheme") in ("always", "never")


def _may_lie_across(token: Mapping[str, Any], *, rule: Rule) -> bool:
    """Whether an added token, which is found before text is split, may reach over a cut or look over it."""
    takes_more = not token.get("special") and any(token.get(key) for key in ("lstrip", "rstrip", "single_word"))
    return bool(takes_more or PATTERNS[rule].search(str(token.get("content"))))


def _parts(definition: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    """A definition as the list that it is a sequence of; none for an empty one."""
    if not definition:
        return []
    if definition.get("type") != "Sequence":
        return [definition]
    return [part for inner in definition.get(key) or () for part in _parts(inner, key)]
