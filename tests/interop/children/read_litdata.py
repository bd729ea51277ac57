"""Runs where LitData is: all samples of folders, in order, by its StreamingDataset, which reads compressed MDS.

argv: the result's file, then folders. The result: pickle {folder: [sample]}. LitData 0.2.76 knows no arrays of MDS, so
it is told how to read them, by numpy alone; index, files, compression and samples are read by its own code.
"""

import pickle
import sys
from pathlib import Path

import numpy as np
from litdata import StreamingDataset
from litdata.streaming.item_loader import PyTreeLoader
from litdata.streaming.serializers import Serializer


class Array(Serializer):
    """`ndarray:<dtype>`, of one dimension, with or without a fixed size."""

    def setup(self, data_format: str) -> None:
        _, self.dtype, *self.shape = data_format.split(":")

    def serialize(self, data):
        raise NotImplementedError

    def can_serialize(self, data) -> bool:
        return False

    def deserialize(self, data: bytes) -> np.ndarray:
        head = 0 if self.shape else 1 + (1, 2, 4, 8)[data[0] & 3]
        return np.frombuffer(data, self.dtype, offset=head)


class Loader(PyTreeLoader):
    """Takes encodings of three parts, which LitData's own would not split."""

    def _data_format_to_key(self, data_format: str) -> str:
        return data_format.partition(":")[0]


found = {}
for folder in sys.argv[2:]:
    dataset = StreamingDataset(folder, shuffle=False, serializers={"ndarray": Array()}, item_loader=Loader())
    found[folder] = [dataset[number] for number in range(len(dataset))]
Path(sys.argv[1]).write_bytes(pickle.dumps(found))
