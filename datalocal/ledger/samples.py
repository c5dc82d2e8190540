"""The proof that every sample was used once: uses of each row, and what they add up to. Pure."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Uses = npt.NDArray[np.uint8]


def encode_uses(uses: Uses) -> str:
    """Uses of each row of a shard (uint8 [rows]) as text: zlib-compressed, base64."""
    return base64.b64encode(zlib.compress(np.ascontiguousarray(uses, dtype=np.uint8).tobytes())).decode("ascii")


def decode_uses(text: str) -> Uses:
    """The inverse of `encode_uses`: uint8 [rows]."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=np.uint8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """One epoch or stage in numbers of samples."""

    expected: int = 0
    seen: int = 0
    """Expected samples that were used at least once."""
    repeated: int = 0
    """Uses beyond the first, and uses of rows that were not to be used."""
    dropped: int = 0
    """Expected samples that were not used."""
    rolled_back: int = 0
    """Uses that a failed launch made after its last complete checkpoint: done again, and not counted above."""

    def __add__(self, other: Samples) -> Samples:
        return Samples(
            expected=self.expected + other.expected,
            seen=self.seen + other.seen,
            repeated=self.repeated + other.repeated,
            dropped=self.dropped + other.dropped,
            rolled_back=self.rolled_back + other.rolled_back,
        )


def account(expected: Mapping[str, Uses], lines: Iterable[Mapping[str, str]]) -> dict[str, Samples]:
    """One epoch by shard key.

    `expected`: 1 where a row is to be used; `lines`: the encoded uses of each surviving samples line.
    """
    used: dict[str, npt.NDArray[np.int64]] = {key: np.zeros(len(mask), np.int64) for key, mask in expected.items()}
    for line in lines:
        for key, text in line.items():
            uses = decode_uses(text).astype(np.int64)
            used[key] = used[key] + uses if key in used else uses
    found: dict[str, Samples] = {}
    for key, uses in used.items():
        wanted = expected[key].astype(bool) if key in expected else np.zeros(len(uses), bool)
        found[key] = Samples(
            expected=int(wanted.sum()),
            seen=int((uses[wanted] > 0).sum()),
            repeated=int(np.maximum(uses[wanted] - 1, 0).sum() + uses[~wanted].sum()),
            dropped=int((uses[wanted] == 0).sum()),
        )
    return found
