"""Runs where mosaicml-streaming is: all samples of folders, in order, by StreamingDataset, hashes compared.

argv: the result's file, then folders. The result: pickle {folder: [sample]}.
"""

import pickle
import sys
from pathlib import Path

from streaming import StreamingDataset
from streaming.base.util import clean_stale_shared_memory

found = {}
for folder in sys.argv[2:]:
    clean_stale_shared_memory()
    dataset = StreamingDataset(local=folder, shuffle=False, batch_size=1, validate_hash="sha256")
    found[folder] = [dataset[number] for number in range(len(dataset))]
Path(sys.argv[1]).write_bytes(pickle.dumps(found))
