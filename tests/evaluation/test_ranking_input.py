"""What cannot be ranked is refused by name."""

import pytest
import torch
from torch import Tensor

from dgl_scale.errors import DataError
from dgl_scale.evaluation.ranking_input import check_finite
from dgl_scale.evaluation.ranks import Ranking, rank_both_directions


def rank(text: Tensor, video: Tensor, target: Tensor) -> Ranking:
    return rank_both_directions(text, video, target, scale=100.0, block_size=7, top_k=3)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_features_are_refused_by_name(value: float) -> None:
    features = torch.ones(3, 2)
    features[1, 0] = value
    with pytest.raises(DataError, match=r"video feature of clip_b is not finite \(1 of 3"):
        check_finite(features, ["clip_a", "clip_b", "clip_c"], "video")
    with pytest.raises(DataError, match="caption 1 is not finite"):
        rank(features, torch.ones(3, 2), torch.arange(3))
    with pytest.raises(DataError, match="video 1 is not finite"):
        rank(torch.ones(3, 2), features, torch.arange(3))


@pytest.mark.parametrize(
    ("num_texts", "num_videos", "target", "message"),
    [(2, 3, [0, 2], "video 1 has no caption"), (2, 2, [0, 2], "videos 0 to 2, but there are 2"), (0, 2, [], "nothing to rank: 0 captions")],
)
def test_impossible_targets_are_refused(num_texts: int, num_videos: int, target: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        rank(torch.ones(num_texts, 2), torch.ones(num_videos, 2), torch.tensor(target, dtype=torch.int64))
