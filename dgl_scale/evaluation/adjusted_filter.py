"""Exact ranks by changed scores on a CPU: quick products tell which pairs can matter, and only these are scored exactly and changed.

A candidate matters to a query if it can come to the right one's changed score; for dual softmax and QB-Norm that is so where its
score is at least a number of the query plus a multiple of a number of the candidate (`adjust.Reach`). A tile of float32 products is
compared with these limits, less what float32 can be off by. Where many pass, all of the tile is scored exactly.
"""

import threading
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dgl_scale.evaluation.adjust import Adjust
from dgl_scale.evaluation.candidate_pairs import Ints, Singles, place_in_group
from dgl_scale.evaluation.pair_products import Units, exact_matrix, exact_products
from dgl_scale.evaluation.ranking_filter import in_threads
from dgl_scale.evaluation.ranking_input import blocks
from dgl_scale.evaluation.score_limits import Floats, error_bound, round_down
from dgl_scale.evaluation.tile_queries import Found

_TILE = 512
_SPARSE = 24
"""If more than one in so many pairs of a tile can matter, all of it is scored exactly."""
_ROUNDING = 1.01 * 2.0**-24
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class AdjustedDirection:
    """What is asked of one direction.

    Attributes:
        adjust: changes the scores.
        right: float64 `[N]`, the changed score of each query's right candidate.
        first: index of the first query.
    """

    adjust: Adjust
    right: Tensor
    first: int


def filter_adjusted(
    text: Tensor, video: Tensor, *, scale: float, to_video: AdjustedDirection, to_text: AdjustedDirection
) -> tuple[Found, Found]:
    """Rank all `video` for each `text` and the other way round, in one pass, by changed scores; exact.

    Of the best candidates only the first is found, and surely only if it comes to the score of the right one.

    Args:
        text: int32 `[n, E]` of `integer_unit`, on the CPU.
        video: int32 `[m, E]`.
        scale: scores before the change are the exact float64 product times this; positive.
        to_video: of the `n` texts.
        to_text: of the `m` videos.
    """
    work = _Work(Units.of(text), Units.of(video), scale, to_video, to_text)
    in_threads(work.rank_panel, len(work.panels))
    return work.to_video.found(), work.to_text.found()


class _Work:
    """Panels of texts against blocks of videos."""

    def __init__(self, text: Units, video: Units, scale: float, to_video: AdjustedDirection, to_text: AdjustedDirection) -> None:
        self._text, self._video, self._scale = text, video, scale
        texts, videos = len(text.integers), len(video.integers)
        self.to_video = _Queries(to_video, slice(to_text.first, to_text.first + videos), scale, text.integers.shape[1])
        self.to_text = _Queries(to_text, slice(to_video.first, to_video.first + texts), scale, text.integers.shape[1])
        self.panels, self._blocks = blocks(texts, _TILE), blocks(videos, _TILE)

    def rank_panel(self, number: int) -> None:
        """Of one panel, all tiles."""
        panel = self.panels[number]
        product, limited = torch.empty(_TILE**2), torch.empty(_TILE**2)
        for i in range(len(self._blocks)):
            # Each panel starts elsewhere, so that threads seldom wait for the same block.
            block = self._blocks[(i + number) % len(self._blocks)]
            shape = panel.stop - panel.start, block.stop - block.start
            tile, spare = (buffer[: shape[0] * shape[1]].view(shape) for buffer in (product, limited))
            torch.mm(self._text.singles[panel], self._video.singles[block].T, out=tile)
            matters = self.to_video.can_matter(tile, panel, block, spare, axis=0)
            matters |= self.to_text.can_matter(tile, block, panel, spare, axis=1)
            if np.count_nonzero(matters) * _SPARSE > matters.size:
                self._rank_all(panel, block)
            else:
                self._rank_some(panel, block, *np.divmod(np.flatnonzero(matters), shape[1]))

    def _rank_all(self, panel: slice, block: slice) -> None:
        scores = torch.from_numpy(exact_matrix(self._text[panel], self._video[block]) * self._scale)
        texts, videos = self._indices(np.arange(panel.start, panel.stop)[:, None], np.arange(block.start, block.stop)[None])
        for queries, candidates, side in ((panel, block, self.to_video), (block, panel, self.to_text)):
            changed = side.adjust(scores, texts, videos)
            side.take_tile((changed if side is self.to_video else changed.T).numpy(), queries, candidates)

    def _rank_some(self, panel: slice, block: slice, row: Ints, column: Ints) -> None:
        scores = torch.from_numpy(exact_products(self._text[panel], self._video[block], row, column) * self._scale)
        text, video = row + panel.start, column + block.start
        indices = self._indices(text, video)
        self.to_video.take(self.to_video.adjust(scores, *indices).numpy(), text, video)
        self.to_text.take(self.to_text.adjust(scores, *indices).numpy(), video, text)

    def _indices(self, text: Ints, video: Ints) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(text + self.to_video.first), torch.from_numpy(video + self.to_text.first)


