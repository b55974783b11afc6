"""Slices become a whole: order, offsets, equal captions, refusals."""

import pytest
import torch

from dgl_scale.errors import DataError
from dgl_scale.evaluation.features import Features, join_features


def part(keys: list[str], captions_per_video: list[int], seed: int) -> Features:
    generator = torch.Generator().manual_seed(seed)
    video_index = torch.repeat_interleave(torch.arange(len(keys)), torch.tensor(captions_per_video, dtype=torch.int64))
    return Features(
        video=torch.randn(len(keys), 5, generator=generator),
        text=torch.randn(len(video_index), 5, generator=generator),
        video_index=video_index,
        tokens=torch.randint(1, 10_000, (len(video_index), 7), generator=generator),
        keys=tuple(keys),
        scale=100.0,
    )


def test_slices_are_joined_in_order_and_empty_ones_ignored() -> None:
    first, empty, second = part(["a", "b"], [2, 1], 0), part([], [], 1), part(["c"], [3], 2)
    joined = join_features([first, empty, second])
    assert joined.keys == ("a", "b", "c")
    assert joined.video_index.tolist() == [0, 0, 1, 2, 2, 2]
    assert torch.equal(joined.video, torch.cat([first.video, second.video]))
    assert torch.equal(joined.text, torch.cat([first.text, second.text]))


def test_equal_captions_get_the_feature_of_the_first() -> None:
    first, second = part(["a"], [2], 0), part(["b", "c"], [1, 1], 1)
    second.tokens[1] = first.tokens[1]
    second.text[1] = first.text[1] + 1e-7
    joined = join_features([first, second])
    assert torch.equal(joined.text[3], first.text[1])
    assert torch.equal(joined.text[2], second.text[0])


def test_bad_features_name_their_sample() -> None:
    video, text = part(["a", "b"], [1, 2], 0), part(["a", "b"], [1, 2], 0)
    video.video[1, 3] = float("nan")
    text.text[2, 0] = float("inf")
    with pytest.raises(DataError, match="video feature of b is not finite"):
        join_features([video])
    with pytest.raises(DataError, match="text feature of a caption of b is not finite"):
        join_features([text])


def test_no_videos_and_doubled_keys_are_refused() -> None:
    with pytest.raises(DataError, match="no video to evaluate"):
        join_features([part([], [], 0)])
    with pytest.raises(DataError, match="key a occurs 2 times"):
        join_features([part(["a"], [1], 0), part(["a"], [1], 1)])
