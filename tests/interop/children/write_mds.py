"""Runs where mosaicml-streaming is: writes folders as asked. stdin: pickle {name: (columns, samples, options)}."""

import pickle
import sys

from streaming import MDSWriter

for name, (columns, samples, options) in pickle.load(sys.stdin.buffer).items():
    with MDSWriter(out=f"{sys.argv[1]}/{name}", columns=columns, **options) as writer:
        for sample in samples:
            writer.write(sample)
