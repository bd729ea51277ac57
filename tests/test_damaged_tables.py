"""Data files of a table that are cut short, changed or gone: the file is named, with what to do."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from tessera import tables
from tessera.errors import SourceError


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:300])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def change(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[:200] = bytes(200)
    data[-4:] = b"XXXX"
    file.write_bytes(bytes(data))


@pytest.mark.parametrize("damage", [cut, empty, change, Path.unlink])
@pytest.mark.parametrize(
    "read", [tables.read, lambda path: tables.query(path, version=0, sql="SELECT sum(n) FROM rows")]
)
def test_a_damaged_data_file_is_named(
    tmp_path: Path, damage: Callable[[Path], None], read: Callable[[Path], object]
) -> None:
    path = tmp_path / "table"
    write_deltalake(path, pa.table({"n": range(500), "text": [f"row {number}" for number in range(500)]}))
    (file,) = path.glob("*.parquet")
    damage(file)

    with pytest.raises(SourceError, match=rf"{file.name} is (not there|no whole Parquet file).*; restore the file"):
        read(path)
