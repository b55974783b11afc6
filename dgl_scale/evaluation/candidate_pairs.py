"""Pairs of a query and a candidate with a float32 score: in lists that wait, or as 64-bit keys that sort best first."""

import numpy as np
from numpy.typing import NDArray

_CANDIDATE_BITS = 21
MOST_CANDIDATES = 1 << _CANDIDATE_BITS
"""Texts or videos that one call can take."""
MOST_QUERIES = 1 << (63 - 32 - _CANDIDATE_BITS)
"""Queries whose pairs a key can tell apart: those of a tile."""

Singles = NDArray[np.float32]
Ints = NDArray[np.int64]


class Pairs:
    """Pairs that wait: query, candidate, float32 score."""

    def __init__(self) -> None:
        self.size = 0
        self._parts: list[tuple[Ints, Ints, Singles]] = []

    def add(self, query: Ints, candidate: Ints, score: Singles) -> None:
        """Take in more."""
        self.size += len(query)
        self._parts.append((query, candidate, score))

    def take_all(self) -> tuple[Ints, Ints, Singles]:
        """All of them, which then wait no more."""
        none = np.empty(0, np.int64)
        parts = [(none, none, np.empty(0, np.float32)), *self._parts]
        self.size, self._parts = 0, []
        query, candidate, score = (np.concatenate(column) for column in zip(*parts, strict=True))
        return query, candidate, score


def pack(query: Ints, score: Singles, candidate: Ints) -> Ints:
    """Int64 keys that sort by query, then by falling score, then by candidate.

    Queries are below `MOST_QUERIES`, candidates below `MOST_CANDIDATES`.
    """
    bits = np.ascontiguousarray(score).view(np.int32).astype(np.int64)
    rising = np.where(bits < 0, -(2**31) - bits - 1, bits)
    return (query << (32 + _CANDIDATE_BITS)) | ((2**31 - 1 - rising) << _CANDIDATE_BITS) | candidate


def unpack(keys: Ints) -> tuple[Ints, Singles, Ints]:
    """Query, score, candidate of `pack`'s keys."""
    rising = 2**31 - 1 - ((keys >> _CANDIDATE_BITS) & (2**32 - 1))
    bits = np.where(rising < 0, -(2**31) - rising - 1, rising)
    return keys >> (32 + _CANDIDATE_BITS), bits.astype(np.int32).view(np.float32), keys & (MOST_CANDIDATES - 1)


def place_in_group(sorted_groups: Ints) -> Ints:
    """0, 1, 2 … within each run of equal values."""
    positions = np.arange(len(sorted_groups))
    starts = np.flatnonzero(np.diff(sorted_groups, prepend=-1))
    return positions - np.repeat(starts, np.diff(starts, append=len(sorted_groups)))
