"""`tessera train --resume RUN`: the settings of a run, with what the user changes, and the run itself as the start."""

import json
from collections.abc import Sequence

from tessera.config import Layer, load, parse_set
from tessera.errors import ConfigError
from tessera.home import Home
from tessera.shard.manifest import read_record
from tessera.shard.run_manifest import SetInfo, read_run_manifest
from tessera.train.run import RunFolder, named
from tessera.train.settings import TrainSettings


def assignments(home: Home, *, run: str, changes: Sequence[str]) -> list[str]:
    """All as for --set. A run that is not finished and of which nothing is changed is simply gone on with.

    Args:
        run: RUN or RUN@STEP, as `train.from` takes it.
        changes: of the user, as for --set.

    Raises:
        ConfigError: there is no such run, or a change is none of a key that there is.
    """
    name, _, step = run.partition("@")
    folder = RunFolder(home.runs / name)
    if "/" in name or not folder.spec.is_file():
        raise ConfigError(f"--resume {run}: there is no such run in {home.runs}; there are: {named(home)}")
    spec = folder.read_spec()
    kept = spec.settings.model_dump(mode="json")
    given = [Layer(layer.origin, layer.values["train"]) for layer in parse_set(changes) if "train" in layer.values]
    changed = load(TrainSettings, layers=[Layer("run.json", kept), *given]).identity() != spec.settings.identity()
    info = SetInfo.from_metadata(read_run_manifest(folder.manifest).schema.metadata)
    further = changed or bool(step) or folder.read_result() is not None
    if further:
        kept |= {"from": run, "only_new": False}  # of its own order; what it left out is left out again
    elif info.version != (newest := read_record(home, name=info.name).manifest.version):
        raise ConfigError(
            f"--resume {run}: it is trained on {info.name}@{info.version}, and the set is at version {newest} now; to "
            "go on with what was added since: --set train.only_new=true"
        )
    own = {"train": kept, "shard.name": info.name, "shard.block_shards": spec.block_shards}
    return [*(f"{key}={json.dumps(value)}" for key, value in own.items()), *changes]
