"""Missing videos count as misses, at the last place of the whole gallery."""

import pytest
import torch

from dgl_scale.evaluation.missing_videos import count_missing, pessimistic_metrics
from dgl_scale.evaluation.ranks import rank_both_directions


def test_missing_videos_are_misses() -> None:
    video = torch.eye(4)
    text = torch.cat([video, video])  # two captions a video, all of them found at once
    ranking = rank_both_directions(text, video, torch.arange(8) % 4, scale=1.0, block_size=3, top_k=1)
    assert pessimistic_metrics(ranking, 0)["text_to_video"]["R@1"] == 100.0
    found = pessimistic_metrics(ranking, 1)
    # Of 10 captions 8 are found; those of the missing video stand at place 5 of 5 videos.
    assert found["text_to_video"]["R@1"] == 80.0
    assert found["text_to_video"]["R@5"] == 100.0
    assert found["text_to_video"]["MnR"] == pytest.approx((8 + 2 * 5) / 10)
    assert found["video_to_text"]["R@5"] == 80.0
    assert found["video_to_text"]["MnR"] == pytest.approx((4 + 10) / 5)


def test_failed_videos_are_missing_too() -> None:
    assert count_missing({"annotated": 10, "found": 9, "missing": 1, "failed": 2}, 7) == 3
    assert count_missing({}, 7) == 0
