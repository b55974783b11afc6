"""Metrics by hand-made tables, intervals against a literal resampling loop."""

import numpy as np
import pytest
import torch

from dgl_scale.errors import DataError
from dgl_scale.evaluation.metrics import (
    average_precisions,
    bootstrap_interval,
    discounted_gains,
    mean_with_interval,
    metrics_with_missing,
    pair_accuracy,
    paired_bootstrap,
    recall_sum,
    recall_sum_interval,
    retrieval_metrics,
)
from dgl_scale.evaluation.pairwise import InProcess, LabelledFeatures
from dgl_scale.evaluation.ranks import rank_both_directions
from dgl_scale.evaluation.unit_vectors import exact_unit
from dgl_scale.torchvision_import import import_open_clip


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        ([1.0, 1.0, 1.0], {"R@1": 100, "R@5": 100, "R@10": 100, "R@50": 100, "MdR": 1, "MnR": 1}),
        ([1.0, 1.5, 5.0, 10.0, 11.5], {"R@1": 20, "R@5": 60, "R@10": 80, "R@50": 100, "MdR": 5, "MnR": 5.8}),
        ([2.0, 50.5], {"R@1": 0, "R@5": 50, "R@10": 50, "R@50": 50, "MdR": 26.25, "MnR": 26.25}),
    ],
)
def test_metrics_of_ranks(ranks: list[float], expected: dict[str, float]) -> None:
    assert retrieval_metrics(np.array(ranks)) == pytest.approx(expected)


@pytest.mark.parametrize("ranks", [[], [1.0, float("nan")], [0.5], [float("inf")]])
def test_impossible_ranks_are_refused(ranks: list[float]) -> None:
    with pytest.raises(DataError):
        retrieval_metrics(np.array(ranks))
    with pytest.raises(DataError):
        bootstrap_interval(np.array(ranks), np.arange(len(ranks)), samples=3, seed=0)


def test_intervals_are_those_of_resampled_videos() -> None:
    generator = np.random.default_rng(2)
    groups = generator.integers(0, 23, 71) * 10
    ranks = generator.integers(1, 30, 71) + generator.integers(0, 2, 71) / 2
    samples, seed = 130, 5
    interval = bootstrap_interval(ranks, groups, samples=samples, seed=seed)

    videos = np.unique(groups)
    draws = np.random.default_rng(seed)
    drawn = []
    for _ in range(samples):
        weights = draws.multinomial(len(videos), np.full(len(videos), 1 / len(videos)))
        resample = [r for video, weight in zip(videos, weights, strict=True) for r in ranks[groups == video] for _ in range(weight)]
        drawn.append(retrieval_metrics(np.array(resample)))
    for name, bounds in interval.items():
        assert bounds == pytest.approx(list(np.percentile([d[name] for d in drawn], (2.5, 97.5))))


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for trial in range(100):
        ranks = np.where(generator.random(200) < 0.4, 1.0, 7.0)
        low, high = bootstrap_interval(ranks, np.arange(200), samples=200, seed=trial)["R@1"]
        covered += low <= 40 <= high
    assert 85 <= covered <= 100


def test_captions_of_one_video_are_not_independent() -> None:
    ranks = np.repeat(np.where(np.random.default_rng(0).random(50) < 0.5, 1.0, 9.0), 20)
    by_video = bootstrap_interval(ranks, np.repeat(np.arange(50), 20), samples=400, seed=0)["R@1"]
    by_caption = bootstrap_interval(ranks, np.arange(1000), samples=400, seed=0)["R@1"]
    assert by_video[1] - by_video[0] > 3 * (by_caption[1] - by_caption[0])


def test_paired_difference() -> None:
    worse = np.full(60, 2.0)
    better = np.where(np.arange(60) % 2 == 0, 1.0, 3.0)
    result = paired_bootstrap(better, worse, np.arange(60), samples=500, seed=0)
    assert result.difference == 50
    assert 0 < result.low < 50 < result.high
    assert result.p_value == pytest.approx(2 / 501)
    same = paired_bootstrap(better, better, np.arange(60), samples=500, seed=0)
    assert (same.difference, same.low, same.high, same.p_value) == (0, 0, 0, 1)
    with pytest.raises(DataError, match="60 queries with 59"):
        paired_bootstrap(better, worse[:59], np.arange(60), samples=5, seed=0)


def test_pair_accuracy_counts_ties_half_and_is_chance_for_a_constant() -> None:
    right, wrong = np.array([3.0, 1.0, 2.0, 2.0]), np.array([1.0, 3.0, 2.0, 1.0])
    result = pair_accuracy(right, wrong, np.array([0, 0, 1, 1]), samples=200, seed=0)
    assert result["accuracy"] == 62.5
    assert result["interval"] == [50, 75]
    assert pair_accuracy(right, right, np.arange(4), samples=20, seed=0) == {"accuracy": 50, "interval": [50, 50]}
    with pytest.raises(DataError):
        pair_accuracy(np.array([np.nan]), np.array([1.0]), np.array([0]), samples=2, seed=0)


