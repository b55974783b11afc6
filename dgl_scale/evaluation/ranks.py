"""Exact ranks of both retrieval directions from features, in tiles: the similarity matrix is never held.

Rank of a query = 1 + candidates that score strictly higher than the right one + half of those that tie with
it (docs/metrics.md). Ties are decided in exact arithmetic, see `unit_vectors`.

Features may come in parts, and captions may be ranked part by part in several processes: a part needs the videos
(one part of them at a time), three numbers a query of `RightScores`, and no other caption.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from dgl_scale.errors import DataError
from dgl_scale.evaluation.adjust import Adjust
from dgl_scale.evaluation.adjusted_filter import AdjustedDirection, filter_adjusted
from dgl_scale.evaluation.ranking_filter import filter_ranks
from dgl_scale.evaluation.ranking_input import Parts, blocks, check_ranking_input, in_parts
from dgl_scale.evaluation.tile_queries import Direction, Found
from dgl_scale.evaluation.unit_vectors import exact_unit, integer_unit, pair_scores

_PAIRS_AT_ONCE = 512
UNITS_AT_ONCE = 20_480
"""Texts and videos whose units are held at once on a CPU: 42 MB each for 512 components, and as much again for a float32 copy."""


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


@dataclass(frozen=True)
class RightScores:
    """What the candidates of a query are compared with.

    Attributes:
        own: float64 `[Q]`, text-to-video: the score of each caption with its video.
        best: float64 `[V]`, video-to-text: the best score of each video's own captions.
        num_best: int64 `[V]`, how many of its own captions have that score.
    """

    own: Tensor
    best: Tensor
    num_best: Tensor


@dataclass
class Standing:
    """What is known of `N` queries after some of their candidates.

    Attributes:
        greater: int64 `[N]`, candidates that score above the right one.
        equal: int64 `[N]`, candidates that score as the right one, itself included.
        top_indices: int64 `[N, k]`, best candidates so far, best first; -1 where there were fewer.
        top_scores: float64 `[N, k]`; minus infinity where there were fewer.
    """

    greater: Tensor
    equal: Tensor
    top_indices: Tensor
    top_scores: Tensor

    @classmethod
    def empty(cls, size: int, top_k: int, device: torch.device) -> "Standing":
        """Of no candidates."""
        zeros = torch.zeros(size, dtype=torch.int64, device=device)
        scores = torch.full((size, top_k), -torch.inf, dtype=torch.float64, device=device)
        return cls(zeros, zeros.clone(), torch.full((size, top_k), -1, dtype=torch.int64, device=device), scores)

    def add_later(self, other: "Standing", queries: slice = slice(None)) -> None:
        """Take in what `queries` met among later candidates (of higher index)."""
        self.greater[queries] += other.greater
        self.equal[queries] += other.equal
        scores = torch.cat([self.top_scores[queries], other.top_scores], dim=1)  # [N, 2k]
        # Kept ones stand first and have lower indices, so a stable sort keeps the order of equal scores.
        order = scores.argsort(dim=1, descending=True, stable=True)[:, : self.top_scores.shape[1]]
        indices = torch.cat([self.top_indices[queries], other.top_indices], dim=1)
        self.top_scores[queries], self.top_indices[queries] = scores.gather(1, order), indices.gather(1, order)

    def ranks(self, right: Tensor, num_right: Tensor) -> DirectionRanks:
        """Ranks after all candidates, of which `num_right` `[N]` are right and score `right` `[N]`."""
        equal_wrong = self.equal - num_right
        assert int(equal_wrong.min()) >= 0, "a right candidate was not counted as equal to itself"
        return DirectionRanks(1 + self.greater.double() + equal_wrong.double() / 2, right, self.top_indices, self.top_scores)


@dataclass(frozen=True)
class PartialRanking:
    """What a part of the captions found.

    Attributes:
        start: index of the part's first caption.
        text_to_video: of the part's captions, after all videos.
        video_to_text: of all videos, after the part's captions.
    """

    start: int
    text_to_video: Standing
    video_to_text: Standing


def rank_both_directions(
    text: Tensor | Parts,
    video: Tensor | Parts,
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

    `ranking_tasks` does the same on several workers, part by part of the captions.

    Args:
        text: `[Q, E]`, of any length (cosine is what counts), whole or in parts.
        video: `[V, E]`, whole or in parts.
        target: int64 `[Q]`, the video that each caption describes.
        scale: scores are `scale` times the cosine.
        block_size: where scores are adjusted, and on a GPU, tiles are `block_size` by `block_size`; bounds memory, never
            changes the result. Else tiles have the size that suits a CPU's cache.
        top_k: best candidates to keep, at most as many as there are.

    Raises:
        DataError: a feature is not finite, a target is out of range, or a video has no caption.
    """
    texts, videos = in_parts(text), in_parts(video)
    num_videos = check_ranking_input(texts, videos, target)
    if len(texts) == 1 and len(videos) == 1 and max(len(texts[0]), num_videos) <= UNITS_AT_ONCE:
        texts, videos = (integer_unit(texts[0]),), (integer_unit(videos[0]),)  # once for right and for all scores
    right = right_scores(own_scores(texts, videos, target, scale=scale), target, num_videos, adjust=adjust)

    def rank_parts() -> Iterator[PartialRanking]:
        start = 0
        for part in texts:
            yield rank_text_part(part, start, videos, right, scale=scale, block_size=block_size, top_k=top_k, adjust=adjust)
            start += len(part)

    return merge_parts(rank_parts(), right)


