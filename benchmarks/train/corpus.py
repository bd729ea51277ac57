"""The text of a comparison: one split and one tokenizer, made once, and the same token arrays for every system.

`docstrings` is the documentation inside the installed packages, as `tessera sample` takes it, without Spark. Else a
folder of text files, one document each, or a Parquet file with a column `text`. Documents are taken once, in the order
of their SHA-256, and one in twenty is held out by it. Reading the docstrings takes a minute on two cores, the tokenizer
a second a MiB of its sample, tokens a second a million. What this costs counts for no system. A corpus
is made once for a source and sizes: where the source has changed, work in another folder.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

DOCSTRINGS = "docstrings"
MIN_CHARS = 20
HELDOUT_ONE_IN = 20
TOKENIZER_BYTES = 4 * 2**20
ENCODE_AT_ONCE = 4096
TEXT_SUFFIXES = (".txt", ".md", ".rst")

# Shapes: D = documents, N = their tokens.


@dataclass(frozen=True)
class Split:
    """Documents as tokens, the end token after each."""

    tokens_N: NDArray[np.uint16]
    lengths_D: NDArray[np.int64]
    """Tokens of each document, its end token counted."""
    keys_D2: NDArray[np.uint64]
    """Of each document: the first 16 bytes of its text's SHA-256."""
    text_bytes: int

    def documents(self) -> list[NDArray[np.uint16]]:
        return np.split(self.tokens_N, np.cumsum(self.lengths_D)[:-1])


@dataclass(frozen=True)
class Corpus:
    """A corpus that was written; `name` is a hash of its texts and of what is said below."""

    folder: Path
    name: str
    vocab_size: int
    end_id: int

    @property
    def tokenizer(self) -> Path:
        return self.folder / "tokenizer"

    def split(self, name: str) -> Split:
        """`train` or `heldout`, memory-mapped."""
        arrays = {part: np.load(self.folder / f"{name}.{part}.npy", mmap_mode="r") for part in ("tokens", "lengths")}
        keys = np.load(self.folder / f"{name}.keys.npy", mmap_mode="r")
        return Split(arrays["tokens"], arrays["lengths"], keys, describe(self.folder)[name]["text_bytes"])


def describe(folder: Path) -> dict[str, object]:
    """What a corpus says of itself: source, sizes, tokenizer."""
    return json.loads((folder / "corpus.json").read_text(encoding="utf-8"))


def open_corpus(folder: Path) -> Corpus:
    """A corpus that was written; needs numpy only, so that other systems' environments can open it."""
    said = describe(folder)
    return Corpus(folder=folder, name=said["name"], vocab_size=said["vocab_size"], end_id=said["end_id"])


def make(source: str, *, to: Path, vocab_size: int, heldout_bytes: int, train_bytes: int | None = None) -> Corpus:
    """Writes the corpus of `source` below `to`, or opens it: it is made once.

    Args:
        source: `docstrings`, a folder of text files, or a Parquet file with a column `text`.
        heldout_bytes: of text that is held out, at most; the rest of the held-out documents is used by nobody.
        train_bytes: of text that is trained on, at most; None takes all.

    Raises:
        ValueError: the source has too few documents.
    """
    wanted = [source, vocab_size, heldout_bytes, train_bytes]
    folder = to / f"corpus-{hashlib.sha256(json.dumps(wanted).encode()).hexdigest()[:12]}"
    if not (folder / "corpus.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        _write(_by_hash(read(source)), folder=folder, source=source, vocab_size=vocab_size,
               limits={"train": train_bytes, "heldout": heldout_bytes})  # fmt: skip
    return open_corpus(folder)


def read(source: str) -> Iterator[str]:
    """The texts of a source, in no particular order."""
    if source == DOCSTRINGS:
        from tessera.prepare import sample
        from tessera.prepare.settings import SampleSettings

        yield from (str(row["text"]) for row in sample.read_docstrings(sample.installed(SampleSettings())))
    elif Path(source).is_dir():
        files = sorted(path for path in Path(source).rglob("*") if path.suffix in TEXT_SUFFIXES and path.is_file())
        yield from (path.read_text(encoding="utf-8", errors="replace") for path in files)
    else:
        import pyarrow.parquet as pq

        for batch in pq.ParquetFile(source).iter_batches(columns=["text"]):
            yield from (text for text in batch["text"].to_pylist() if text is not None)


def _by_hash(texts: Iterator[str]) -> dict[bytes, str]:
    """Each text once, by SHA-256, ascending."""
    found = {hashlib.sha256(text.encode("utf-8", "replace")).digest(): text for text in texts if len(text) >= MIN_CHARS}
    return dict(sorted(found.items()))


def _write(
    texts: Mapping[bytes, str], *, folder: Path, source: str, vocab_size: int, limits: Mapping[str, int | None]
) -> None:
    from tessera.shard import tokenizer

    heldout = {key: text for key, text in texts.items() if key[-1] * 256 + key[-2] < 65536 // HELDOUT_ONE_IN}
    train = {key: text for key, text in texts.items() if key not in heldout}
    if min(len(heldout), len(train)) < 10:
        raise ValueError(f"{source} has {len(train)} documents to train on and {len(heldout)} held out; give more text")
    parts = {"train": _up_to(train, limits["train"]), "heldout": _up_to(heldout, limits["heldout"])}
    sample = _up_to(parts["train"], TOKENIZER_BYTES).values()
    tokenizer.train(sample, folder=folder / "tokenizer", vocab_size=vocab_size)
    loaded = tokenizer.load(folder / "tokenizer")
    said: dict[str, object] = {"source": source, "vocab_size": loaded.vocab_size, "end_id": loaded.end_id}
    digest = hashlib.sha256(tokenizer.identity(folder / "tokenizer").encode())
    for name, part in parts.items():
        split = _encode(part, loaded)
        for kind, array in (("tokens", split.tokens_N), ("lengths", split.lengths_D), ("keys", split.keys_D2)):
            np.save(folder / f"{name}.{kind}.npy", array)
        digest.update(split.keys_D2.tobytes())
        said[name] = {"documents": len(part), "tokens": len(split.tokens_N), "text_bytes": split.text_bytes}
    said["name"] = digest.hexdigest()[:12]
    partial = folder / ".corpus.json"
    partial.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    partial.replace(folder / "corpus.json")


def _up_to(texts: Mapping[bytes, str], num_bytes: int | None) -> dict[bytes, str]:
    """The first of `texts`, until they have this many bytes."""
    taken, total = {}, 0
    for key, text in texts.items():
        if num_bytes is not None and total >= num_bytes:
            break
        taken[key] = text
        total += len(text.encode("utf-8", "replace"))
    return taken


def _encode(texts: Mapping[bytes, str], tokenizer: "object") -> Split:
    assert tokenizer.vocab_size < 2**16
    rows, documents = list(texts.values()), []
    for low in range(0, len(rows), ENCODE_AT_ONCE):
        for ids in tokenizer.encode_batch(rows[low : low + ENCODE_AT_ONCE]):
            documents.append(np.array([*ids, tokenizer.end_id], np.uint16))
    keys = np.frombuffer(b"".join(key[:16] for key in texts), "<u8").reshape(-1, 2)
    text_bytes = sum(len(text.encode("utf-8", "replace")) for text in rows)
    return Split(np.concatenate(documents), np.array([len(one) for one in documents]), keys, text_bytes)
