"""Fixtures of the whole suite: one home a test, one Spark session a run."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tessera import failpoints
from tessera import spark as spark_module
from tessera.home import Home
from tessera.spark import SparkSettings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture(autouse=True)
def failpoints_count_anew() -> None:
    """Each test passes a failpoint for the first time."""
    failpoints._passed.clear()


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[SparkSession]":
    """A local session whose tasks may fail and be tried again: local[2,4]."""
    home = Home(tmp_path_factory.mktemp("spark"))
    settings = SparkSettings(master="local[2,4]", driver_memory="2g", conf={"spark.sql.shuffle.partitions": "3"})
    yield spark_module.session(settings, home=home)
    spark_module.stop()
