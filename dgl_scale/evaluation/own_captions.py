"""Where each of a video's own captions stands among all captions: what mAP and nDCG need beyond the rank of the best one."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dgl_scale.evaluation.unit_vectors import exact_unit

Ints = NDArray[np.int64]

_SCORES_AT_ONCE = 4_000_000


def own_caption_standing(text: Tensor, video: Tensor, target: Tensor) -> tuple[Ints, Ints]:
    """Of each caption, among all captions as answers to its own video: how many score higher, and how many equally.

    Exact, as the ranking is. The whole matrix is computed, a few videos at a time.

    Args:
        text: `[Q, E]`, `video`: `[V, E]`.
        target: int64 `[Q]`, the video of each caption.

    Returns:
        int64 `[Q]`, captions above; int64 `[Q]`, captions that tie, itself included.
    """
    above, equal = np.zeros(len(target), np.int64), np.zeros(len(target), np.int64)
    order = target.argsort(stable=True)
    ends = torch.bincount(target, minlength=len(video)).cumsum(0).tolist()
    step = max(1, _SCORES_AT_ONCE // len(text))
    units = exact_unit(text)
    for start in range(0, len(video), step):
        scores = (exact_unit(video[start : start + step]) @ units.T).cpu().numpy()  # [step, Q]
        for row, column in enumerate(scores, start):
            own = order[ends[row - 1] if row else 0 : ends[row]].cpu().numpy()
            above[own], equal[own] = standing(column, own)
    return above, equal


def standing(scores: NDArray[np.floating], own: Ints) -> tuple[Ints, Ints]:
    """How many of `scores` `[Q]` are above, and how many equal, those at the places `own`."""
    rising = np.sort(scores)
    first, end = np.searchsorted(rising, scores[own], "left"), np.searchsorted(rising, scores[own], "right")
    return len(scores) - end, end - first
