"""Up to a tile's side of queries of one direction, and what they have found so far; part of `ranking_filter`.

What the comparisons of a tile find is counted eight candidates at a time, as the bytes of 64-bit words. Pairs are chosen by their
places, as NumPy takes twice as long to choose by a mask.
"""

import threading
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dgl_scale.evaluation.candidate_pairs import Ints, Pairs, Singles, pack, place_in_group, unpack
from dgl_scale.evaluation.pair_products import (
    Units,
    exact_matrix,
    exact_products,
    exact_products_of_groups,
)
from dgl_scale.evaluation.score_limits import Floats, Shorts, bits_at_least, bits_at_most, error_bound, round_down

_WORD = 8
_BYTE_ROWS = 128
"""Rows whose bytes are added up in 64-bit words: at most 255 fit."""
_DENSE = 32
"""Beyond one in so many, all of a tile is computed exactly, which then costs less than pair by pair."""
_MOST_PENDING = 2
"""Candidates kept between compactions, in multiples of k a query: twice as many, and the k-th best is nearly that of all seen."""
_MOST_LEFT = 1.5
"""More than this left after a compaction, in multiples of k a query, are decided exactly, so that the next one has room."""
_GROUP = 8
_SEEN_AT_ONCE = 10
"""Pairs a query that are looked at together."""
_NEAR_AT_ONCE = 8192
"""Pairs that are decided exactly together."""
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Found:
    """What `N` queries found among the candidates of one call; fields as in `ranks.Standing`, as arrays."""

    greater: Ints
    equal: Ints
    top_indices: Ints
    top_scores: Floats


@dataclass(frozen=True)
class Direction:
    """What is asked of one direction.

    Attributes:
        right: float64 `[N]`, the score to compare with.
        known: float64 `[N]`, the k-th best score that is known from earlier candidates, or minus infinity.
        top_k: best candidates to find; those that score no more than `known` may be left out.
    """

    right: Floats
    known: Floats
    top_k: int