class _Queries:
    """The queries of one direction, and what they have found so far."""

    def __init__(self, asked: AdjustedDirection, candidates: slice, scale: float, width: int) -> None:
        size = len(asked.right)
        self.adjust, self.first = asked.adjust, asked.first
        self._right = asked.right.numpy()
        reach = asked.adjust.reach(asked.right, torch.arange(asked.first, asked.first + size))
        self._terms = None if reach.terms is None else reach.terms[candidates].float()
        self._slope = (reach.slope / scale).float()
        most = 0.0 if self._terms is None else float(self._terms.abs().max())
        # The terms, the slope, their product and the difference are rounded; so is the score, by more.
        off = error_bound(width) + _ROUNDING * (1 + 5 * self._slope.abs().double() * most)
        self._limit: Singles = round_down((reach.offset / scale - off).numpy())
        self._greater, self._equal = np.zeros(size, np.int64), np.zeros(size, np.int64)
        self._best_score, self._best = np.full(size, -np.inf), np.full(size, -1, np.int64)
        self._lock = threading.Lock()

    def can_matter(self, tile: Tensor, queries: slice, candidates: slice, spare: Tensor, *, axis: int) -> Bools:
        """Which products of a tile are not surely too low; these queries lie along `axis`. `spare` is of the tile's shape."""
        limit = self._limit[queries]
        if self._terms is not None:
            factors = self._slope[queries], self._terms[candidates]
            tile = torch.addr(tile, *(factors if axis == 0 else factors[::-1]), alpha=-1, out=spare)
        passed: Bools = tile.numpy() >= (limit[:, None] if axis == 0 else limit)
        return passed

    def take_tile(self, changed: Floats, queries: slice, candidates: slice) -> None:
        """Take in all changed scores of a tile `[queries, candidates]`."""
        right = self._right[queries, None]
        place = changed.argmax(axis=1)
        query = np.arange(queries.start, queries.stop)
        with self._lock:
            self._greater[queries] += np.count_nonzero(changed > right, axis=1)
            self._equal[queries] += np.count_nonzero(changed == right, axis=1)
            self._keep_best(query, place + candidates.start, changed[query - queries.start, place])

    def take(self, changed: Floats, query: Ints, candidate: Ints) -> None:
        """Take in the changed scores of some pairs."""
        own = np.flatnonzero(changed >= self._right[query])
        query, candidate, changed = query[own], candidate[own], changed[own]
        order = np.lexsort((candidate, -changed, query))
        best = order[place_in_group(query[order]) == 0]
        above = changed > self._right[query]
        with self._lock:
            np.add.at(self._greater, query[above], 1)
            np.add.at(self._equal, query[~above], 1)
            self._keep_best(query[best], candidate[best], changed[best])

    def found(self) -> Found:
        """After all candidates."""
        return Found(self._greater, self._equal, self._best[:, None], self._best_score[:, None])

    def _keep_best(self, query: Ints, candidate: Ints, changed: Floats) -> None:
        """Of equal scores, the first candidate is best. Each query is there once."""
        known = self._best_score[query]
        better = (changed > known) | ((changed == known) & (candidate < self._best[query]))
        self._best[query[better]], self._best_score[query[better]] = candidate[better], changed[better]
