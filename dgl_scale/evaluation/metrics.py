"""Retrieval metrics of ranks, and how sure they are: pure functions of arrays.

Intervals are percentile bootstraps that resample videos, not captions: captions of one video are not
independent of each other.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dgl_scale.errors import DataError

RECALL_AT = (1, 5, 10, 50)
SUMMED = (1, 5, 10)
"""The recalls that make up RSum, by custom."""
METRICS = (*(f"R@{k}" for k in RECALL_AT), "MdR", "MnR")
GRADED = ("mAP", "nDCG")
"""Where several captions are right, percent."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_INTERVAL_PERCENT = (2.5, 97.5)
_RESAMPLES_PER_CHUNK = 64


@dataclass(frozen=True)
class Difference:
    """R@k of A minus R@k of B on the same queries, in points, with a 95% interval and a two-sided bootstrap p value."""

    difference: float
    low: float
    high: float
    p_value: float


def retrieval_metrics(ranks: Floats) -> dict[str, float]:
    """R@1, R@5, R@10, R@50 (percent of ranks at most k), median and mean rank of `[N]` ranks.

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
    hits = np.stack([ranks <= k for k in RECALL_AT]).astype(np.float64)  # [recalls, N]
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


def metrics_with_missing(ranks: Floats, *, missing_queries: int, worst_rank: float) -> dict[str, float]:
    """The pessimistic metrics: queries that could not be asked count as misses, with the worst rank there is.

    Args:
        ranks: `[N]` of the queries that were asked.
        missing_queries: how many more there would be, as the split was published.
        worst_rank: candidates of the published split, those that are missing included.

    Raises:
        DataError: `worst_rank` is better than a rank that was found, or as `retrieval_metrics`.
    """
    _check_ranks(ranks)
    if worst_rank < ranks.max():
        raise DataError(f"the worst rank of the published split is {worst_rank:g}, but a query has rank {ranks.max():g}")
    return retrieval_metrics(np.concatenate([ranks, np.full(missing_queries, float(worst_rank))]))


def recall_sum(to_video: Floats, to_text: Floats) -> float:
    """RSum: R@1, R@5 and R@10 of both directions added up; at most 600."""
    return sum(retrieval_metrics(ranks)[f"R@{k}"] for ranks in (to_video, to_text) for k in SUMMED)


def recall_sum_interval(to_video: Floats, to_text: Floats, target: Ints, *, samples: int, seed: int) -> list[float]:
    """95% interval of `recall_sum`; videos are resampled, with both directions of each.

    Args:
        to_video: `[Q]` ranks, `to_text`: `[V]` ranks.
        target: `[Q]`, the video of each caption, 0 to V - 1, each at least once.
    """
    drawn = np.zeros(samples)
    for ranks, groups in ((to_video, target), (to_text, np.arange(len(to_text)))):
        for k in SUMMED:
            # Of one seed and as many groups, the resamples are the same for all terms.
            drawn += 100 * _resampled_means((ranks <= k).astype(np.float64), groups, samples, seed)
    return _interval(drawn)


def average_precisions(above: Ints, equal: Ints, target: Ints) -> Floats:
    """Average precision of each video as a query whose right answers are its own captions, `[V]`, 0 to 1.

    For the captions R of a video, all of them counted as candidates of each other,

        AP = 1/|R| * sum over c in R of  |{c' in R: s(c') >= s(c)}| / |{c': s(c') >= s(c)}|

    so that captions that tie share the precision at the end of their tie (scikit-learn's label ranking average
    precision). A constant model gets |R| / Q. mAP is the mean over videos.

    Args:
        above: `[Q]`, from `own_captions.own_caption_standing`.
        equal: `[Q]`, likewise.
        target: `[Q]`, the video of each caption.
    """
    reached = above + equal  # candidates down to the end of the caption's tie
    order = np.lexsort((reached, target))
    sizes = np.bincount(target)
    starts = np.repeat(sizes.cumsum() - sizes, sizes)
    _, tie, count = np.unique(np.stack([target, reached])[:, order], axis=1, return_inverse=True, return_counts=True)
    right_reached = count.cumsum()[tie.reshape(-1)] - starts
    return np.bincount(target[order], weights=right_reached / reached[order]) / sizes


def discounted_gains(above: Ints, equal: Ints, target: Ints) -> Floats:
    """nDCG of each video as a query whose right answers are its own captions, `[V]`, 0 to 1, over the whole ranking.

    With gain 1 for each own caption R and none for the others,

        nDCG = sum over c in R of d(c)  /  sum over i = 1 … |R| of 1 / log2(i + 1)

    where d(c) is 1 / log2(rank + 1), averaged over the ranks that the caption's tie takes up (McSherry and Najork, 2008).

    Args:
        above: `[Q]`, from `own_captions.own_caption_standing`.
        equal: `[Q]`, likewise.
        target: `[Q]`, the video of each caption.
    """
    total = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(2, len(target) + 2)))])  # of ranks 1 … i
    discounts = (total[above + equal] - total[above]) / equal
    gains: Floats = np.bincount(target, weights=discounts) / total[np.bincount(target)]
    return gains


def mean_with_interval(values: Floats, *, samples: int, seed: int) -> tuple[float, list[float]]:
    """Mean in percent of a value a video, and its 95% interval."""
    return float(100 * values.mean()), _interval(100 * _resampled_means(values, np.arange(len(values)), samples, seed))


def paired_bootstrap(ranks_a: Floats, ranks_b: Floats, groups: Ints, *, samples: int, seed: int, recall_at: int = 1) -> Difference:
    """Difference of R@k between two models on the same queries; queries and groups as in `bootstrap_interval`.

    Raises:
        DataError: the two have different numbers of queries.
    """
    gain = _gain(ranks_a, ranks_b, recall_at)
    drawn = 100 * _resampled_means(gain, groups, samples, seed)
    low, high = _interval(drawn)
    # One is added to both counts: a finite number of resamples never proves a probability of zero.
    one_sided = min(int((drawn <= 0).sum()), int((drawn >= 0).sum())) + 1
    return Difference(float(100 * gain.mean()), low, high, min(1.0, 2 * one_sided / (samples + 1)))


def permutation_test(ranks_a: Floats, ranks_b: Floats, groups: Ints, *, samples: int, seed: int, recall_at: int = 1) -> float:
    """Two-sided p value of "A and B are exchangeable", by the difference of R@k; same arguments as `paired_bootstrap`.

    In each of `samples` permutations the ranks of A and B are exchanged for a random half of the videos.
    """
    gains = np.bincount(_group_index(groups), weights=_gain(ranks_a, ranks_b, recall_at))
    generator = np.random.default_rng(seed)
    extreme = 0
    for start in range(0, samples, _RESAMPLES_PER_CHUNK):
        size = min(_RESAMPLES_PER_CHUNK, samples - start)
        signs = generator.integers(0, 2, (size, len(gains))) * 2.0 - 1
        # Sums of small whole numbers are exact, so that equality is one.
        extreme += int((np.abs(signs @ gains) >= abs(gains.sum())).sum())
    return (extreme + 1) / (samples + 1)


def _gain(ranks_a: Floats, ranks_b: Floats, recall_at: int) -> Floats:
    """`[N]`: 1 where only A has the query among its first k, -1 where only B has."""
    if len(ranks_a) != len(ranks_b):
        raise DataError(f"cannot compare {len(ranks_a)} queries with {len(ranks_b)}; both models must answer the same ones")
    _check_ranks(ranks_a)
    _check_ranks(ranks_b)
    return (ranks_a <= recall_at).astype(np.float64) - (ranks_b <= recall_at)


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
