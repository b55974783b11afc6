"""Metrics by hand-made tables, intervals against a literal resampling loop."""

import numpy as np
import pytest

from dgl_scale.errors import DataError
from dgl_scale.evaluation.metrics import bootstrap_interval, pair_accuracy, paired_bootstrap, retrieval_metrics


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        ([1.0, 1.0, 1.0], {"R@1": 100, "R@5": 100, "R@10": 100, "MdR": 1, "MnR": 1}),
        ([1.0, 1.5, 5.0, 10.0, 11.5], {"R@1": 20, "R@5": 60, "R@10": 80, "MdR": 5, "MnR": 5.8}),
        ([2.0, 30.0], {"R@1": 0, "R@5": 50, "R@10": 50, "MdR": 16, "MnR": 16}),
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
