"""What is computed over all pairs of captions and videos: in this process, or by Ray tasks (`ranking_tasks`); bitwise the same."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dgl_scale.evaluation.adjust import Adjust
from dgl_scale.evaluation.features import Features
from dgl_scale.evaluation.own_captions import own_caption_standing
from dgl_scale.evaluation.pair_sums import count_best, log_sums, log_sums_of_both
from dgl_scale.evaluation.ranks import Ranking, own_scores, rank_both_directions


@dataclass(frozen=True)
class LabelledFeatures:
    """Captions and the videos that they describe.

    Attributes:
        text: `[Q, E]`.
        video: `[V, E]`.
        target: int64 `[Q]`, the video of each caption.
    """

    text: Tensor
    video: Tensor
    target: Tensor


def labelled(features: Features) -> LabelledFeatures:
    """Of the features of a split, what is ranked."""
    return LabelledFeatures(features.text, features.video, features.video_index)


class Pairwise(Protocol):
    """Computes over all pairs."""

    def rank(self, features: LabelledFeatures, *, scale: float, top_k: int, adjust: tuple[Adjust, Adjust] | None = None) -> Ranking:
        """As `ranks.rank_both_directions`."""

    def log_sums(self, rows: Tensor, columns: Tensor, *, scale: float) -> Tensor:
        """As `pair_sums.log_sums`."""

    def log_sums_of_both(self, rows: Tensor, columns: Tensor, *, scale: float) -> tuple[Tensor, Tensor]:
        """As `pair_sums.log_sums_of_both`."""

    def count_best(self, queries: Tensor, candidates: Tensor, *, top_k: int) -> Tensor:
        """As `pair_sums.count_best`."""

    def own_caption_standing(self, features: LabelledFeatures) -> tuple[Tensor, Tensor]:
        """Int64 `[Q]` each: of each caption, as answer to its own video, how many captions score higher, and how many equally."""


@dataclass(frozen=True)
class InProcess:
    """In this process, tile by tile.

    Attributes:
        block_size: as of `ranks.rank_both_directions`.
    """

    block_size: int

    def rank(self, features: LabelledFeatures, *, scale: float, top_k: int, adjust: tuple[Adjust, Adjust] | None = None) -> Ranking:
        """As of `Pairwise`, like all that follow."""
        text, video, target = features.text, features.video, features.target
        return rank_both_directions(text, video, target, scale=scale, block_size=self.block_size, top_k=top_k, adjust=adjust)

    def log_sums(self, rows: Tensor, columns: Tensor, *, scale: float) -> Tensor:
        """Memory is that of a few tiles."""
        return log_sums(rows, columns, scale=scale)

    def log_sums_of_both(self, rows: Tensor, columns: Tensor, *, scale: float) -> tuple[Tensor, Tensor]:
        """Memory is that of a few tiles, and of a column of sums for every 1,024 of 20,480 rows."""
        return log_sums_of_both(rows, columns, scale=scale)

    def count_best(self, queries: Tensor, candidates: Tensor, *, top_k: int) -> Tensor:
        """Memory is that of a ranking."""
        return count_best(queries, candidates, top_k=top_k)

    def own_caption_standing(self, features: LabelledFeatures) -> tuple[Tensor, Tensor]:
        """Memory is that of a few tiles."""
        own = own_scores(features.text, features.video, features.target, scale=1.0)
        return in_order([own_caption_standing(features.video, 0, features.text, own, features.target)], len(own))


def in_order(parts: list[tuple[Tensor, Tensor, Tensor]], size: int) -> tuple[Tensor, Tensor]:
    """What `own_caption_standing` found for parts of the videos, in the order of all `size` captions."""
    captions, *found = (torch.cat(column) for column in zip(*parts, strict=True))
    above, equal = (torch.zeros(size, dtype=torch.int64).scatter(0, captions.cpu(), column) for column in found)
    return above, equal
