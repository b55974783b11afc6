"""Retrieval metrics of ranks, and how sure they are: pure functions of arrays.

Intervals are percentile bootstraps that resample videos, not captions: captions of one video are not
independent of each other.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dgl_scale.errors import DataError

RECALL_AT = (1, 5, 10)
METRICS = (*(f"R@{k}" for k in RECALL_AT), "MdR", "MnR")

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_INTERVAL_PERCENT = (2.5, 97.5)
_RESAMPLES_PER_CHUNK = 64


@dataclass(frozen=True)
class Difference:
    """R@1 of A minus R@1 of B on the same queries, in points, with a 95% interval and a two-sided bootstrap p value."""

    difference: float
    low: float
    high: float
    p_value: float


def retrieval_metrics(ranks: Floats) -> dict[str, float]:
    """R@1, R@5, R@10 (percent of ranks at most k), median and mean rank of `[N]` ranks.

    Raises:
        DataError: there are no ranks, or one is not finite or below 1.
    """
    _check_ranks(ranks)
    recalls = {f"R@{k}": float(100 * (ranks <= k).mean()) for k in RECALL_AT}
    return {**recalls, "MdR": float(np.median(ranks)), "MnR": float(ranks.mean())}


def bootstrap_interval(ranks: Floats, groups: Ints, *, samples: int, seed: int) -> dict[str, list[float]]:
    """95% interval `[low, high]` of each metric of `retrieval_metrics`.

    Args:
        ranks: `[N]`.
        groups: `[N]`, the video of each query; whole videos are resampled.
        samples: number of resamples.
        seed: same seed, same interval.
    """
    _check_ranks(ranks)
    order = np.argsort(ranks, kind="stable")
    ranks, index = ranks[order], _group_index(groups)[order]
    hits = np.stack([ranks <= k for k in RECALL_AT]).astype(np.float64)  # [3, N]
    drawn = {name: np.empty(samples) for name in METRICS}
    for rows, weights in _resampled_groups(int(index.max()) + 1, samples, seed):
        counts = weights[:, index]  # [resamples, N], how often each query was drawn
        total = counts.sum(axis=1)
        recalls = 100 * (counts @ hits.T) / total[:, None]
        for column, k in enumerate(RECALL_AT):
            drawn[f"R@{k}"][rows] = recalls[:, column]
        drawn["MnR"][rows] = counts @ ranks / total
        drawn["MdR"][rows] = _weighted_medians(ranks, counts, total)
    return {name: _interval(values) for name, values in drawn.items()}


def paired_bootstrap(ranks_a: Floats, ranks_b: Floats, groups: Ints, *, samples: int, seed: int) -> Difference:
    """Difference of R@1 between two models on the same queries; queries and groups as in `bootstrap_interval`.

    Raises:
        DataError: the two have different numbers of queries.
    """
    if len(ranks_a) != len(ranks_b):
        raise DataError(f"cannot compare {len(ranks_a)} queries with {len(ranks_b)}; both models must answer the same ones")
    _check_ranks(ranks_a)
    _check_ranks(ranks_b)
    gain = (ranks_a <= 1).astype(np.float64) - (ranks_b <= 1)
    drawn = 100 * _resampled_means(gain, groups, samples, seed)
    low, high = _interval(drawn)
    # One is added to both counts: a finite number of resamples never proves a probability of zero.
    one_sided = min(int((drawn <= 0).sum()), int((drawn >= 0).sum())) + 1
    return Difference(float(100 * gain.mean()), low, high, min(1.0, 2 * one_sided / (samples + 1)))


def pair_accuracy(right: Floats, wrong: Floats, pairs: Ints, *, samples: int, seed: int) -> dict[str, float | list[float]]:
    """Percent of queries whose right candidate scores above the twin's; a tie counts half, chance is 50.

    Args:
        right: `[N]`, score of each query with its own candidate.
        wrong: `[N]`, score with the candidate of the twin, which differs in one thing only.
        pairs: `[N]`, the pair that each query belongs to; whole pairs are resampled for the 95% interval.

    Returns:
        `accuracy` and its `interval`.

    Raises:
        DataError: there are no queries, or a score is not finite.
    """
    if len(right) == 0 or not (np.isfinite(right).all() and np.isfinite(wrong).all()):
        raise DataError(f"pair accuracy needs finite scores of at least one query, got {len(right)} queries")
    won = (right > wrong) + 0.5 * (right == wrong)
    return {"accuracy": float(100 * won.mean()), "interval": _interval(100 * _resampled_means(won, pairs, samples, seed))}


def _check_ranks(ranks: Floats) -> None:
    if len(ranks) == 0:
        raise DataError("there are no queries to take metrics of")
    if not np.isfinite(ranks).all() or ranks.min() < 1:
        raise DataError(f"ranks must be finite and at least 1; query {int(np.argmax(~np.isfinite(ranks) | (ranks < 1)))} is not")


def _resampled_means(values: Floats, groups: Ints, samples: int, seed: int) -> Floats:
    """Mean of `values` in each resample of groups, `[samples]`."""
    index = _group_index(groups)
    sums, sizes = np.bincount(index, weights=values), np.bincount(index)
    means = np.empty(samples)
    for rows, weights in _resampled_groups(len(sums), samples, seed):
        means[rows] = (weights @ sums) / (weights @ sizes)
    return means


def _resampled_groups(num_groups: int, samples: int, seed: int) -> Iterator[tuple[slice, Floats]]:
    """(rows, weights `[rows, num_groups]`): how often each group is drawn in each resample, in chunks that bound memory."""
    generator = np.random.default_rng(seed)
    even = np.full(num_groups, 1 / num_groups)
    for start in range(0, samples, _RESAMPLES_PER_CHUNK):
        rows = slice(start, min(start + _RESAMPLES_PER_CHUNK, samples))
        yield rows, generator.multinomial(num_groups, even, size=rows.stop - rows.start).astype(np.float64)


def _weighted_medians(ranks: Floats, counts: Floats, total: Floats) -> Floats:
    """Median of each row's multiset: sorted `ranks[i]` taken `counts[row, i]` times."""
    cumulative = counts.cumsum(axis=1)
    lower = (cumulative > np.floor((total - 1) / 2)[:, None]).argmax(axis=1)
    upper = (cumulative > np.floor(total / 2)[:, None]).argmax(axis=1)
    medians: Floats = (ranks[lower] + ranks[upper]) / 2
    return medians


def _group_index(groups: Ints) -> Ints:
    index: Ints = np.unique(groups, return_inverse=True)[1]
    return index


def _interval(values: Floats) -> list[float]:
    low, high = np.percentile(values, _INTERVAL_PERCENT)
    return [float(low), float(high)]
