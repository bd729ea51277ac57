"""What lies in one shard file of a set, read whole: for verifying and inspecting. Training reads by `shard.read`.

Taken from the file alone, by the format's own rules, and from nothing that wrote it. All samples are in memory, copied
a row at a time: a file's size, and a second a GiB. numpy only.
"""

import json
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from tessera.errors import CorruptShard
from tessera.shard.format import encodings

# Shapes: S = samples, T = tokens in a sequence, P = starts in all of them.
Bytes = NDArray[np.uint8]
Int = NDArray[np.int64]
Tokens = NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class Sequences:
    """Packed sequences."""

    tokens_ST: Tokens
    starts_P: NDArray[np.uint16]
    num_starts_S: Int
    loss_ST: Bytes | None
    """1 where a token counts; None where all do."""

    def __len__(self) -> int:
        return len(self.num_starts_S)

    @property
    def dtype(self) -> str:
        return self.tokens_ST.dtype.name

    def padding_S(self, *, end_id: int) -> Int:
        """Tokens of padding in each sequence: from its last start on, if the end token stands there.

        None where that start lies outside, see `first_odd`.
        """
        seq_len = self.tokens_ST.shape[1]
        last_S = self.starts_P[np.cumsum(self.num_starts_S) - 1].astype(np.int64)
        padded_S = self.tokens_ST[np.arange(len(self)), np.minimum(last_S, seq_len - 1)] == end_id
        return np.where(padded_S & (last_S < seq_len), seq_len - last_S, 0)

    def starts_of(self, sample: int) -> list[int]:
        first = int(self.num_starts_S[:sample].sum())
        return [int(start) for start in self.starts_P[first : first + int(self.num_starts_S[sample])]]

    def first_odd(self) -> int | None:
        """The first sequence whose starts do not ascend from 0 to less than T."""
        first_S = np.cumsum(self.num_starts_S) - self.num_starts_S
        starts = self.starts_P.astype(np.int64)
        wrong = starts >= self.tokens_ST.shape[1]
        wrong[1:] |= np.diff(starts) <= 0
        wrong[first_S] = starts[first_S] != 0
        odd = np.flatnonzero(wrong)
        return int(np.searchsorted(first_S, odd[0], side="right")) - 1 if len(odd) else None


@dataclass(frozen=True)
class Preferences:
    """Pairs of answers."""

    chosen: list[Tokens]
    rejected: list[Tokens]
    prompt_S: Int
    """Leading tokens that both share."""

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def dtype(self) -> str:
        return self.chosen[0].dtype.name if self.chosen else ""

    def first_odd(self) -> int | None:
        """The first pair without a common beginning of the length it states."""
        for sample, prompt in enumerate(self.prompt_S.tolist()):
            one, other = self.chosen[sample][:prompt], self.rejected[sample][:prompt]
            if len(one) < prompt or not np.array_equal(one, other):
                return sample
        return None


def parse(data: Any, *, seq_len: int) -> Sequences | Preferences:
    """The samples of a file.

    Args:
        data: the file's bytes, or a map of it; nothing that is returned refers to it.

    Raises:
        CorruptShard: it is not a shard of a set of ours with this `seq_len`.
    """
    try:
        (samples,) = struct.unpack_from("<I", data)
        ends = np.frombuffer(data, "<u4", samples + 1, 4).astype(np.int64)
        columns = columns_of(data)
        if ends[-1] != len(data) or (np.diff(ends) < 0).any():
            raise CorruptShard("its offsets lead astray")
        if set(columns) == {"chosen", "prompt", "rejected"}:
            return _preferences(data, ends=ends, columns=columns)
        return _sequences(np.frombuffer(data, np.uint8), ends=ends, columns=columns, seq_len=seq_len)
    except (struct.error, ValueError, IndexError, KeyError, TypeError) as error:
        raise CorruptShard(f"it cannot be taken apart ({type(error).__name__})") from None


def columns_of(data: Any) -> dict[str, str]:
    """Name -> encoding, from the file's own head."""
    (samples,) = struct.unpack_from("<I", data)
    (begin,) = struct.unpack_from("<I", data, 4)
    config = json.loads(bytes(data[8 + 4 * samples : begin]))
    return dict(zip(config["column_names"], config["column_encodings"], strict=True))


def _sequences(data: Bytes, *, ends: Int, columns: dict[str, str], seq_len: int) -> Sequences:
    kind = columns.get("tokens", "")
    name, _, shape = kind.removeprefix("ndarray:").partition(":")
    loss = columns.get("loss")
    wanted = {"tokens": kind, "starts": "ndarray:uint16", **({"loss": f"ndarray:uint8:{seq_len}"} if loss else {})}
    if columns != wanted or shape != str(seq_len) or name not in ("uint16", "uint32"):
        raise CorruptShard(f"its columns are {', '.join(f'{key} {value}' for key, value in columns.items())}")
    num_bytes = seq_len * np.dtype(name).itemsize
    begin = ends[:-1]
    loss_bytes = seq_len if loss else 0
    payload = _rows(data, begin, 4).view("<u4")[:, 0].astype(np.int64)
    if (begin + 4 + loss_bytes + payload + num_bytes != ends[1:]).any():
        raise CorruptShard("a sample is longer or shorter than its columns")
    at = begin + 4 + loss_bytes
    wide = (data[at] & 3).astype(np.int64)
    counts = data[at + 1].astype(np.int64) + (data[at + 2].astype(np.int64) << 8) * wide
    if (data[at] >> 2 != 1).any() or (wide > 1).any() or (counts < 1).any() or (2 + wide + 2 * counts != payload).any():
        raise CorruptShard("the starts of a sample are no array of uint16")
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = _rows(data, np.repeat(at + 2 + wide, counts) + 2 * within, 2).view("<u2")[:, 0]
    tokens = _rows(data, ends[1:] - num_bytes, num_bytes).view(np.dtype(name).newbyteorder("<"))
    return Sequences(
        tokens_ST=tokens, starts_P=starts, num_starts_S=counts,
        loss_ST=_rows(data, begin + 4, seq_len) if loss else None,
    )  # fmt: skip


def _preferences(data: Any, *, ends: Int, columns: dict[str, str]) -> Preferences:
    chosen, rejected, prompts = [], [], []
    for begin, end in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
        size, other = struct.unpack_from("<II", data, begin)
        if begin + 8 + size + 4 + other != end:
            raise CorruptShard("a sample is longer or shorter than its columns")
        at = begin + 8
        chosen.append(encodings.decode(columns["chosen"], bytes(data[at : at + size])))
        prompts.append(struct.unpack_from("<I", data, at + size)[0])
        rejected.append(encodings.decode(columns["rejected"], bytes(data[at + size + 4 : end])))
    return Preferences(chosen=chosen, rejected=rejected, prompt_S=np.array(prompts, np.int64))


def _rows(data: Bytes, at: Int, num_bytes: int) -> Bytes:
    """Copies the bytes from each of `at` on."""
    if not len(at):
        return np.empty((0, num_bytes), np.uint8)
    return sliding_window_view(data, num_bytes)[at]
