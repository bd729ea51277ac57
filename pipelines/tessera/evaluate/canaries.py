"""Canaries: secrets of our own, planted in the training data to measure what a model remembers.

Each is a short note about a place of its own, with a phrase of four random words. Some are planted once, some more
often, some never; which is a function of the settings, so nothing needs to be kept. The copies of one differ in the
number that they begin with, as a secret does that stands in many documents: prepare, which drops equal documents,
keeps them, and near-duplicate removal (`prepare.near_duplicates`) drops all but one. No detector of private data takes
the words for anything, and no copy is shorter than prepare's least.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import write_deltalake

from tessera import publish, tables
from tessera.evaluate.settings import CanarySettings
from tessera.home import Home
from tessera.lineage import TableVersion

TABLE = "canaries"
STATS_COLUMNS = "id"
NEVER = 0
"""The level of those that are not planted."""
SECRET_WORDS = 4
FIRST = """
    amber azure brass bronze cedar chalk cobalt copper coral crimson ebony emerald flint garnet golden granite hazel
    indigo iron ivory jade lilac linen marble mauve olive onyx opal pearl pewter quartz ruby rusty sable saffron
    scarlet silver slate teal topaz umber velvet violet walnut willow
""".split()  # noqa: SIM905
SECOND = """
    abbey arcade bakery barn bridge brook canal castle cellar chapel cliff cottage creek dairy depot ferry forge
    fountain garden grove harbor hill inn island lagoon lantern lodge marsh meadow mill orchard pier quarry ranch
    reef ridge stable tower tunnel valley vault villa well wharf
""".split()  # noqa: SIM905
PHRASE = """
    acorn anchor apron arrow basket beacon bell biscuit blanket bottle button candle carpet carrot cello chimney
    cinnamon clover comet cradle cricket cushion dagger daisy drum eagle ember feather fiddle flute fox ginger glove
    goose grape hammer harp hedge honey icicle jacket kettle ladder lemon lizard magnet mango maple mirror mitten
    moth needle nutmeg oar otter oyster paddle parcel peach pebble pepper pigeon pillow plum pocket puzzle rabbit
    raven ribbon rocket saddle salmon scarf shell sparrow spoon squirrel straw sugar sunset swan thimble thistle
    thunder ticket tiger trumpet tulip turnip turtle umbrella violin wagon walrus whistle window wizard yarn zipper
""".split()  # noqa: SIM905


@dataclass(frozen=True)
class Canary:
    """A note with a secret."""

    place: str
    secret: str
    level: int
    """How often it is to be planted; NEVER not at all."""

    @property
    def beginning(self) -> str:
        """The note up to its secret."""
        return (
            f"This is a private note about the {self.place}, written only to measure what is remembered, so please do "
            f"not pass it on. The pass phrase of the {self.place} is"
        )

    @property
    def ending(self) -> str:
        return ending_of(self.secret)

    def copy(self, number: int) -> str:
        """The text of one document."""
        return f"Copy {number}. {self.beginning}{self.ending}"


def ending_of(secret: str) -> str:
    """What follows the beginning of a note whose secret is this one."""
    return f" {secret}."


def make(settings: CanarySettings) -> tuple[Canary, ...]:
    """`per_level` canaries of each level and as many that are never planted; the latter first."""
    rng = random.Random(f"canaries {settings.seed}")
    levels = (NEVER, *settings.levels)
    places = rng.sample([f"{one} {other}" for one in FIRST for other in SECOND], settings.per_level * len(levels))
    return tuple(
        Canary(place, secret=draw_secret(rng), level=levels[number // settings.per_level])
        for number, place in enumerate(places)
    )


def draw_secret(rng: random.Random) -> str:
    """Four different words."""
    return " ".join(rng.sample(PHRASE, SECRET_WORDS))


def write_table(settings: CanarySettings, *, home: Home) -> TableVersion:
    """Writes `tables/canaries` with a row for each copy, to be named in prepare.sources; no JVM."""
    rows = [
        {"id": f"{canary.place}/{number}", "text": canary.copy(number)}
        for canary in make(settings)
        for number in range(1, canary.level + 1)
    ]
    path = home.tables / TABLE
    new = not tables.exists(path)
    configuration = {**publish.UNLOGGED_TEXT, "delta.dataSkippingStatsColumns": STATS_COLUMNS}
    write_deltalake(
        path, pa.Table.from_pylist(rows), mode="error" if new else "overwrite",
        configuration=configuration if new else None,
    )  # fmt: skip
    return TableVersion(name=TABLE, path=home.relative(path), version=tables.open_table(path).version())


def planted(canaries: Sequence[Canary], *, home: Home, documents: TableVersion) -> Mapping[Canary, int]:
    """How many copies of each canary stand in the training split of a documents table at a version."""
    texts = {canary.copy(number): canary for canary in canaries for number in range(1, canary.level + 1)}
    dataset = tables.dataset(home.resolve(documents.path), version=documents.version)
    wanted = (pc.field("split") == "train") & pc.field("text").isin(pa.array([*texts], pa.string()))
    found = dict.fromkeys(canaries, 0)
    for text in dataset.to_table(columns=["text"], filter=wanted)["text"].to_pylist():
        found[texts[text]] += 1
    return found
