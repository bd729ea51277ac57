"""The tokenizer: trained as byte-level BPE on the set's own text, or any local folder; identity by hash of its files.

Needs the `tokenizers` library only: importing transformers would cost every worker ten seconds. Training takes about a
second a MiB of sample on one core; encoding runs at 0.4 to 0.8 million tokens a second and core. The library needs up
to 130 bytes of memory for each character that it is given at once, so long texts are given in pieces (see `cuts`).
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from tessera.errors import TokenizerError
from tessera.lineage import sha256_file, sha256_json
from tessera.shard import cuts

MAX_UNCUT_BYTES = 2**24
"""Text without a sure cut that the tokenizer is given at once: it takes up to 2 GiB for as much."""

END_TOKEN = "<|endoftext|>"
"""End of document of the tokenizers trained here."""

FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "chat_template.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model",
)  # fmt: skip
"""What belongs to a tokenizer; a model folder may hold more."""

SPECIAL_NAMES = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class Definition:
    """All that a worker needs to encode: text, so that it travels with the work and needs no file."""

    tokenizer_json: str
    end_id: int
    vocab_size: int
    """One more than the largest id."""
    cut_rule: cuts.Rule = ""
    """Where a long text may be cut."""
    max_uncut_bytes: int = MAX_UNCUT_BYTES


class Tokenizer:
    """Encodes text, in which special tokens are text like any other, and decodes ids."""

    def __init__(self, definition: Definition) -> None:
        self.definition = definition
        self._fast = FastTokenizer.from_str(definition.tokenizer_json)
        self._fast.no_truncation()
        self._fast.no_padding()
        self._fast.encode_special_tokens = True

    @property
    def vocab_size(self) -> int:
        return self.definition.vocab_size

    @property
    def end_id(self) -> int:
        """The end-of-document token; encoding never gives it."""
        return self.definition.end_id

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, without an end token.

        Raises:
            TokenizerError: as `encode_arrays`.
        """
        return [ids.tolist() for ids in self.encode_arrays(texts)]

    def encode_arrays(self, texts: Sequence[str], *, names: Sequence[str] | None = None) -> list[NDArray[np.uint32]]:
        """The ids of each text, without an end token; a long text is encoded in pieces, to the same ids.

        Args:
            names: of the texts, for errors: ids of documents.

        Raises:
            TokenizerError: a text is not Unicode (it holds half a surrogate pair), or is too long to be encoded at once
                and has no sure cut, or the tokenizer makes its end token out of text.
        """
        encoded: list[NDArray[np.uint32]] = [_NONE] * len(texts)
        short = [place for place, text in enumerate(texts) if len(text) <= cuts.PIECE_CHARS]
        with _named_errors(texts, names=names):
            for place, ids in zip(short, self._encode([texts[place] for place in short]), strict=True):
                encoded[place] = ids
            for place, text in enumerate(texts):
                if len(text) > cuts.PIECE_CHARS:
                    encoded[place] = self._encode_long(text, name=_name(place, names=names))
        self._refuse_end_token(encoded, names=names)
        return encoded

    def _encode(self, texts: list[str]) -> list[NDArray[np.uint32]]:
        batch = self._fast.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, np.uint32) for encoding in batch]

    def _encode_long(self, text: str, *, name: str) -> NDArray[np.uint32]:
        found = [_NONE]
        for piece in cuts.pieces(text, rule=self.definition.cut_rule):
            limit = self.definition.max_uncut_bytes
            if len(piece) * 4 > limit and (num_bytes := len(piece.encode())) > limit:
                raise TokenizerError(
                    f"{name} has {num_bytes} bytes of text without a place where this tokenizer surely divides words; "
                    f"at most {limit} are encoded at once. Leave it out (prepare.sources[].where), divide it, or raise "
                    "shard.tokenizer.max_uncut_bytes, at 130 bytes of memory each"
                )
            found.extend(self._encode([piece]))
        return np.concatenate(found)

    def _refuse_end_token(self, encoded: list[NDArray[np.uint32]], *, names: Sequence[str] | None) -> None:
        broken = [place for place, ids in enumerate(encoded) if (ids == self.end_id).any()]
        if broken:
            raise TokenizerError(
                f"the tokenizer gives its end token {self.end_id} for the text of {len(broken)} of {len(encoded)} "
                f"documents, such as {_name(broken[0], names=names)}, so that documents could not be told apart; "
                "use another tokenizer folder, or train one"
            )

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids; special tokens give none, bytes that are not UTF-8 give the replacement character."""
        return str(self._fast.decode(list(ids), skip_special_tokens=True))


_NONE = np.empty(0, np.uint32)


def _name(place: int, *, names: Sequence[str] | None) -> str:
    return f"doc_id {names[place]}" if names is not None else f"text {place}"


@contextmanager
def _named_errors(texts: Sequence[str], *, names: Sequence[str] | None) -> Iterator[None]:
    """Turns the library's refusal of text that is not Unicode into an error that names the text."""
    try:
        yield
    except (TypeError, UnicodeEncodeError):
        for place, text in enumerate(texts):
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise TokenizerError(
                    f"{_name(place, names=names)}: character {error.start} of its text is half a surrogate pair, which "
                    "is no Unicode text; mend the row, or leave it out (prepare.sources[].where)"
                ) from None
        raise


