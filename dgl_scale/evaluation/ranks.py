"""Exact ranks of both retrieval directions from features, in tiles: the similarity matrix is never held.

Rank of a query = 1 + candidates that score strictly higher than the right one + half of those that tie with
it (METHOD, "Retrieval metrics"). Ties are decided in exact arithmetic. Unit vectors are rounded to multiples
of 2^-26; products are then multiples of 2^-52 and, by Cauchy-Schwarz, any partial sum of them stays below 2,
so that float64 holds every one of them without rounding. Scores hence depend neither on the order of
summation nor on tile sizes, threads, BLAS or device, and equal vectors score equally wherever they stand.
The rounding moves a cosine by about 1e-8, less than a float32 product would.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dgl_scale.errors import DataError

_QUANTUM = 2.0**-26

Adjust = Callable[[Tensor, Tensor, Tensor], Tensor]
"""`(scores, text indices, video indices) -> scores`, elementwise with broadcasting; see `rescoring`."""


@dataclass(frozen=True)
class DirectionRanks:
    """One direction of retrieval.

    Attributes:
        ranks: float64 `[N]`, one a query, 1 is best.
        scores: float64 `[N]`, of the (best) right candidate.
        top_indices: int64 `[N, k]`, the best candidates, best first; equal scores in order of index.
        top_scores: float64 `[N, k]`.
    """

    ranks: Tensor
    scores: Tensor
    top_indices: Tensor
    top_scores: Tensor


@dataclass(frozen=True)
class Ranking:
    """Both directions; text-to-video has a query for each caption, video-to-text one for each video."""

    text_to_video: DirectionRanks
    video_to_text: DirectionRanks


def rank_both_directions(
    text: Tensor,
    video: Tensor,
    target: Tensor,
    *,
    scale: float,
    block_size: int,
    top_k: int,
    adjust: tuple[Adjust, Adjust] | None = None,
) -> Ranking:
    """Rank all videos for each caption and all captions for each video.

    A video with several captions is right as soon as its best-scoring caption is found; its other captions
    are no competitors of that one. `adjust` changes the scores of (text-to-video, video-to-text).

    Args:
        text: `[Q, E]`, of any length (cosine is what counts).
        video: `[V, E]`.
        target: int64 `[Q]`, the video that each caption describes.
        scale: scores are `scale` times the cosine.
        block_size: tiles are at most `block_size` by `block_size`; bounds memory, never changes the result.
        top_k: best candidates to keep, at most as many as there are.

    Raises:
        DataError: a feature is not finite, a target is out of range, or a video has no caption.
    """
    _check(text, video, target)
    own, best = _right_scores(text, video, target, scale, adjust)
    directions = (
        _Direction(own, min(top_k, len(video)), equal_right=torch.ones_like(target)),
        _Direction(best[1], min(top_k, len(text)), equal_right=_count_best(best[0], best[1], target)),
    )
    # Every block of captions meets all videos: those are converted once.
    video_units = torch.cat([exact_unit(video[columns]) for columns in _blocks(len(video), block_size)])
    for rows in _blocks(len(text), block_size):
        text_block = exact_unit(text[rows])
        row_indices = torch.arange(rows.start, rows.stop, device=text.device)[:, None]
        for columns in _blocks(len(video), block_size):
            column_indices = torch.arange(columns.start, columns.stop, device=text.device)[None, :]
            tile = (text_block @ video_units[columns].T) * scale  # [rows, columns]
            tiles = (tile, tile) if adjust is None else tuple(a(tile, row_indices, column_indices) for a in adjust)
            directions[0].add(tiles[0], rows, columns.start)
            directions[1].add(tiles[1].T, columns, rows.start)
    return Ranking(directions[0].result(), directions[1].result())


def exact_unit(features: Tensor) -> Tensor:
    """`[N, E]` to float64 vectors of length 1 whose inner products are exact; a zero vector stays zero."""
    wide = features.double()
    scaled = wide / wide.abs().amax(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    # The length too must not depend on the order of summation: so few bits that the sum of E squares is exact.
    bits = (53 - math.ceil(math.log2(features.shape[-1]))) // 2
    length = (scaled * 2.0**bits).round().square().sum(dim=-1, keepdim=True).sqrt() / 2.0**bits
    return (scaled / length.clamp_min(1.0) / _QUANTUM).round() * _QUANTUM


def pair_scores(text: Tensor, video: Tensor, *, scale: float) -> Tensor:
    """Float64 `[N]`: the exact scores of `text[i]` with `video[i]`, equal to the entries of a full matrix."""
    return (exact_unit(text) * exact_unit(video)).sum(-1) * scale


def check_finite(features: Tensor, names: Sequence[str], kind: str) -> None:
    """Refuse NaN and infinity, which a ranking would turn into a good score.

    Raises:
        DataError: names the first such row.
    """
    good = torch.isfinite(features).all(dim=-1)
    if not bool(good.all()):
        bad = int((~good).nonzero()[0])
        raise DataError(
            f"{kind} feature of {names[bad]} is not finite ({int((~good).sum())} of {len(features)} are not); "
            "the checkpoint or the precision is broken, evaluate another checkpoint or in fp32"
        )


class _Direction:
    """Counts and best candidates of one direction while tiles pass by."""

    def __init__(self, right_scores: Tensor, top_k: int, *, equal_right: Tensor) -> None:
        size = len(right_scores)
        self._right = right_scores
        self._equal_right = equal_right
        self._greater = torch.zeros(size, dtype=torch.int64, device=right_scores.device)
        self._greater_or_equal = torch.zeros_like(self._greater)
        self._top_scores = torch.full((size, top_k), -torch.inf, dtype=torch.float64, device=right_scores.device)
        self._top_indices = torch.full((size, top_k), -1, dtype=torch.int64, device=right_scores.device)

    def add(self, tile: Tensor, queries: slice, first_candidate: int) -> None:
        """Count a tile `[queries, candidates]`; a query's tiles must come in order of candidates."""
        right = self._right[queries, None]
        self._greater[queries] += torch.count_nonzero(tile > right, dim=1)
        self._greater_or_equal[queries] += torch.count_nonzero(tile >= right, dim=1)
        # Candidates that tie with the last kept one come later and so stay out: strictly greater is right.
        rows = (tile.amax(dim=1) > self._top_scores[queries, -1]).nonzero()[:, 0]
        if len(rows) == 0:
            return
        indices, scores = _top_k(tile[rows], self._top_scores.shape[1])
        rows = rows + queries.start
        scores = torch.cat([self._top_scores[rows], scores], dim=1)  # [rows, kept + new]
        indices = torch.cat([self._top_indices[rows], indices + first_candidate], dim=1)
        # Kept ones stand first and have lower indices, so a stable sort keeps the order of equal scores.
        order = scores.argsort(dim=1, descending=True, stable=True)[:, : self._top_scores.shape[1]]
        self._top_scores[rows] = scores.gather(1, order)
        self._top_indices[rows] = indices.gather(1, order)

    def result(self) -> DirectionRanks:
        equal_wrong = self._greater_or_equal - self._greater - self._equal_right
        assert int(equal_wrong.min()) >= 0, "a right candidate was not counted as equal to itself"
        ranks = 1 + self._greater.double() + equal_wrong.double() / 2
        return DirectionRanks(ranks, self._right, self._top_indices, self._top_scores)


