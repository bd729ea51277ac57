"""The whole configuration: a section a room, and where its layers lie. Imports no heavy library."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tessera.config import Layer, Section, load, parse_set, read_yaml
from tessera.errors import ConfigError
from tessera.evaluate.settings import EvaluateSettings
from tessera.explore.settings import ExploreSettings
from tessera.prepare.settings import PrepareSettings, SampleSettings
from tessera.serve.score_settings import ScoreSettings
from tessera.serve.settings import ServeSettings
from tessera.shard.settings import ShardSettings
from tessera.spark import SparkSettings
from tessera.tracking import TrackingSettings
from tessera.train.settings import TrainSettings

TARGETS = ("local", "dev", "staging", "prod")


class Settings(Section):
    """The whole configuration, a section a room."""

    sample: SampleSettings = SampleSettings()
    prepare: PrepareSettings
    shard: ShardSettings = ShardSettings()
    train: TrainSettings = TrainSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    serve: ServeSettings = ServeSettings()
    score: ScoreSettings = ScoreSettings()
    explore: ExploreSettings = ExploreSettings()
    spark: SparkSettings = SparkSettings()
    tracking: TrackingSettings = TrackingSettings()


def load_settings(target: str, *, assignments: Sequence[str] = (), conf: Path | None = None) -> Settings:
    """base.yaml, the target's overlay and `--set` assignments, validated.

    Raises:
        ConfigError: naming file and key.
    """
    if target not in TARGETS:
        raise ConfigError(f"--target {target}: wanted one of {', '.join(TARGETS)}")
    folder = conf or conf_folder()
    layers: list[Layer] = [read_yaml(folder / "base.yaml")]
    overlay = folder / f"{target}.yaml"
    if overlay.exists():
        layers.append(read_yaml(overlay))
    return load(Settings, layers=[*layers, *parse_set(assignments)])


def conf_folder() -> Path:
    """`TESSERA_CONF`, `./conf`, the source tree's, or the installed one: the first that holds base.yaml."""
    named = os.environ.get("TESSERA_CONF")
    if named:
        return Path(named)
    prefixes = (Path(sys.prefix), *Path(__file__).parents[1:5])  # the last: pip --target, or a prefix of its own
    places = (Path("conf"), Path(__file__).parents[2] / "conf", *(prefix / "share/tessera/conf" for prefix in prefixes))
    for place in places:
        if (place / "base.yaml").is_file():
            return place
    raise ConfigError("no conf/base.yaml was found; name its folder: export TESSERA_CONF=...")