def own_scores(text: Tensor | Parts, video: Tensor | Parts, target: Tensor, *, scale: float) -> Tensor:
    """Float64 `[Q]`: the score of each caption with its own video; a worker that has both needs nothing else.

    Args:
        text: `[Q, E]`, `video`: `[V, E]`, whole or in parts.
        target: int64 `[Q]`, rows of `video`.
        scale: as in the ranking.
    """
    own = torch.empty(len(target), dtype=torch.float64, device=target.device)
    first_video = 0
    for videos in in_parts(video):
        first_text = 0
        for texts in in_parts(text):
            rows = (target[first_text : first_text + len(texts)] - first_video).to(texts.device)
            inside = ((rows >= 0) & (rows < len(videos))).nonzero()[:, 0]
            for some in torch.split(inside, _PAIRS_AT_ONCE):
                own[first_text + some] = pair_scores(texts[some], videos[rows[some]], scale=scale)
            first_text += len(texts)
        first_video += len(videos)
    return own


def right_scores(own: Tensor, target: Tensor, num_videos: int, *, adjust: tuple[Adjust, Adjust] | None = None) -> RightScores:
    """What candidates are compared with, from `own_scores` of all captions.

    Args:
        own: float64 `[Q]`.
        target: int64 `[Q]`, the video that each caption describes.
        num_videos: `V`.
        adjust: as in `rank_both_directions`.
    """
    captions = torch.arange(len(own), device=own.device)
    own, from_video = (own, own) if adjust is None else (a(own, captions, target) for a in adjust)
    best = torch.full((num_videos,), -torch.inf, dtype=torch.float64, device=own.device).scatter_reduce(0, target, from_video, "amax")
    num_best = torch.zeros(num_videos, dtype=torch.int64, device=own.device).scatter_add(0, target, (from_video == best[target]).long())
    return RightScores(own, best, num_best)


def rank_text_part(
    text: Tensor,
    start: int,
    video: Tensor | Parts,
    right: RightScores,
    *,
    scale: float,
    block_size: int,
    top_k: int,
    adjust: tuple[Adjust, Adjust] | None = None,
) -> PartialRanking:
    """Rank a part of the captions against all videos; needs no other caption, and one part of the videos at a time.

    Args:
        text: `[n, E]`, captions `start` to `start + n`.
        video: all videos, whole or in parts.
        right: of all captions and videos.
        scale: as in `rank_both_directions`, like all that follow; the same for every part.
    """
    partial = PartialRanking(
        start,
        Standing.empty(len(text), min(top_k, len(right.best)), text.device),
        Standing.empty(len(right.best), min(top_k, len(right.own)), text.device),
    )
    # Of changed scores, the filter finds the first candidate only.
    has_filter = (adjust is None or top_k == 1) and text.device.type == "cpu" and _float32_is_float32() and scale > 0
    first = 0
    for part in in_parts(video):
        if has_filter:
            _rank_by_filter(text, part, first, right, partial, scale=scale, adjust=adjust)
        else:
            _rank_in_float64(text, part, first, right, partial, scale=scale, block_size=block_size, adjust=adjust)
        first += len(part)
    return partial


def merge_parts(parts: Iterable[PartialRanking], right: RightScores) -> Ranking:
    """The ranking of all captions from those of the parts, in their order; the same however they were cut.

    Of the parts that were taken in, only what they say of their own captions is kept.

    Raises:
        DataError: a part is missing, or does not come where the one before ends.
    """
    to_video: list[Standing] = []
    to_text: Standing | None = None
    end = 0
    for part in parts:
        if part.start != end:
            raise DataError(f"captions {part.start} and following come where those from {end} on are due")
        end += len(part.text_to_video.greater)
        to_video.append(part.text_to_video)
        to_text = to_text or Standing.empty(len(right.best), part.video_to_text.top_scores.shape[1], right.best.device)
        to_text.add_later(part.video_to_text)
    if end != len(right.own) or to_text is None:
        raise DataError(f"parts of {end} captions do not make up all {len(right.own)} captions")
    found = Standing(*(torch.cat([getattr(part, field.name) for part in to_video]) for field in fields(Standing)))
    return Ranking(found.ranks(right.own, torch.ones_like(found.equal)), to_text.ranks(right.best, right.num_best))


