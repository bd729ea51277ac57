"""The pages of an evaluation, in the home's reports: the model card, the comparison with the champion. No row text."""

from pathlib import Path

from tessera.evaluate import card
from tessera.evaluate.card import Card
from tessera.evaluate.compare import Comparison
from tessera.evaluate.compare_page import comparison_page
from tessera.files import write_whole
from tessera.home import Home
from tessera.lineage import EvaluateRecord, PrepareRecord, TrainRecord
from tessera.train.run import RunFolder

CARD, AGAINST = "model-card.md", "against-champion.html"


def write_pages(
    home: Home, *, record: EvaluateRecord, train: TrainRecord, prepare: PrepareRecord, comparison: Comparison | None
) -> list[Path]:
    """Writes what there is to show; each page takes the place of the one before."""
    folder = RunFolder(home.resolve(train.run))
    result = folder.read_result()
    written: list[Path] = []
    if result is not None:
        shown = Card(
            record, train=train, prepare=prepare, spec=folder.read_spec(), result=result, comparison=comparison
        )
        written.append(_write(home.reports / CARD, text=card.to_markdown(shown)))
    if comparison is not None:
        written.append(_write(home.reports / AGAINST, text=comparison_page(comparison)))
    return written


def _write(path: Path, *, text: str) -> Path:
    write_whole(path, text.encode())
    return path
