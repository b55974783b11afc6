"""From features to the figures of a results.json: ranks, metrics, intervals, reranking, twin pairs."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dgl_scale.config import EvaluationConfig
from dgl_scale.evaluation.features import Features
from dgl_scale.evaluation.metrics import (
    Ints,
    average_precisions,
    bootstrap_interval,
    discounted_gains,
    mean_with_interval,
    pair_accuracy,
    recall_sum,
    recall_sum_interval,
    retrieval_metrics,
)
from dgl_scale.evaluation.pairwise import InProcess, Pairwise, labelled
from dgl_scale.evaluation.ranks import Ranking
from dgl_scale.evaluation.rescoring import dual_softmax
from dgl_scale.evaluation.unit_vectors import pair_scores

DIRECTIONS = ("text_to_video", "video_to_text")


@dataclass(frozen=True)
class Retrieval:
    """What an evaluation found.

    Attributes:
        figures: `text_to_video`, `video_to_text` (each with its `interval`; the latter with `mAP` and `nDCG` where videos have
            several captions), `RSum`, `RSum_interval`, `rerank`, `queries`, `videos` and, where the split has twins, `pair_accuracy`.
        ranking: per query.
    """

    figures: dict[str, Any]
    ranking: Ranking


def rank_features(features: Features, evaluation: EvaluationConfig) -> Ranking:
    """Ranks of both directions by the model's own scores."""
    return InProcess(evaluation.block_size).rank(labelled(features), scale=features.scale, top_k=evaluation.top_k)


def flat_metrics(ranking: Ranking) -> dict[str, float]:
    """`text_to_video/R@1`, … `video_to_text/MnR`: the metrics by the names that curves are recorded under."""
    return {
        f"{name}/{metric}": value
        for name in DIRECTIONS
        for metric, value in retrieval_metrics(getattr(ranking, name).ranks.numpy()).items()
    }


def evaluate_features(
    features: Features, evaluation: EvaluationConfig, *, twins: dict[str, str], seed: int, pairwise: Pairwise | None = None
) -> Retrieval:
    """All figures of a split.

    Args:
        twins: sample key to the key of the clip that differs from it in one thing only; may be empty.
        seed: of the bootstrap.
        pairwise: where rankings, reranked ones too, are computed; None: in this process. The figures are bitwise the same.

    Raises:
        DataError: as `rank_both_directions`.
    """
    pairwise = pairwise or InProcess(evaluation.block_size)
    ranking = pairwise.rank(labelled(features), scale=features.scale, top_k=evaluation.top_k)
    target, samples = features.video_index.numpy(), evaluation.bootstrap_samples
    ranks = {name: getattr(ranking, name).ranks.numpy() for name in DIRECTIONS}
    figures: dict[str, Any] = {}
    for name, groups in zip(DIRECTIONS, (target, np.arange(len(features.keys))), strict=True):
        interval = bootstrap_interval(ranks[name], groups, samples=samples, seed=seed)
        figures[name] = {**retrieval_metrics(ranks[name]), "interval": interval}
    figures["RSum"] = recall_sum(ranks["text_to_video"], ranks["video_to_text"])
    figures["RSum_interval"] = recall_sum_interval(ranks["text_to_video"], ranks["video_to_text"], target, samples=samples, seed=seed)
    if len(target) > len(features.keys):
        above, equal = pairwise.own_caption_standing(labelled(features))
        add_graded(figures["video_to_text"], above.numpy(), equal.numpy(), target, samples=samples, seed=seed)
    figures["rerank"] = {"dual_softmax": _dual_softmax_metrics(features, pairwise)}
    if pairs := twin_accuracy(features, twins, samples=samples, seed=seed):
        figures["pair_accuracy"] = pairs
    return Retrieval({**figures, "queries": len(features.text), "videos": len(features.keys)}, ranking)


def add_graded(figures: dict[str, Any], above: Ints, equal: Ints, target: Ints, *, samples: int, seed: int) -> None:
    """Put mAP and nDCG (percent) with their intervals into video-to-text figures, where videos have several captions."""
    for name, values in (("mAP", average_precisions(above, equal, target)), ("nDCG", discounted_gains(above, equal, target))):
        figures[name], figures["interval"][name] = mean_with_interval(values, samples=samples, seed=seed)


def twin_accuracy(features: Features, twins: dict[str, str], *, samples: int, seed: int) -> dict[str, Any] | None:
    """How often the model tells a clip from its twin, in percent; chance is 50.

    Text-to-video: a caption's own clip scores above its twin. Video-to-text: the clip's best own caption scores
    above the best caption of the twin. Ties count half; whole pairs are resampled for the interval.

    Returns:
        None where no clip has its twin in the split.
    """
    position = {key: i for i, key in enumerate(features.keys)}
    known = {position[key]: position[twin] for key, twin in twins.items() if key in position and twin in position and twin != key}
    if not known:
        return None
    twin_of = torch.full((len(position),), -1, dtype=torch.int64)
    twin_of[torch.tensor(list(known))] = torch.tensor(list(known.values()))
    pair = torch.minimum(twin_of, torch.arange(len(position)))

    queries = (twin_of[features.video_index] >= 0).nonzero()[:, 0]
    text, own = features.text[queries], features.video_index[queries]
    right = pair_scores(text, features.video[own], scale=features.scale)
    to_video = pair_accuracy(
        right.numpy(),
        pair_scores(text, features.video[twin_of[own]], scale=features.scale).numpy(),
        pair[own].numpy(),
        samples=samples,
        seed=seed,
    )
    videos = (twin_of >= 0).nonzero()[:, 0]
    to_text = pair_accuracy(
        _best_scores(features, videos, videos).numpy(),
        _best_scores(features, videos, twin_of[videos]).numpy(),
        pair[videos].numpy(),
        samples=samples,
        seed=seed,
    )
    return {"text_to_video": to_video, "video_to_text": to_text, "pairs": len(torch.unique(pair[videos]))}


def _best_scores(features: Features, videos: Tensor, described: Tensor) -> Tensor:
    """Best score of video `videos[i]` among the captions of video `described[i]`."""
    captions: dict[int, list[int]] = {}
    for caption, video in enumerate(features.video_index.tolist()):
        captions.setdefault(video, []).append(caption)
    best = []
    for video, other in zip(videos.tolist(), described.tolist(), strict=True):
        text = features.text[captions[other]]
        best.append(pair_scores(text, features.video[video].expand_as(text), scale=features.scale).max())
    return torch.stack(best)


def _dual_softmax_metrics(features: Features, pairwise: Pairwise) -> dict[str, dict[str, float]]:
    adjust = dual_softmax(features.text, features.video, scale=features.scale, pairwise=pairwise)
    ranking = pairwise.rank(labelled(features), scale=features.scale, top_k=1, adjust=adjust)
    return {name: retrieval_metrics(getattr(ranking, name).ranks.numpy()) for name in DIRECTIONS}
