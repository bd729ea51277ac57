"""One attempt of a Spark task, in a process of its own. Arguments: the set's folder, and one with what Spark gives it.

Tells on stdout that it is ready, begins at a line on stdin, and prints the spans that it hands back.
"""

import json
import pickle
import sys
from pathlib import Path

import pyarrow as pa

from tessera.shard.write import cells


def main() -> None:
    folder, given = sys.argv[1], Path(sys.argv[2])
    recipe = pickle.loads((given / "recipe").read_bytes())
    batches = pa.ipc.open_file(given / "tokenized").read_all().to_batches(max_chunksize=70)
    print("ready", flush=True)
    sys.stdin.readline()
    written = pa.Table.from_batches(list(cells.write_cells(iter(batches), recipe=recipe, folder=folder)))
    print(json.dumps(written.to_pylist()))


if __name__ == "__main__":
    main()