def test_recall_sum_and_its_interval_by_resampled_videos() -> None:
    generator = np.random.default_rng(4)
    target = np.concatenate([np.arange(17), generator.integers(0, 17, 30)])
    to_video, to_text = generator.integers(1, 15, 47).astype(float), generator.integers(1, 15, 17).astype(float)
    drawn = []
    draws = np.random.default_rng(3)
    for _ in range(90):
        weights = draws.multinomial(17, np.full(17, 1 / 17))
        drawn.append(recall_sum(np.repeat(to_video, weights[target]), np.repeat(to_text, weights)))
    expected = list(np.percentile(drawn, (2.5, 97.5)))
    assert recall_sum_interval(to_video, to_text, target, samples=90, seed=3) == pytest.approx(expected)
    assert recall_sum(np.array([1.0, 7.0]), np.array([2.0])) == 50 + 50 + 100 + 0 + 100 + 100


def test_missing_queries_are_misses_of_the_worst_rank() -> None:
    found = np.array([1.0, 1.0, 3.0])
    assert metrics_with_missing(found, missing_queries=0, worst_rank=9) == retrieval_metrics(found)
    expected = {"R@1": 50, "R@5": 75, "R@10": 75, "R@50": 75, "MdR": 2, "MnR": (5 + 80) / 4}
    assert metrics_with_missing(found, missing_queries=1, worst_rank=80) == pytest.approx(expected)
    with pytest.raises(DataError, match="the worst rank of the published split is 2, but a query has rank 3"):
        metrics_with_missing(found, missing_queries=1, worst_rank=2)


@pytest.mark.parametrize("distinct", [3, 12, 1000])
@pytest.mark.parametrize("seed", range(4))
def test_graded_metrics_agree_with_scikit_learn(seed: int, distinct: int) -> None:
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    generator = torch.Generator().manual_seed(seed)
    words = torch.randn(distinct, 9, generator=generator)
    text, video = words[torch.randint(distinct, (60,), generator=generator)], words[torch.randint(distinct, (17,), generator=generator)]
    target = torch.cat([torch.arange(17), torch.randint(17, (43,), generator=generator)])[torch.randperm(60, generator=generator)]
    standing = InProcess(8).own_caption_standing(LabelledFeatures(text, video, target))
    above, equal = (one.numpy() for one in standing)
    scores = (exact_unit(video) @ exact_unit(text).T).numpy()
    is_right = (target[None, :] == torch.arange(17)[:, None]).numpy()
    precisions, gains = average_precisions(above, equal, target.numpy()), discounted_gains(above, equal, target.numpy())
    for row in range(17):
        one = is_right[row : row + 1], scores[row : row + 1]
        assert precisions[row] == pytest.approx(sklearn_metrics.label_ranking_average_precision_score(*one))
        assert gains[row] == pytest.approx(sklearn_metrics.ndcg_score(*one))


def test_graded_metrics_of_a_constant_model_are_chance_and_of_a_perfect_one_all() -> None:
    target = np.array([0, 0, 1, 1, 1])
    constant = np.zeros(5, np.int64), np.full(5, 5)
    assert average_precisions(*constant, target) == pytest.approx([2 / 5, 3 / 5])
    perfect = np.array([0, 1, 0, 1, 2]), np.ones(5, np.int64)
    assert average_precisions(*perfect, target) == pytest.approx([1, 1])
    assert discounted_gains(*perfect, target) == pytest.approx([1, 1])
    assert mean_with_interval(np.array([0.5, 0.5]), samples=20, seed=0) == (50, [50, 50])


def test_recall_agrees_with_torchmetrics_where_nothing_ties() -> None:
    import_open_clip()  # torchmetrics imports torchvision too
    retrieval = pytest.importorskip("torchmetrics.retrieval")
    generator = torch.Generator().manual_seed(0)
    text, video = torch.randn(40, 6, generator=generator), torch.randn(40, 6, generator=generator)
    ranking = rank_both_directions(text, video, torch.arange(40), scale=1.0, block_size=9, top_k=1)
    figures = retrieval_metrics(ranking.text_to_video.ranks.numpy())
    scores = (exact_unit(text) @ exact_unit(video).T).flatten()
    query, right = torch.arange(40).repeat_interleave(40), torch.eye(40).flatten().bool()
    for k in (1, 5, 10):
        assert figures[f"R@{k}"] == pytest.approx(100 * float(retrieval.RetrievalHitRate(top_k=k)(scores, right, indexes=query)))
