"""Exact ranks on a CPU from a float32 product: filter, then decide the few close calls exactly.

A float32 product of two unit vectors differs from the exact one by at most `error_bound`, whatever the order of
summation. A candidate that scores above the right one by more than that is above it, one below by more is below; only
those in between are computed again from the integer units (`unit_vectors`). The best k are found in the same way: a
candidate that is more than two bounds below k others cannot be among them; what is left is scored exactly in the end.

Tiles are small enough to be compared while they lie in a core's cache; threads share the tiles. What the comparisons
find is counted eight candidates at a time, as the bytes of 64-bit words.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dgl_scale.evaluation.candidate_pairs import Ints, Pairs, Singles, pack, place_in_group, unpack
from dgl_scale.evaluation.unit_vectors import QUANTUM

_TILE = 512
"""Queries and candidates of a tile: 1 MiB of float32."""
_WORD = 8
_BYTE_ROWS = 128
"""Rows whose bytes are added up in 64-bit words: at most 255 fit."""
_PAIRS_AT_ONCE = 128
_SPARSE = 24
"""Up to one in so many candidates of a tile is looked at one by one; of more, those above the right one are counted."""
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
Floats = NDArray[np.float64]
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


def error_bound(width: int) -> float:
    """How far a float32 product of two exact unit vectors of `width` components can be from the exact one.

    Rounding a unit to float32 costs a relative 2^-24 in each factor; a sum of E products, in any order and with or
    without fused multiplication, at most E 2^-24 / (1 - E 2^-24) times the sum of their absolute values, which
    is at most 1 (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1). One percent and two more roundings
    are added for the second-order terms, for lengths that are not quite 1 and for scores that are rounded after scaling.
    """
    return 1.01 * (width + 4) * 2.0**-24


def filter_ranks(text: Tensor, video: Tensor, *, scale: float, to_video: Direction, to_text: Direction) -> tuple[Found, Found]:
    """Rank all `video` for each `text` and the other way round, in one pass; exact.

    Args:
        text: int32 `[n, E]` of `integer_unit`, on the CPU; at most `candidate_pairs.MOST_CANDIDATES`, like `video`.
        video: int32 `[m, E]`.
        scale: scores are the exact float64 product times this; positive.
        to_video: of the `n` texts.
        to_text: of the `m` videos.
    """
    work = _Work(text, video, scale, to_video, to_text)
    _in_threads(work.rank_panel, len(work.panels))
    _in_threads(lambda block: work.blocks[block].finish(), len(work.blocks))
    return _join(work.panels, to_video.top_k), _join(work.blocks, to_text.top_k)


class _Work:
    """Panels of texts against blocks of videos."""

    def __init__(self, text: Tensor, video: Tensor, scale: float, to_video: Direction, to_text: Direction) -> None:
        self._text = text
        self._video32 = _to_float32(video)
        units = text.numpy(), video.numpy()
        self.panels = [_Queries(rows, *units, scale, to_video) for rows in _tiles(len(text))]
        self.blocks = [_Queries(rows, *units[::-1], scale, to_text) for rows in _tiles(len(video))]

    def rank_panel(self, number: int) -> None:
        """Of one panel, all tiles."""
        panel = self.panels[number]
        text32 = _to_float32(self._text[panel.rows])
        product = torch.empty(_TILE * _TILE)
        for i in range(len(self.blocks)):
            # Each panel starts elsewhere, so that threads seldom wait for the same block.
            block = self.blocks[(i + number) % len(self.blocks)]
            tile = product[: panel.size * block.size].view(panel.size, block.size)
            torch.mm(text32, self._video32[block.rows].T, out=tile)
            _meet(tile.numpy(), panel, block)
        panel.finish()


def _meet(scores: Singles, panel: "_Queries", block: "_Queries") -> None:
    """Let the texts and the videos of a tile of float32 scores take in what they find there."""
    panel.begin(scores)
    with block.lock:
        block.begin(scores.T)
    mask = scores >= panel.limit[:, None]
    mask |= scores >= block.limit
    if np.count_nonzero(mask) * _SPARSE >= mask.size:
        _meet_dense(scores, panel, block)
        return
    place = np.flatnonzero(mask)
    row, column = np.divmod(place, block.size)
    found = scores.ravel()[place]
    panel.take_some(row, column + block.rows.start, found)
    with block.lock:
        block.take_some(column, row + panel.rows.start, found)


def _meet_dense(scores: Singles, panel: "_Queries", block: "_Queries") -> None:
    """The same where too much of the tile would have to be looked at one by one, as right candidates rank low or many tie."""
    rows, row_counts = panel.look(scores, axis=0)
    columns, column_counts = block.look(scores, axis=1)
    row, column = np.divmod(np.flatnonzero(np.logical_or(rows, columns, out=rows)), block.size)
    found = scores[row, column]
    panel.take(row, column + block.rows.start, found, row_counts, block.rows)
    with block.lock:
        block.take(column, row + panel.rows.start, found, column_counts, panel.rows)


class _Queries:
    """Up to `_TILE` queries of one direction, and what they have found so far."""

    def __init__(self, rows: slice, units: NDArray[np.int32], candidates: NDArray[np.int32], scale: float, asked: Direction) -> None:
        self.rows = rows
        self.size = rows.stop - rows.start
        self.lock = threading.Lock()
        self._units, self._candidates, self._scale = units[rows], candidates, scale
        self._right, self._top_k = asked.right[rows], asked.top_k
        self._bound = error_bound(units.shape[1])
        self._low = _round_down(self._right / scale - self._bound)
        self._high = -_round_down(-(self._right / scale + self._bound))
        self._floor = _round_down(asked.known[rows] / scale - self._bound)
        self.limit = np.minimum(self._low, self._floor)
        self._greater = np.zeros(self.size, np.int64)
        self._equal = np.zeros(self.size, np.int64)
        self._seen = Pairs()
        self._near = Pairs()
        self._pending: list[Ints] = []
        self._num_pending = 0
        self.found: Found

    def begin(self, scores: Singles) -> None:
        """Learn from the first tile `[queries, candidates]` which scores are too low for the best k."""
        if self._floor[0] == -np.inf and scores.shape[1] > self._top_k:
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

    def take_some(self, query: Ints, candidate: Ints, score: Singles) -> None:
        """Take in pairs of a tile; all at or above the limit are among them."""
        own = score >= self.limit[query]
        self._seen.add(query[own], candidate[own], score[own])
        if self._seen.size > _SEEN_AT_ONCE * self.size:
            self._sort_out()

    def _sort_out(self) -> None:
        """Count the pairs taken in, keep those that must be decided exactly, and those that may be among the best k."""
        query, candidate, score = self._seen.take_all()
        above = score > self._high[query]
        self._greater += np.bincount(query[above], minlength=self.size)
        self._set_aside(query, candidate, score, (score >= self._low[query]) & ~above)
        good = score >= self._floor[query]
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
        self._sort_out()
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

    def _set_aside(self, query: Ints, candidate: Ints, score: Singles, near: Bools) -> None:
        """Keep what float32 could not decide until there is enough of it."""
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
        self._floor[query] = np.maximum(self._floor[query], _round_down(kth - 2 * self._bound))
        self.limit = np.minimum(self._low, self._floor)

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
        exact = self._exact_groups(query, candidate)
        order = np.lexsort((candidate, -exact, query))
        query, candidate, exact = query[order], candidate[order], exact[order]
        place = place_in_group(query)
        best = place < self._top_k
        return query[best], candidate[best], exact[best], place[best]

    def _take_pending(self) -> Ints:
        pending = np.concatenate(self._pending) if self._pending else np.empty(0, np.int64)
        self._pending, self._num_pending = [pending], len(pending)
        return pending

    def _exact_groups(self, query: Ints, candidate: Ints) -> Floats:
        """Exact scores of pairs sorted by query; the first k of each query share a product with its unit."""
        place = place_in_group(query)
        first = place < self._top_k
        grid = np.zeros((self.size, self._top_k), np.int64)
        grid[query[first], place[first]] = candidate[first]
        products = np.empty((self.size, self._top_k))
        step = max(1, _PAIRS_AT_ONCE // self._top_k)
        for start in range(0, self.size, step):
            some = slice(start, start + step)
            factors = self._candidates[grid[some]].astype(np.float64), self._units[some].astype(np.float64)
            products[some] = np.matmul(factors[0], factors[1][:, :, None])[:, :, 0]
        exact = np.empty(len(query))
        exact[first] = products[query[first], place[first]] * QUANTUM**2 * self._scale
        exact[~first] = self._exact_pairs(query[~first], candidate[~first])
        return exact

    def _exact_pairs(self, query: Ints, candidate: Ints) -> Floats:
        products = np.empty(len(query))
        for start in range(0, len(query), _PAIRS_AT_ONCE):
            some = slice(start, start + _PAIRS_AT_ONCE)
            factors = self._units[query[some]].astype(np.float64), self._candidates[candidate[some]].astype(np.float64)
            np.einsum("pe,pe->p", *factors, out=products[some])
        return products * QUANTUM**2 * self._scale

    def _exact_tile(self, candidates: slice) -> Floats:
        factors = torch.from_numpy(self._units).double(), torch.from_numpy(self._candidates[candidates]).double()
        exact: Floats = (factors[0] @ factors[1].T).numpy()
        return exact * QUANTUM**2 * self._scale


def _count(mask: Bools, axis: int) -> Ints:
    """Int64: how often the mask of a tile holds for each query along `axis`; eight candidates are added at a time."""
    if mask.shape[1] % _WORD:
        plain: Ints = mask.sum(axis=1 - axis, dtype=np.int64)
        return plain
    words = mask.view(np.uint64)
    if axis == 0:
        # A row has at most _TILE / 8 = 64 words, so that no byte of their sum overflows.
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


def _round_down(values: Floats | Singles) -> Singles:
    """Float32 values that are surely lower."""
    return np.nextafter(values.astype(np.float32), np.float32(-np.inf))


def _to_float32(units: Tensor) -> Tensor:
    return units.float().mul_(QUANTUM)


def _tiles(size: int) -> list[slice]:
    return [slice(start, min(start + _TILE, size)) for start in range(0, size, _TILE)]


def _join(queries: list[_Queries], top_k: int) -> Found:
    found = [one.found for one in queries]
    return Found(
        np.concatenate([one.greater for one in found]),
        np.concatenate([one.equal for one in found]),
        np.concatenate([one.top_indices for one in found]),
        np.concatenate([one.top_scores for one in found]),
    )


def _in_threads(work: Callable[[int], None], size: int) -> None:
    """Call `work(0)` … `work(size - 1)` on as many threads as PyTorch uses, each computing alone."""
    num_threads = min(torch.get_num_threads(), size)
    if num_threads == 1:
        for number in range(size):
            work(number)
        return
    with ThreadPoolExecutor(num_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for _ in pool.map(work, range(size)):
            pass
