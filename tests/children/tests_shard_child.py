"""Writes a set in a process with a Spark session of its own, to be killed. Arguments: home, documents version."""

import sys
from pathlib import Path

from tessera import spark
from tessera.home import Home
from tessera.lineage import TableVersion
from tessera.shard.settings import ShardSettings
from tessera.shard.write.shard_set import write_shards
from tessera.spark import SparkSettings

SETTINGS = {
    "name": "docs",
    "seq_len": 64,
    "shard_bytes": 2**16,
    "bucket_bytes": 12_000,
    "tokenizer": {"vocab_size": 300},
}


def main() -> None:
    home = Home(Path(sys.argv[1]))
    session = spark.session(SparkSettings(master="local[2]", driver_memory="1g"), home=home)
    documents = TableVersion(name="documents", path="tables/documents", version=int(sys.argv[2]))
    settings = ShardSettings.model_validate(SETTINGS)
    print(write_shards(session, documents=documents, settings=settings, fingerprint="f" * 64, home=home).to_json())


if __name__ == "__main__":
    main()
