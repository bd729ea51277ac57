"""A table as batches of columns through petastorm, without sharding: for a notebook or a small job."""

from tessera.shard.read.petastorm.columns import Batch
from tessera.shard.read.petastorm.converter import Converter, make_spark_converter
from tessera.shard.read.petastorm.garbage import sweep
from tessera.shard.read.petastorm.reader import BatchReader, batch_reader, torch_loader

__all__ = ["Batch", "BatchReader", "Converter", "batch_reader", "make_spark_converter", "sweep", "torch_loader"]