def _rank_by_filter(
    text: Tensor,
    video: Tensor,
    first: int,
    right: RightScores,
    partial: PartialRanking,
    *,
    scale: float,
    adjust: tuple[Adjust, Adjust] | None,
) -> None:
    """Let `partial` meet the videos from `first` on; see `ranking_filter` and `adjusted_filter`."""
    to_video, to_text = partial.text_to_video, partial.video_to_text
    for columns in blocks(len(video), UNITS_AT_ONCE):
        video_units, videos = integer_unit(video[columns]), _moved(columns, first)
        for rows in blocks(len(text), UNITS_AT_ONCE):
            text_units, texts = integer_unit(text[rows]), _moved(rows, partial.start)
            if adjust is None:
                found = filter_ranks(
                    text_units,
                    video_units,
                    scale=scale,
                    to_video=_direction(right.own[texts], to_video, rows),
                    to_text=_direction(right.best[videos], to_text, videos),
                )
            else:
                found = filter_adjusted(
                    text_units,
                    video_units,
                    scale=scale,
                    to_video=AdjustedDirection(adjust[0], right.own[texts], texts.start),
                    to_text=AdjustedDirection(adjust[1], right.best[videos], videos.start),
                )
            to_video.add_later(_from_found(found[0], videos.start), rows)
            to_text.add_later(_from_found(found[1], texts.start), videos)


def _direction(right: Tensor, standing: Standing, queries: slice) -> Direction:
    known = standing.top_scores[queries]
    return Direction(right.numpy(), known[:, -1].numpy(), known.shape[1])


def _from_found(found: Found, first: int) -> Standing:
    indices = torch.from_numpy(found.top_indices)
    return Standing(
        torch.from_numpy(found.greater),
        torch.from_numpy(found.equal),
        torch.where(indices >= 0, indices + first, indices),
        torch.from_numpy(found.top_scores),
    )


def _float32_is_float32() -> bool:
    """Whether products of float32 are not allowed to round their factors to fewer bits, for which the filter has no bound."""
    return torch.get_float32_matmul_precision() == "highest"


def _rank_in_float64(
    text: Tensor,
    video: Tensor,
    first: int,
    right: RightScores,
    partial: PartialRanking,
    *,
    scale: float,
    block_size: int,
    adjust: tuple[Adjust, Adjust] | None,
) -> None:
    """Let `partial` meet the videos from `first` on, by exact products throughout."""
    to_video, to_text = partial.text_to_video, partial.video_to_text
    own = right.own[partial.start : partial.start + len(text)]
    for columns in blocks(len(video), block_size):
        video_units, videos = exact_unit(video[columns]), _moved(columns, first)
        for rows in blocks(len(text), block_size):
            tile, texts = (exact_unit(text[rows]) @ video_units.T) * scale, _moved(rows, partial.start)  # [rows, columns]
            tiles = (tile, tile) if adjust is None else tuple(a(tile, *_indices(texts, videos, text.device)) for a in adjust)
            to_video.add_later(_standing(tiles[0], own[rows], videos.start, to_video.top_scores[rows]), rows)
            to_text.add_later(_standing(tiles[1].T, right.best[videos], texts.start, to_text.top_scores[videos]), videos)


def _standing(tile: Tensor, right: Tensor, first: int, known_top: Tensor) -> Standing:
    """What the queries of a tile `[queries, candidates]` meet in it; `first` is the index of its first candidate."""
    greater = torch.count_nonzero(tile > right[:, None], dim=1)
    equal = torch.count_nonzero(tile == right[:, None], dim=1)
    standing = Standing.empty(len(tile), known_top.shape[1], tile.device)
    standing.greater, standing.equal = greater, equal
    # Candidates that tie with the last kept one come later and so stay out: strictly greater is right.
    rows = (tile.amax(dim=1) > known_top[:, -1]).nonzero()[:, 0]
    if len(rows) > 0:
        indices, scores = _top_k(tile[rows], known_top.shape[1])
        standing.top_indices[rows, : indices.shape[1]] = indices + first
        standing.top_scores[rows, : indices.shape[1]] = scores
    return standing


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


def _moved(rows: slice, first: int) -> slice:
    return slice(first + rows.start, first + rows.stop)


def _indices(texts: slice, videos: slice, device: torch.device) -> tuple[Tensor, Tensor]:
    return (
        torch.arange(texts.start, texts.stop, device=device)[:, None],
        torch.arange(videos.start, videos.stop, device=device)[None, :],
    )
