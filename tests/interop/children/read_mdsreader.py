"""Runs where mosaicml-streaming is: all samples of folders, in order, by MDSReader alone, a shard after another.

argv: the result's file, then folders. The result: pickle {folder: [sample]}.
"""

import json
import pickle
import sys
from pathlib import Path

from streaming.base.format import reader_from_json

found = {}
for folder in sys.argv[2:]:
    shards = json.loads((Path(folder) / "index.json").read_text())["shards"]
    readers = [reader_from_json(folder, "", shard) for shard in shards]
    for reader in readers:
        reader.validate(allow_unsafe_types=False)
    found[folder] = [reader[number] for reader in readers for number in range(reader.size)]
Path(sys.argv[1]).write_bytes(pickle.dumps(found))
