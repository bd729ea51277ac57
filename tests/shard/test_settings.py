"""Shard settings: names that are safe as folders, and what enters a fingerprint."""

import pytest
from pydantic import ValidationError

from tessera.shard.settings import ShardSettings


@pytest.mark.parametrize("name", ["docs", "docs-2_b", "A", "x" * 64])
def test_a_plain_name_is_taken(name: str) -> None:
    assert ShardSettings(name=name).name == name


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a.b", "-a", "_a", "a b", "a\n", "ä", "x" * 65])
def test_a_name_that_is_no_folder_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="a set's name holds"):
        ShardSettings(name=name)


@pytest.mark.parametrize("changes", [{"seq_len": 8}, {"seq_len": 65537}, {"shard_bytes": 2**32}, {"shard_bytes": 100}])
def test_sizes_outside_the_format_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        ShardSettings.model_validate(changes)


def test_where_a_tokenizer_folder_lies_is_not_identity_and_its_use_is() -> None:
    plain = ShardSettings().identity()
    one, other = (ShardSettings.model_validate({"tokenizer": {"path": path}}).identity() for path in ("/a", "/b"))

    assert one == other != plain
    for field in ("name", "seq_len", "seed", "shard_bytes", "bucket_bytes"):
        changed = {"name": "b"} if field == "name" else {field: 2 * plain[field]}
        assert ShardSettings.model_validate(changed).identity() != plain
    assert ShardSettings.model_validate({"tokenizer": {"vocab_size": 500}}).identity() != plain
