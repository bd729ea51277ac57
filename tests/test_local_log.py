"""What a deletion leaves in the log of someone else's table: statistics, in commits and in checkpoints."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from tessera.forgetting import local_log
from tessera.forgetting.needles import search_for, stretches
from tessera.forgetting.search import search

SECRET = "a quiet marmot counted 14 grey herons by the old lock"
NEEDLES = search_for(stretches(0, text=SECRET))


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Three versions, a checkpoint at 1 with the text in its statistics; version 2 is without the row."""
    path = tmp_path / "table"
    write_deltalake(path, pa.table({"n": [1], "text": [SECRET]}))
    write_deltalake(path, pa.table({"n": [2], "text": ["the other row"]}), mode="append")
    DeltaTable(path).create_checkpoint()
    DeltaTable(path).delete("n = 1")
    return path


def test_nothing_is_left_in_commits_and_checkpoints_and_the_table_is_what_it_was(table: Path) -> None:
    holding = search([table], needles=NEEDLES).files
    checkpoint = table / "_delta_log" / f"{1:020}.checkpoint.parquet"
    assert {checkpoint, checkpoint.with_name(f"{0:020}.json")} < set(holding)
    before = pq.read_table(checkpoint).drop_columns("add"), pq.read_schema(checkpoint)

    live = {Path(name).name for name in DeltaTable(table).file_uris()}
    local_log.remove_dead(table, holding=holding, live=live)
    local_log.scrub(table, holding=holding, needles=NEEDLES)

    assert search([table], needles=NEEDLES).files == {}
    assert (pq.read_table(checkpoint).drop_columns("add"), pq.read_schema(checkpoint)) == before
    assert len(DeltaTable(table, version=1).file_uris()) == 2
    assert DeltaTable(table).to_pyarrow_table().to_pydict() == {"n": [2], "text": ["the other row"]}


def test_a_checkpoint_alone_still_gives_the_table(table: Path) -> None:
    local_log.scrub(table, holding=search([table], needles=NEEDLES).files, needles=NEEDLES)
    for version in (0, 1):
        (table / "_delta_log" / f"{version:020}.json").unlink()

    assert DeltaTable(table).to_pyarrow_table().to_pydict() == {"n": [2], "text": ["the other row"]}
