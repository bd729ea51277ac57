"""The sample ledger: which stretches of which orders a run was trained on, those of the runs before it included.

Nothing is written while a run trains: a stretch is known from run.json, the number of steps and the batches that were
skipped, and the order gives back its samples.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tessera.shard.read.order import Order
from tessera.shard.run_manifest import SetInfo, read_run_manifest
from tessera.train.run import RunFolder, RunPoint

Int = NDArray[np.int64]


@dataclass(frozen=True)
class Segment:
    """Batches `first` to `last` - 1 of one order, less those skipped."""

    set_name: str
    set_version: int
    files: tuple[str, ...]
    """Training shards in their order."""
    order: Order
    batch_size: int
    first: int
    last: int
    skipped: tuple[int, ...]
    """In this order's numbers."""
    first_step: int
    """The step of batch `first`, from 1."""

    def steps_of(self, batches: Int) -> Int:
        """The steps, from 1, that took these batches, none of them skipped."""
        return self.first_step + batches - self.first - np.searchsorted(sorted(self.skipped), batches)


def segments(folder: RunFolder, *, steps: int) -> list[Segment]:
    """Of a run that has done so many steps, oldest first.

    Raises:
        TrainingFailed, ShardSetError: a run folder that it names cannot be read.
    """
    return _until(end(folder, steps=steps), folder=folder)


def end(folder: RunFolder, *, steps: int) -> RunPoint:
    """The moment at which a run has done so many steps, its last."""
    origin = folder.read_spec().origin
    batch = steps + len(folder.read_skipped()) - (origin.offset if origin else 0)
    return RunPoint(run=folder.root.name, step=steps, batch=batch)


def _until(end: RunPoint, *, folder: RunFolder) -> list[Segment]:
    spec = folder.read_spec()
    point = spec.origin.point if spec.origin else None
    offset = spec.origin.offset if spec.origin else 0
    before: list[Segment] = []
    first, first_step = 0, 1
    if earlier := spec.origin and (spec.origin.point or spec.origin.before):
        before = _until(earlier, folder=RunFolder(folder.root.with_name(earlier.run)))
    if spec.origin and point is not None:
        first, first_step = (0 if spec.origin.new_order else point.batch), point.step + 1
    table = read_run_manifest(folder.manifest)
    info = SetInfo.from_metadata(table.schema.metadata)
    rows = [row for row in table.select(["split", "file", "samples"]).to_pylist() if row["split"] == "train"]
    own = Segment(
        set_name=info.name, set_version=info.version, files=tuple(row["file"] for row in rows),
        order=Order([row["samples"] for row in rows], seed=spec.settings.seed, block_shards=spec.block_shards),
        batch_size=spec.settings.batch_size, first=first, last=end.batch, first_step=first_step,
        skipped=tuple(batch - offset for batch in folder.read_skipped() if first <= batch - offset < end.batch),
    )  # fmt: skip
    return [*before, own]
