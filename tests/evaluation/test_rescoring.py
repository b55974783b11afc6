"""Dual softmax and QB-Norm against full matrices."""

import pytest
import torch
from torch import Tensor

from dgl_scale.evaluation.ranks import Adjust, exact_unit, rank_both_directions
from dgl_scale.evaluation.rescoring import dual_softmax, normalised_text_to_video, query_bank_norm

SCALE = 20.0


def features(seed: int, *sizes: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, 11, generator=generator) for size in sizes]


def matrix_ranks(scores: Tensor, right: Tensor) -> list[float]:
    own = scores.gather(1, right[:, None])
    return (1 + (scores > own).sum(1)).tolist()


@pytest.mark.parametrize("block_size", [3, 100])
def test_dual_softmax_is_that_of_the_full_matrix(block_size: int) -> None:
    text, video = features(0, 17, 17)
    target = torch.arange(17)
    adjust = dual_softmax(text, video, scale=SCALE, block_size=block_size)
    ranking = rank_both_directions(text, video, target, scale=SCALE, block_size=block_size, top_k=2, adjust=adjust)
    similarity = exact_unit(text) @ exact_unit(video).T * SCALE
    assert ranking.text_to_video.ranks.tolist() == matrix_ranks(similarity * similarity.softmax(dim=0), target)
    assert ranking.video_to_text.ranks.tolist() == matrix_ranks((similarity * similarity.softmax(dim=1)).T, target)


@pytest.mark.parametrize("block_size", [1, 4, 100])
def test_duplicates_still_tie(block_size: int) -> None:
    features_ = torch.tensor([0.3, -0.2, 0.9]).repeat(9, 1)
    adjust = dual_softmax(features_, features_, scale=SCALE, block_size=block_size)
    ranking = rank_both_directions(features_, features_, torch.arange(9), scale=SCALE, block_size=block_size, top_k=2, adjust=adjust)
    assert ranking.text_to_video.ranks.tolist() == [5.0] * 9
    assert ranking.video_to_text.ranks.tolist() == [5.0] * 9


@pytest.mark.parametrize(("block_size", "threshold"), [(3, 1), (100, 2), (5, 10_000)])
def test_query_bank_norm_is_that_of_the_full_matrix(block_size: int, threshold: int) -> None:
    beta, top_k = 5.0, 2
    text, video, bank = features(1, 19, 13, 29)
    target = torch.arange(19) % 13
    is_normalised, log_sums = query_bank_norm(text, video, bank, beta=beta, top_k=top_k, threshold=threshold, block_size=block_size)
    adjusts: tuple[Adjust, Adjust] = (normalised_text_to_video(is_normalised, log_sums, beta=beta, scale=SCALE), lambda s, t, v: s)
    ranking = rank_both_directions(text, video, target, scale=SCALE, block_size=block_size, top_k=3, adjust=adjusts)

    cosine, bank_cosine = exact_unit(text) @ exact_unit(video).T, exact_unit(bank) @ exact_unit(video).T
    activated = torch.bincount(bank_cosine.topk(top_k, dim=1).indices.flatten(), minlength=13) >= threshold
    inverted = (beta * cosine).exp() / (beta * bank_cosine).exp().sum(dim=0)
    expected = torch.where(activated[cosine.argmax(dim=1)][:, None], inverted, cosine)
    assert ranking.text_to_video.ranks.tolist() == matrix_ranks(expected, target)
    assert bool(is_normalised.any()) == (threshold < 10_000)