class TileQueries:
    """Up to a tile's side of queries of one direction, and what they have found so far."""

    def __init__(self, rows: slice, units: Units, candidates: Units, rough_bound: Floats, scale: float, asked: Direction) -> None:
        """Before any candidate.

        Args:
            rows: which queries of `asked`.
            units: of these queries.
            candidates: of all candidates.
            rough_bound: float64 `[queries]`, of bfloat16 products; infinite where there will be none.
            scale: of the scores; positive.
            asked: of all queries.
        """
        self.rows = rows
        self.size = rows.stop - rows.start
        self.lock = threading.Lock()
        self.units, self._candidates, self._scale = units, candidates, scale
        self._right, self._top_k = asked.right[rows], asked.top_k
        self._bound = error_bound(units.integers.shape[1])
        self._rough_bound = rough_bound
        self._low = round_down(self._right / scale - self._bound)
        self._high = -round_down(-(self._right / scale + self._bound))
        self._rough_high = bits_at_least(self._high + rough_bound)
        self._set_floor(round_down(asked.known[rows] / scale - self._bound))
        self._greater = np.zeros(self.size, np.int64)
        self._equal = np.zeros(self.size, np.int64)
        self._seen = Pairs()
        self._near = Pairs()
        self._pending: list[Ints] = []
        self._num_pending = 0
        self.found: Found

    @property
    def has_floor(self) -> bool:
        """Whether it is known which scores are too low for the best k."""
        return bool(self._floor[0] > -np.inf)

    def begin(self, scores: Singles) -> None:
        """Learn from the first tile `[queries, candidates]` which scores are too low for the best k."""
        if not self.has_floor and scores.shape[1] > self._top_k:
            width = scores.shape[1] // _GROUP
            if width >= self._top_k:
                # The k-th best of the groups' best ones is a candidate's score too, nearly as high and found in an eighth of the time.
                scores = scores[:, : _GROUP * width].reshape(self.size, _GROUP, width).max(axis=1)
            self._raise_floor(slice(None), np.partition(scores, -self._top_k, axis=1)[:, -self._top_k])

    def look(self, scores: Singles, *, axis: int) -> tuple[Bools, Ints]:
        """Where a tile of float32 scores must be looked at closely, and how many candidates are surely above the right one.

        Args:
            scores: `[panel, block]`; these queries lie along `axis`.

        Returns:
            A mask of the tile; int64 `[queries]`.
        """
        limits = (slice(None), None) if axis == 0 else (None, slice(None))
        above = scores > self._high[limits]
        mask = scores >= self._low[limits]
        mask ^= above
        mask |= scores >= self._floor[limits]
        return mask, _count(above, axis)

    def sift(self, query: Ints, bits: Shorts) -> Bools:
        """Which pairs of a tile in bfloat16 must be scored in float32, all at or above the rough limit being among them.

        Those that are surely above the right one, and surely not among the best, are counted and need nothing more.
        """
        counted = (bits > self._rough_high[query]) & (bits < self._rough_floor[query])
        self._greater += np.bincount(query[np.flatnonzero(counted)], minlength=self.size)
        wanted: Bools = (bits >= self.rough_limit[query]) & ~counted
        return wanted

    def take_some(self, query: Ints, candidate: Ints, score: Singles) -> None:
        """Take in pairs of a tile in float32; all at or above the limit are among them."""
        own = np.flatnonzero(score >= self.limit[query])
        self._seen.add(query[own], candidate[own], score[own])
        if self._seen.size > _SEEN_AT_ONCE * self.size:
            self._sort_out(*self._seen.take_all())

    def _sort_out(self, query: Ints, candidate: Ints, score: Singles) -> None:
        """Count pairs, keep those that must be decided exactly, and those that may be among the best k."""
        above = score > self._high[query]
        self._greater += np.bincount(query[np.flatnonzero(above)], minlength=self.size)
        self._set_aside(query, candidate, score, (score >= self._low[query]) & ~above)
        good = np.flatnonzero(score >= self._floor[query])
        self._keep(query[good], candidate[good], score[good])

    def take(self, query: Ints, candidate: Ints, score: Singles, num_above: Ints, tile: slice) -> None:
        """Take in the pairs of a tile that are looked at closely, and the number of those that need no look."""
        self._greater += num_above
        near = (score >= self._low[query]) & (score <= self._high[query])
        if self._is_most(int(np.count_nonzero(near)), tile):
            self._decide(query[near], self._exact_tile(tile)[query[near], candidate[near] - tile.start])
        else:
            self._set_aside(query, candidate, score, near)
        good = score >= self._floor[query]
        query, candidate, score = query[good], candidate[good], score[good]
        if self._is_most(len(query), tile) and tile.stop - tile.start > self._top_k:
            # Many tie, as in a constant model: only the exactly best of this tile can be among the best.
            exact = self._exact_tile(tile)
            query, candidate = np.nonzero(_is_top(exact, self._top_k))
            score = (exact[query, candidate] / self._scale).astype(np.float32)
            candidate = candidate + tile.start
        self._keep(query, candidate, score)

    def finish(self) -> None:
        """After all candidates: the last close calls, and the best ones by their exact scores."""
        self._sort_out(*self._seen.take_all())
        self._decide_near()
        self._compact()
        query, _, candidate = unpack(self._take_pending())
        top_indices = np.full((self.size, self._top_k), -1, np.int64)
        top_scores = np.full((self.size, self._top_k), -np.inf)
        query, candidate, score, place = self._best(query, candidate)
        top_indices[query, place], top_scores[query, place] = candidate, score
        self.found = Found(self._greater, self._equal, top_indices, top_scores)

    def _is_most(self, count: int, tile: slice) -> bool:
        """Whether so many pairs cost more than all of a tile."""
        return bool(count * _DENSE > self.size * (tile.stop - tile.start))

    def _set_aside(self, query: Ints, candidate: Ints, score: Singles, is_near: Bools) -> None:
        """Keep what float32 could not decide until there is enough of it."""
        near = np.flatnonzero(is_near)
        self._near.add(query[near], candidate[near], score[near])
        if self._near.size > _NEAR_AT_ONCE:
            self._decide_near()

    def _decide_near(self) -> None:
        query, candidate, _ = self._near.take_all()
        self._decide(query, self._exact_pairs(query, candidate))

    def _decide(self, query: Ints, exact: Floats) -> None:
        right = self._right[query]
        self._greater += np.bincount(query[exact > right], minlength=self.size)
        self._equal += np.bincount(query[exact == right], minlength=self.size)

    def _keep(self, query: Ints, candidate: Ints, score: Singles) -> None:
        """Keep candidates that may be among the best k."""
        self._pending.append(pack(query, score, candidate))
        self._num_pending += len(query)
        if self._num_pending > _MOST_PENDING * self._top_k * self.size:
            self._compact()

    def _raise_floor(self, query: Ints | slice, kth: Singles) -> None:
        """Of queries of which k candidates score at least `kth` in float32."""
        floor = self._floor.copy()
        floor[query] = np.maximum(floor[query], round_down(kth - 2 * self._bound))
        self._set_floor(floor)

    def _set_floor(self, floor: Singles) -> None:
        self._floor = floor
        self.limit = np.minimum(self._low, floor)
        self._rough_floor = bits_at_most(floor - self._rough_bound)
        self.rough_limit = bits_at_most(self.limit - self._rough_bound)

    def _compact(self) -> None:
        """Drop the candidates that can no longer be among the best k, and raise the floor."""
        keys = np.sort(self._take_pending())
        query, score, _ = unpack(keys)
        place = place_in_group(query)
        kth = place == self._top_k - 1
        self._raise_floor(query[kth], score[kth])
        keys = keys[(place < self._top_k) | (score >= self._floor[query])]
        if len(keys) > _MOST_LEFT * self._top_k * self.size:
            query, _, candidate = unpack(keys)
            query, candidate, exact, _ = self._best(query, candidate)
            keys = pack(query, (exact / self._scale).astype(np.float32), candidate)
        self._pending = [keys]
        self._num_pending = len(keys)

    def _best(self, query: Ints, candidate: Ints) -> tuple[Ints, Ints, Floats, Ints]:
        """Of pairs, sorted by query, the best k of each query: query, candidate, exact score, place."""
        exact = exact_products_of_groups(self.units, self._candidates, query, candidate, self._top_k) * self._scale
        order = np.lexsort((candidate, -exact, query))
        query, candidate, exact = query[order], candidate[order], exact[order]
        place = place_in_group(query)
        best = place < self._top_k
        return query[best], candidate[best], exact[best], place[best]

    def _take_pending(self) -> Ints:
        pending = np.concatenate(self._pending) if self._pending else np.empty(0, np.int64)
        self._pending, self._num_pending = [pending], len(pending)
        return pending

    def _exact_pairs(self, query: Ints, candidate: Ints) -> Floats:
        return exact_products(self.units, self._candidates, query, candidate) * self._scale

    def _exact_tile(self, candidates: slice) -> Floats:
        return exact_matrix(self.units, self._candidates[candidates]) * self._scale


def _count(mask: Bools, axis: int) -> Ints:
    """Int64: how often the mask of a tile holds for each query along `axis`; eight candidates are added at a time."""
    if mask.shape[1] % _WORD:
        plain: Ints = mask.sum(axis=1 - axis, dtype=np.int64)
        return plain
    words = mask.view(np.uint64)
    if axis == 0:
        # A row has at most 1024 / 8 = 128 words, so that no byte of their sum overflows.
        sums: Ints = np.add.reduce(words, axis=1)[:, None].view(np.uint8).sum(axis=1, dtype=np.int64)
        return sums
    counts = np.zeros(mask.shape[1], np.int64)
    for start in range(0, len(words), _BYTE_ROWS):
        counts += np.add.reduce(words[start : start + _BYTE_ROWS], axis=0).view(np.uint8)
    return counts


def _is_top(scores: Floats, top_k: int) -> Bools:
    """Where the `top_k` best of each row are, of equal scores the first."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    best = np.zeros(scores.shape, np.bool_)
    np.put_along_axis(best, order, True, axis=1)
    return best
