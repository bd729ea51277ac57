"""What tells runs apart: the settings that differ, by short names, and without anybody's password."""

import re
from collections.abc import Mapping, Sequence

SECTIONS = ("sample.", "prepare.", "shard.", "train.", "evaluate.")
"""Parameters that can change a result; the rest says where things lie and how much is shown."""
TAGS = ("tessera.shard_set", "tessera.code")
"""Tags that belong to the recipe."""

MASK = "***"
_PASSWORDS = (
    (re.compile(r"(://)[^\s/?#@]+@"), rf"\1{MASK}@"),
    (re.compile(r"(://[^\s/?#@:]*:)[^\s@]+@"), rf"\1{MASK}@"),
    (
        re.compile(
            r"(?i)((?:password|passwd|pwd|secret|token|sig|signature|credential|account_?key|access_?key|api_?key)=)"
            r"[^\s&;,'\"]+"
        ),
        rf"\1{MASK}",
    ),
)


def mask(text: str) -> str:
    """`text` without what looks like a password: the user part of an address, and values of keys such as `token=`."""
    for pattern, replacement in _PASSWORDS:
        text = pattern.sub(replacement, text)
    return text


def recipe_of(params: Mapping[str, str], *, tags: Mapping[str, str]) -> dict[str, str]:
    """The settings of a run that can change its result, and the tags that do."""
    settings = {key: value for key, value in params.items() if key.startswith(SECTIONS)}
    return settings | {key: tags[key] for key in TAGS if key in tags}


def differing(recipes: Sequence[Mapping[str, str]]) -> list[str]:
    """The settings of which two runs have two values, sorted.

    A setting that a run lacks, for it was made before the setting, differs only when other runs differ in it.
    """
    values: dict[str, set[str]] = {}
    for recipe in recipes:
        for key, value in recipe.items():
            values.setdefault(key, set()).add(value)
    return sorted(key for key, found in values.items() if len(found) > 1)


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Each key's shortest end, at dots, that no other key of these ends in: `train.model.width` -> `width`."""
    return {key: next(end for end in _ends(key) if _alone(end, key=key, keys=keys)) for key in keys}


def _ends(key: str) -> list[str]:
    parts = key.split(".")
    return [".".join(parts[-length:]) for length in range(1, len(parts) + 1)]


def _alone(end: str, *, key: str, keys: Sequence[str]) -> bool:
    return end == key or not any(other != key and f".{other}".endswith(f".{end}") for other in keys)
