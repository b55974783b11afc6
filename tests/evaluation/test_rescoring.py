"""Dual softmax and QB-Norm against full matrices."""

import pytest
import torch
from torch import Tensor

from dgl_scale.config import QueryBankConfig
from dgl_scale.errors import ConfigError
from dgl_scale.evaluation.metrics import retrieval_metrics
from dgl_scale.evaluation.pairwise import InProcess, LabelledFeatures
from dgl_scale.evaluation.ranks import rank_both_directions
from dgl_scale.evaluation.rescoring import BankedFeatures, Unchanged, bank_rows, dual_softmax, qb_norm_figures
from dgl_scale.evaluation.unit_vectors import exact_unit

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
    adjust = dual_softmax(text, video, scale=SCALE, pairwise=InProcess(block_size))
    ranking = rank_both_directions(text, video, target, scale=SCALE, block_size=block_size, top_k=2, adjust=adjust)
    similarity = exact_unit(text) @ exact_unit(video).T * SCALE
    assert ranking.text_to_video.ranks.tolist() == matrix_ranks(similarity * similarity.softmax(dim=0), target)
    assert ranking.video_to_text.ranks.tolist() == matrix_ranks((similarity * similarity.softmax(dim=1)).T, target)


@pytest.mark.parametrize("block_size", [1, 4, 100])
def test_duplicates_still_tie(block_size: int) -> None:
    features_ = torch.tensor([0.3, -0.2, 0.9]).repeat(9, 1)
    adjust = dual_softmax(features_, features_, scale=SCALE, pairwise=InProcess(block_size))
    ranking = rank_both_directions(features_, features_, torch.arange(9), scale=SCALE, block_size=block_size, top_k=2, adjust=adjust)
    assert ranking.text_to_video.ranks.tolist() == [5.0] * 9
    assert ranking.video_to_text.ranks.tolist() == [5.0] * 9


@pytest.mark.parametrize(("block_size", "threshold"), [(3, 1), (100, 2), (5, 10_000)])
def test_query_bank_norm_is_that_of_the_full_matrix(block_size: int, threshold: int) -> None:
    beta, top_k = 5.0, 2
    text, video, bank = features(1, 19, 13, 29)
    target = torch.arange(19) % 13
    config = QueryBankConfig(k=top_k, theta=threshold)
    banked = BankedFeatures(LabelledFeatures(text, video, target), bank, config, scale=SCALE, pairwise=InProcess(block_size))
    adjust = (banked.adjust(beta), Unchanged())
    ranking = rank_both_directions(text, video, target, scale=SCALE, block_size=block_size, top_k=3, adjust=adjust)

    cosine, bank_cosine = exact_unit(text) @ exact_unit(video).T, exact_unit(bank) @ exact_unit(video).T
    activated = torch.bincount(bank_cosine.topk(top_k, dim=1).indices.flatten(), minlength=13) >= threshold
    inverted = (beta * cosine).exp() / (beta * bank_cosine).exp().sum(dim=0)
    expected = torch.where(activated[cosine.argmax(dim=1)][:, None], inverted, cosine)
    assert ranking.text_to_video.ranks.tolist() == matrix_ranks(expected, target)
    assert bool(banked.is_normalised.any()) == (threshold < 10_000)


def hubs(seed: int) -> tuple[LabelledFeatures, Tensor]:
    """Captions near their videos, one video that is near to everything, and a bank that shows it."""
    text, video, bank = features(seed, 40, 40, 200)
    hub = torch.full((11,), 1.0)
    video = text + 0.9 * video
    video[0] = hub
    return LabelledFeatures(text + 0.9 * hub, video, torch.arange(40)), bank + 0.9 * hub


def test_beta_is_chosen_on_validation_and_never_on_test() -> None:
    config = QueryBankConfig(betas=(0.5, 2.0, 5.0, 20.0), theta=1, k=1)
    (validation, bank), (test, _) = hubs(3), hubs(4)
    figures = qb_norm_figures(test, bank, validation, config, scale=SCALE, pairwise=InProcess(16))
    banked = BankedFeatures(validation, bank, config, scale=SCALE, pairwise=InProcess(7))
    metrics = {beta: banked.metrics(beta) for beta in config.betas}
    assert len({one["R@1"] for one in metrics.values()}) > 1, "this world does not tell betas apart"
    assert figures["beta"] == max(config.betas, key=lambda beta: (metrics[beta]["R@1"], -metrics[beta]["MnR"]))
    assert figures["text_to_video"] == BankedFeatures(test, bank, config, scale=SCALE, pairwise=InProcess(100)).metrics(figures["beta"])
    assert (figures["beta_chosen_on"], figures["bank"], figures["k"], figures["theta"]) == ("validation", 200, 1, 1)
    plain = rank_both_directions(test.text, test.video, test.target, scale=SCALE, block_size=16, top_k=1)
    assert figures["text_to_video"]["R@1"] > retrieval_metrics(plain.text_to_video.ranks.numpy())["R@1"]


def test_one_beta_needs_no_validation_and_several_do() -> None:
    test, bank = hubs(4)
    figures = qb_norm_figures(test, bank, None, QueryBankConfig(betas=(5.0,)), scale=SCALE, pairwise=InProcess(16))
    assert (figures["beta"], figures["beta_chosen_on"]) == (5.0, "config")
    with pytest.raises(ConfigError, match="no validation split to choose by"):
        qb_norm_figures(test, bank, None, QueryBankConfig(), scale=SCALE, pairwise=InProcess(16))


def test_a_large_bank_is_thinned_evenly() -> None:
    assert bank_rows(5, 10) == [0, 1, 2, 3, 4]
    assert bank_rows(10, 4) == [0, 2, 5, 7]
