"""The model card: what a model was made of, how, what it can do and cannot, in Markdown. No row text.

After Mitchell et al. 2019. All of it comes from records; what was not measured is listed as such. Energy is an estimate
from processor time, and says so: nothing here reads a meter.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tessera.evaluate.compare import Comparison
from tessera.lineage import EvaluateRecord, PrepareRecord, TaskScore, TrainRecord
from tessera.train.run import RunResult, RunSpec

CORE_WATTS = 10.0
"""Of a busy processor core with its share of the machine: an assumption."""
NOT_ASKED = {
    "exposure_0": "how much it remembers of single rows (canaries)",
    "extracted_train": "whether training text comes out word for word (extraction)",
    "emitted_of": "whether it writes personal data by itself (emission)",
}
"""A figure of `EvaluateRecord.safety` -> what is not known without it."""


@dataclass(frozen=True)
class Card:
    """The records that a card is made of."""

    evaluate: EvaluateRecord
    train: TrainRecord
    prepare: PrepareRecord
    spec: RunSpec
    result: RunResult
    comparison: Comparison | None = None


def to_markdown(card: Card) -> str:
    """The card's text."""
    parts = (
        _head(card),
        _data(card),
        _recipe(card),
        _scores(card),
        _gate(card),
        _safety(card),
        _limits(card),
        _cost(card),
    )
    return "\n".join(line for part in parts for line in (*part, "")).rstrip() + "\n"


def _head(card: Card) -> Iterator[str]:
    train = card.train
    yield f"# Model card: {card.spec.run}"
    yield ""
    yield f"A causal language model of {train.parameters:,} parameters, weights `{train.weights_sha256[:16]}`,"
    yield f"evaluated {card.evaluate.created[:19]} UTC by code `{card.evaluate.code}`."


def _data(card: Card) -> Iterator[str]:
    prepare, train = card.prepare, card.train
    yield "## Data"
    yield ""
    yield from _table(
        ("what", "version"),
        [
            *((f"source {table.name}", f"{table.path}@{table.version}") for table in prepare.inputs),
            ("documents", f"{prepare.table.path}@{prepare.table.version}"),
            ("shard set", f"{train.shard_set.name}@{train.shard_set.version}"),
            ("tokenizer", f"{train.tokenizer.sha256[:16]}, {train.tokenizer.vocab_size:,} tokens"),
        ],
    )
    yield ""
    splits = ", ".join(f"{count:,} {split}" for split, count in sorted(prepare.splits.items()))
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in prepare.dropped.items()) or "none"
    yield f"{prepare.documents:,} documents ({splits}) of {prepare.rows:,} rows; dropped: {dropped}."
    for source, purposes in prepare.purposes.items():
        yield f"Declared purposes of {source}: {', '.join(purposes) or 'none declared'}."


def _recipe(card: Card) -> Iterator[str]:
    settings, train = card.spec.settings, card.train
    yield "## Recipe"
    yield ""
    rows = [
        ("steps", f"{train.steps:,} of {settings.batch_size} sequences"),
        ("tokens", f"{train.train_tokens:,}"),
        ("ranks", f"{train.ranks}"),
        ("seed", f"{settings.seed}"),
        ("precision", settings.precision),
        ("model", _flat(settings.model.model_dump(mode="json", exclude_none=True))),
    ]
    methods = settings.methods.model_dump(mode="json", exclude_none=True)
    rows += [(f"method {name}", _flat(values)) for name, values in methods.items()]
    if card.spec.origin is not None:
        rows.append(("starts from", card.spec.origin.given))
    yield from _table(("what", "value"), rows)


def _scores(card: Card) -> Iterator[str]:
    record = card.evaluate
    yield "## Scores"
    yield ""
    before = card.train.bits_per_byte_before
    yield f"Bits per byte of all held-out text: {record.bits_per_byte:.4f}; before training {before:.4f}."
    baselines = ", ".join(
        f"{name} {bits:.4f}" for name, bits in sorted(record.baselines.items(), key=lambda one: one[1])
    )
    yield f"Baselines on the same text: {baselines}."
    if record.scores:
        yield ""
        names = ("task", "metric", "score", "95 % interval", "chance", "items", "left out", "in training text")
        yield from _table(names, [_score(name, score, record) for name, score in record.scores.items()])
    for name, why in record.failures.items():
        yield f"\n{name} has no score: {why}."
    if record.gauntlet:
        shown = (
            f"{name} {'incomplete' if value is None else f'{value:.3f}'}" for name, value in record.gauntlet.items()
        )
        yield f"\nAbove chance, 1 being everything right: {', '.join(shown)}."
    if card.comparison is not None:
        yield f"\n{card.comparison.sentence()}."


def _score(name: str, score: TaskScore, record: EvaluateRecord) -> Sequence[str]:
    chance = f"{score.chance:.3f}" if score.chance else ""
    if score.chance and score.low <= score.chance:
        chance += ", not above"
    return (
        name, score.metric, f"{score.value:.4f}", f"{score.low:.4f} to {score.high:.4f}", chance, f"{score.n:,}",
        f"{score.left_out:,}", f"{record.contaminated.get(name, 0):,}",
    )  # fmt: skip


def _gate(card: Card) -> Iterator[str]:
    yield "## Gate"
    yield ""
    yield f"{'Passed' if card.evaluate.passed else 'Did not pass'}:"
    yield ""
    yield from (f"- {reason}" for reason in card.evaluate.reasons)


def _safety(card: Card) -> Iterator[str]:
    yield "## Private data"
    yield ""
    if not card.evaluate.safety:
        yield "Not measured."
        return
    yield from _table(("figure", "value"), [(name, f"{value:g}") for name, value in card.evaluate.safety.items()])


def _limits(card: Card) -> Iterator[str]:
    record = card.evaluate
    yield "## Limits"
    yield ""
    yield "- Scores hold for text like the tables above; nothing is known of other languages, subjects or uses."
    yield "- It writes what is likely, not what is true. Nothing keeps it from harmful or private text."
    below = [name for name, score in record.scores.items() if score.chance and score.low <= score.chance]
    if below:
        yield f"- Not above chance: {', '.join(below)}."
    if known := [f"{name} ({count:,})" for name, count in record.contaminated.items() if count]:
        yield f"- Items whose text stands in the training split, and may be known by heart: {', '.join(known)}."
    for figure, what in NOT_ASKED.items():
        if figure not in record.safety:
            yield f"- Not measured: {what}."
    if record.latency_ms is None:
        yield "- Not measured: time to a next token."
    if card.comparison is None:
        yield "- Not compared with another model."


def _cost(card: Card) -> Iterator[str]:
    seconds, ranks = card.result.seconds, card.train.ranks
    threads = card.spec.settings.threads or 1
    hours = seconds * ranks * threads / 3600
    yield "## Time and energy"
    yield ""
    yield f"Training took {seconds:,.0f} s on {ranks} rank{'s' if ranks > 1 else ''} ({card.spec.settings.device})."
    yield (
        f"On processors that is about {hours * CORE_WATTS:.1f} Wh, an estimate: {hours:.2f} core hours at an assumed "
        f"{CORE_WATTS:g} W a core. Preparing, evaluating and failed attempts are not in it."
    )
    if card.evaluate.latency_ms is not None:
        yield f"A next token takes {card.evaluate.latency_ms:.1f} ms, one prompt at a time, where it was evaluated."


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    for row in (names, ["---"] * len(names), *rows):
        yield "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |"


def _flat(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