def train(texts: Iterable[str], *, folder: Path, vocab_size: int) -> None:
    """Trains byte-level BPE and saves it into `folder`, loadable by transformers' AutoTokenizer.

    The file is a function of the texts alone: their order and the number of threads do not matter, because merges are
    chosen by count and then by token ids, and the 256 bytes are always the first of them. Too little text gives fewer
    entries than `vocab_size`.
    """
    fast = FastTokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_TOKEN],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    fast.train_from_iterator(iter(texts), trainer=trainer)
    end_id = fast.token_to_id(END_TOKEN)
    added = {"content": END_TOKEN, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    config = {
        "add_prefix_space": False,
        "added_tokens_decoder": {str(end_id): {**added, "special": True}},
        "bos_token": END_TOKEN,
        "clean_up_tokenization_spaces": False,
        "eos_token": END_TOKEN,
        "model_max_length": 10**30,
        "pad_token": END_TOKEN,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(fast.to_str(pretty=True), encoding="utf-8")
    _write_json(folder / "tokenizer_config.json", config)
    _write_json(
        folder / "special_tokens_map.json", {key: config[key] for key in ("bos_token", "eos_token", "pad_token")}
    )


def identity(folder: Path) -> str:
    """SHA-256 over the names and contents of the tokenizer's files: the same wherever the folder lies.

    Raises:
        TokenizerError: the folder has no tokenizer.json.
    """
    return sha256_json([[file.name, sha256_file(file)] for file in files(folder)])


def files(folder: Path) -> list[Path]:
    """The tokenizer's files in `folder`, by name.

    Raises:
        TokenizerError: there is no tokenizer.json.
    """
    if not (folder / "tokenizer.json").is_file():
        raise TokenizerError(
            f"{folder} has no tokenizer.json (offline, no download is tried); give a local folder that a fast "
            "tokenizer was saved into"
        )
    return sorted(folder / name for name in FILES if (folder / name).is_file())


def load(folder: Path) -> Tokenizer:
    """The tokenizer in a local folder.

    Raises:
        TokenizerError: files are missing or not readable, or it has no end-of-document token.
    """
    return Tokenizer(definition(folder))


def definition(folder: Path) -> Definition:
    """What a worker needs of the tokenizer in `folder`; named special tokens are marked as such.

    Raises:
        TokenizerError: as `load`.
    """
    files(folder)
    parsed = _read_json(folder / "tokenizer.json")
    named = {**read_optional(folder / "special_tokens_map.json"), **read_optional(folder / "tokenizer_config.json")}
    special = {content for name in SPECIAL_NAMES if (content := content_of(named.get(name)))}
    for token in parsed.get("added_tokens") or ():
        token["special"] = bool(token.get("special")) or token.get("content") in special
    if isinstance(model := parsed.get("model"), dict) and model.get("dropout"):
        model["dropout"] = None  # of training: the same text must give the same tokens
    text = json.dumps(parsed, ensure_ascii=False)
    try:
        fast = FastTokenizer.from_str(text)
    except Exception as error:  # the library raises plain Exception
        reason = str(error).splitlines()[0][:200]
        raise TokenizerError(f"{folder}/tokenizer.json cannot be read ({reason}); save the tokenizer again") from None
    end_token = content_of(named.get("eos_token")) or END_TOKEN
    end_id = fast.token_to_id(end_token)
    if end_id is None:
        raise TokenizerError(
            f"{folder} names no end token that its vocabulary holds; set eos_token in tokenizer_config.json"
        )
    vocabulary = fast.get_vocab(with_added_tokens=True)
    return Definition(
        tokenizer_json=text, end_id=end_id, vocab_size=max(vocabulary.values()) + 1, cut_rule=cuts.rule_of(parsed)
    )


def content_of(token: Any) -> str | None:
    """A token as configuration files give it: a string, or a mapping with `content`."""
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TokenizerError(
            f"{path} cannot be read as JSON ({type(error).__name__}); save the tokenizer again"
        ) from None
    if not isinstance(value, dict):
        raise TokenizerError(f"{path} holds a {type(value).__name__}, wanted a mapping; save the tokenizer again")
    return value


def read_optional(path: Path) -> dict[str, Any]:
    """A JSON file of a tokenizer folder; empty where there is none.

    Raises:
        TokenizerError: it cannot be read, or is not a mapping.
    """
    return _read_json(path) if path.is_file() else {}


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