def _right_scores(
    text: Tensor, video: Tensor, target: Tensor, scale: float, adjust: tuple[Adjust, Adjust] | None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Text-to-video score of each caption with its video; and video-to-text: of each caption, and the best of each video."""
    raw = torch.cat([pair_scores(text[rows], video[target[rows]], scale=scale) for rows in _blocks(len(text), 4096)])
    captions = torch.arange(len(text), device=text.device)
    own, from_video = (raw, raw) if adjust is None else (a(raw, captions, target) for a in adjust)
    best = torch.full((len(video),), -torch.inf, dtype=torch.float64, device=text.device)
    return own, (from_video, best.scatter_reduce(0, target, from_video, "amax"))


def _count_best(scores: Tensor, best: Tensor, target: Tensor) -> Tensor:
    """How many of each video's own captions have its best score."""
    is_best = (scores == best[target]).long()
    return torch.zeros(len(best), dtype=torch.int64, device=scores.device).scatter_add(0, target, is_best)


def _top_k(tile: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Indices and scores `[rows, min(k, columns)]` of the best, best first, equal scores in order of index."""
    k = min(k, tile.shape[1])
    scores, indices = tile.topk(k, dim=1)
    # topk may take any of those that tie at its edge; such rows are rare and sorted in full.
    tied = torch.count_nonzero(tile >= scores[:, -1:], dim=1) > k
    if bool(tied.any()):
        indices[tied] = tile[tied].argsort(dim=1, descending=True, stable=True)[:, :k]
    indices = indices.sort(dim=1).values
    order = tile.gather(1, indices).argsort(dim=1, descending=True, stable=True)
    indices = indices.gather(1, order)
    return indices, tile.gather(1, indices)


def _blocks(size: int, block_size: int) -> list[slice]:
    return [slice(start, min(start + block_size, size)) for start in range(0, size, block_size)]


def _check(text: Tensor, video: Tensor, target: Tensor) -> None:
    if len(text) == 0 or len(video) == 0:
        raise DataError(f"nothing to rank: {len(text)} captions and {len(video)} videos")
    check_finite(text, [f"caption {i}" for i in range(len(text))], "text")
    check_finite(video, [f"video {i}" for i in range(len(video))], "video")
    if int(target.min()) < 0 or int(target.max()) >= len(video):
        raise DataError(f"captions belong to videos {int(target.min())} to {int(target.max())}, but there are {len(video)}")
    without = (torch.bincount(target, minlength=len(video)) == 0).nonzero()
    if len(without):
        raise DataError(f"video {int(without[0])} has no caption ({len(without)} of {len(video)} have none), so it cannot be a query")
