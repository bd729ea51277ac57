"""What a model gives away of private data: canaries, extraction, emission. Only what the settings ask for, only counts.

Costs: exposure a forward over `candidates` texts for each canary, extraction and emission an answer for each text.
"""

from collections.abc import Callable

from tessera.evaluate import emission, exposure, extraction
from tessera.evaluate.settings import SafetySettings
from tessera.evaluate.subject import Subject
from tessera.home import Home
from tessera.lineage import TableVersion
from tessera.progress import Tell, silent

EXPOSURE = "exposure_once_above"
"""The mean exposure of canaries planted once, in bits above that of canaries never planted: what the gate limits."""


def measure(
    home: Home, *, subject: Callable[[], Subject], documents: TableVersion, settings: SafetySettings,
    tell: Tell = silent,
) -> dict[str, float]:  # fmt: skip
    """Figures by name; empty where nothing is asked.

    `exposure_N` is the mean of canaries planted N times, in bits, `exposure_correlation` Spearman's with the copies.
    `extracted_SPLIT` is the share of documents that came word for word, `emitted_TYPE` the number of values found.

    Args:
        documents: the table, at its version, that the model was trained on.
    """
    found: dict[str, float] = {}
    if settings.canaries is not None:
        tell("canaries")
        report = exposure.measure(subject(), settings=settings.canaries, home=home, documents=documents)
        found |= {f"exposure_{level.repeats}": level.mean for level in report.levels}
        found |= {f"exposure_{level.repeats}_low": level.low for level in report.levels}
        found |= {f"exposure_{level.repeats}_high": level.high for level in report.levels}
        found["exposure_correlation"] = report.correlation.value
        if report.once_above is not None:
            found[EXPOSURE] = report.once_above
    if settings.extraction:
        for split in ("train", "heldout"):
            tell(f"extraction, {split}")
            extracted = extraction.measure(
                subject(), n=settings.extraction, home=home, documents=documents, split=split
            )  # fmt: skip
            found |= {f"extracted_{split}": extracted.share, f"extracted_{split}_of": extracted.n}
    if settings.emission:
        tell("emission")
        emitted = emission.measure(subject(), n=settings.emission)
        found |= {f"emitted_{kind}": count for kind, count in emitted.by_type.items()}
        found |= {"emitted_texts": emitted.texts, "emitted_of": emitted.n}
    return {name: value for name, value in found.items() if value == value}  # a correlation may be no number
