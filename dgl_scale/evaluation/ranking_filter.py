"""Exact ranks on a CPU from quick products: filter, then decide the few close calls exactly.

A quick product of two unit vectors differs from the exact one by at most a bound (`score_limits`). A candidate that scores above the
right one by more than that is above it, one below by more is below; only those in between are computed again from the integer units
(`unit_vectors`). The best k are found in the same way: a candidate that is more than two bounds below k others cannot be among
them; what is left is scored exactly in the end.

Where the machine multiplies bfloat16 faster (`bfloat16_trial`), a tile is computed in it first. The pairs that may matter are
scored in float32, one by one; if there are too many of them, the tile is computed in float32 as a whole, as on other machines.

Tiles are small enough to be compared while they lie in a core's cache; threads share the tiles.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dgl_scale.evaluation.bfloat16_trial import is_bfloat16_faster
from dgl_scale.evaluation.candidate_pairs import MOST_QUERIES, Singles
from dgl_scale.evaluation.pair_products import Units, prepare, single_products
from dgl_scale.evaluation.ranking_input import blocks
from dgl_scale.evaluation.score_limits import Floats, Shorts, bfloat16_bound, round_to_bfloat16
from dgl_scale.evaluation.tile_queries import Direction, Found, TileQueries

_TILE = MOST_QUERIES
"""1,024 queries and candidates of a tile, 2 MiB of bfloat16, where that leaves each thread `_PANELS` panels; else half as many."""
_PANELS = 2
_SPARSE = 24
"""Up to one in so many candidates of a tile is looked at one by one; of more, those above the right one are counted."""
_ROUGH_AFTER = 36
"""After a tile in float32 in which at most one in so many was looked at, the next one is tried in bfloat16."""
_LARGE = 2048**2
"""Scores; with fewer it is not worth finding out whether bfloat16 is faster."""


def filter_ranks(
    text: Tensor, video: Tensor, *, scale: float, to_video: Direction, to_text: Direction, bfloat16: bool | None = None
) -> tuple[Found, Found]:
    """Rank all `video` for each `text` and the other way round, in one pass; exact.

    Args:
        text: int32 `[n, E]` of `integer_unit`, on the CPU; at most `candidate_pairs.MOST_CANDIDATES`, like `video`.
        video: int32 `[m, E]`.
        scale: scores are the exact float64 product times this; positive.
        to_video: of the `n` texts.
        to_text: of the `m` videos.
        bfloat16: whether tiles are tried in bfloat16, which changes the time only; by default, where that is faster.
    """
    if bfloat16 is None:
        bfloat16 = len(text) * len(video) >= _LARGE and is_bfloat16_faster()
    work = _Work(_side(text, bfloat16), _side(video, bfloat16), scale, to_video, to_text)
    in_threads(work.rank_panel, len(work.panels))
    in_threads(lambda block: work.blocks[block].finish(), len(work.blocks))
    return _join(work.panels, to_video.top_k), _join(work.blocks, to_text.top_k)


@dataclass(frozen=True)
class _Side:
    """Texts or videos; `rough` is bfloat16 `[N, E]`, and `residuals` how far that is off, if it is used."""

    units: Units
    rough: Tensor | None
    residuals: Floats


def _side(integers: Tensor, bfloat16: bool) -> _Side:
    units = Units.of(integers)
    if not bfloat16:
        return _Side(units, None, np.full(len(integers), np.inf))
    prepare()
    return _Side(units, *round_to_bfloat16(units.singles))


class _Work:
    """Panels of texts against blocks of videos."""

    def __init__(self, text: _Side, video: _Side, scale: float, to_video: Direction, to_text: Direction) -> None:
        self._text, self._video = text, video
        self._tile = _TILE if len(text.units.integers) >= _TILE * _PANELS * torch.get_num_threads() else max(1, _TILE // 2)
        self.panels = _queries(text, video, scale, to_video, self._tile)
        self.blocks = _queries(video, text, scale, to_text, self._tile)

    def rank_panel(self, number: int) -> None:
        """Of one panel, all tiles."""
        panel = self.panels[number]
        product = torch.empty(self._tile**2)
        rough_product = torch.empty(self._tile**2, dtype=torch.bfloat16)
        try_rough = True
        for i in range(len(self.blocks)):
            # Each panel starts elsewhere, so that threads seldom wait for the same block.
            block = self.blocks[(i + number) % len(self.blocks)]
            if try_rough and panel.has_floor and block.has_floor and self._rank_roughly(panel, block, rough_product):
                continue
            tile = _tile(product, panel, block)
            torch.mm(self._text.units.singles[panel.rows], self._video.units.singles[block.rows].T, out=tile)
            try_rough = _meet(tile.numpy(), panel, block)
        panel.finish()

    def _rank_roughly(self, panel: TileQueries, block: TileQueries, product: Tensor) -> bool:
        """A tile in bfloat16; false if nothing came of it."""
        if self._text.rough is None or self._video.rough is None:
            return False
        tile = _tile(product, panel, block)
        torch.mm(self._text.rough[panel.rows], self._video.rough[block.rows].T, out=tile)
        return _meet_roughly(tile.view(torch.int16).numpy(), panel, block)


def _queries(own: _Side, other: _Side, scale: float, asked: Direction, tile: int) -> list[TileQueries]:
    bound = bfloat16_bound(own.units.integers.shape[1], own.residuals, float(other.residuals.max()))
    return [TileQueries(rows, own.units[rows], other.units, bound[rows], scale, asked) for rows in blocks(len(bound), tile)]


def _tile(buffer: Tensor, panel: TileQueries, block: TileQueries) -> Tensor:
    return buffer[: panel.size * block.size].view(panel.size, block.size)


def _meet_roughly(bits: Shorts, panel: TileQueries, block: TileQueries) -> bool:
    """Let the texts and the videos of a tile of bfloat16 scores take in what they find there, unless it is too much: false."""
    mask = bits >= panel.rough_limit[:, None]
    mask |= bits >= block.rough_limit
    if np.count_nonzero(mask) * _SPARSE >= mask.size:
        return False
    place = np.flatnonzero(mask)
    row, column = np.divmod(place, block.size)
    found = bits.ravel()[place]
    for_panel = panel.sift(row, found)
    with block.lock:
        for_block = block.sift(column, found)
    some = np.flatnonzero(for_panel | for_block)
    row, column = row[some], column[some]
    score = single_products(panel.units, block.units, row, column)
    own = np.flatnonzero(for_panel[some])
    panel.take_some(row[own], column[own] + block.rows.start, score[own])
    own = np.flatnonzero(for_block[some])
    with block.lock:
        block.take_some(column[own], row[own] + panel.rows.start, score[own])
    return True


def _meet(scores: Singles, panel: TileQueries, block: TileQueries) -> bool:
    """The same with a tile of float32 scores, however much it is; whether it was so little that bfloat16 might do for the next one."""
    panel.begin(scores)
    with block.lock:
        block.begin(scores.T)
    mask = scores >= panel.limit[:, None]
    mask |= scores >= block.limit
    count = np.count_nonzero(mask)
    if count * _SPARSE >= mask.size:
        _meet_dense(scores, panel, block)
        return False
    place = np.flatnonzero(mask)
    row, column = np.divmod(place, block.size)
    found = scores.ravel()[place]
    panel.take_some(row, column + block.rows.start, found)
    with block.lock:
        block.take_some(column, row + panel.rows.start, found)
    return bool(count * _ROUGH_AFTER < mask.size)


def _meet_dense(scores: Singles, panel: TileQueries, block: TileQueries) -> None:
    """The same where too much of the tile would have to be looked at one by one, as right candidates rank low or many tie."""
    rows, row_counts = panel.look(scores, axis=0)
    columns, column_counts = block.look(scores, axis=1)
    row, column = np.divmod(np.flatnonzero(np.logical_or(rows, columns, out=rows)), block.size)
    found = scores[row, column]
    panel.take(row, column + block.rows.start, found, row_counts, block.rows)
    with block.lock:
        block.take(column, row + panel.rows.start, found, column_counts, panel.rows)


def _join(queries: list[TileQueries], top_k: int) -> Found:
    found = [one.found for one in queries]
    return Found(
        np.concatenate([one.greater for one in found]),
        np.concatenate([one.equal for one in found]),
        np.concatenate([one.top_indices for one in found]),
        np.concatenate([one.top_scores for one in found]),
    )


def in_threads(work: Callable[[int], None], size: int) -> None:
    """Call `work(0)` … `work(size - 1)` on as many threads as PyTorch uses, each computing alone."""
    num_threads = min(torch.get_num_threads(), size)
    if num_threads == 1:
        for number in range(size):
            work(number)
        return
    with ThreadPoolExecutor(num_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for _ in pool.map(work, range(size)):
            pass
