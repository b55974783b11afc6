"""Where each of a video's own captions stands among all captions: what mAP and nDCG need beyond the rank of the best one."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dgl_scale.evaluation.ranking_input import Parts, in_parts
from dgl_scale.evaluation.ranks import UNITS_AT_ONCE
from dgl_scale.evaluation.unit_vectors import exact_unit

Ints = NDArray[np.int64]

_VIDEOS_AT_ONCE = 128


def own_caption_standing(video: Tensor, start: int, text: Tensor | Parts, own: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of captions, among all captions as answers to their own video: how many score higher, and how many equally.

    Exact, as the ranking is. The whole matrix is computed, a tile at a time.

    Args:
        video: `[n, E]`, videos `start` to `start + n`.
        text: all captions, `[Q, E]`, whole or in parts, of which one is held at a time.
        own: float64 `[Q]`, the cosine of each caption with its own video, see `ranks.own_scores`.
        target: int64 `[Q]`, the video of each caption.

    Returns:
        int64 `[q]`, the captions of these videos, and of each of them the captions above and those that tie, itself included.
    """
    rows = target - start
    captions = ((rows >= 0) & (rows < len(video))).nonzero()[:, 0]
    captions = captions[rows[captions].argsort(stable=True)]
    ends = [0, *torch.bincount(rows[captions], minlength=len(video)).cumsum(0).tolist()]
    scores = own[captions].cpu().numpy()
    above, equal = np.zeros(len(captions), np.int64), np.zeros(len(captions), np.int64)
    for part in in_parts(text):
        for block in torch.split(part, UNITS_AT_ONCE):
            units = exact_unit(block).T
            for first in range(0, len(video), _VIDEOS_AT_ONCE):
                tile = (exact_unit(video[first : first + _VIDEOS_AT_ONCE]) @ units).cpu().numpy()
                for row, column in enumerate(tile, first):
                    some = slice(ends[row], ends[row + 1])
                    found = standing(column, scores[some])
                    above[some] += found[0]
                    equal[some] += found[1]
    return captions, torch.from_numpy(above), torch.from_numpy(equal)


def standing(scores: NDArray[np.floating], own: NDArray[np.floating]) -> tuple[Ints, Ints]:
    """How many of `scores` are above, and how many equal, each of `own`."""
    rising = np.sort(scores)
    first, end = np.searchsorted(rising, own, "left"), np.searchsorted(rising, own, "right")
    return len(scores) - end, end - first
