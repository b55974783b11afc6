"""The slow, obvious twin of `dgl_scale.evaluation.ranks`: the whole matrix in float64, a loop, a stable sort."""

import torch
from torch import Tensor

from dgl_scale.evaluation.ranks import DirectionRanks, Ranking
from dgl_scale.evaluation.unit_vectors import exact_unit


def literal_ranks(similarity: Tensor, target: list[int]) -> tuple[list[float], list[float]]:
    """METHOD's sentence, word for word, over a full matrix `[Q, V]`."""
    text_to_video = []
    for query, right in enumerate(target):
        score = similarity[query, right]
        wrong = [similarity[query, v] for v in range(similarity.shape[1]) if v != right]
        text_to_video.append(1 + sum(bool(s > score) for s in wrong) + sum(bool(s == score) for s in wrong) / 2)
    video_to_text = []
    for video in range(similarity.shape[1]):
        own = [similarity[q, video] for q in range(len(target)) if target[q] == video]
        wrong = [similarity[q, video] for q in range(len(target)) if target[q] != video]
        best = max(own)
        video_to_text.append(1 + sum(bool(s > best) for s in wrong) + sum(bool(s == best) for s in wrong) / 2)
    return text_to_video, video_to_text


def full_matrix(text: Tensor, video: Tensor, scale: float) -> Tensor:
    """Float64 `[Q, V]` of exact scores."""
    return exact_unit(text) @ exact_unit(video).T * scale


def exact_ranking(text: Tensor, video: Tensor, target: Tensor, *, scale: float, top_k: int) -> Ranking:
    """The ranking by METHOD's sentence, with what float64 holds exactly."""
    matrix = full_matrix(text, video, scale)
    is_right = target[:, None] == torch.arange(len(video))[None, :]
    return Ranking(_direction(matrix, is_right, top_k), _direction(matrix.T, is_right.T, top_k))


def _direction(scores: Tensor, is_right: Tensor, top_k: int) -> DirectionRanks:
    right = torch.where(is_right, scores, -torch.inf).amax(dim=1)
    wrong = torch.where(is_right, -torch.inf, scores)
    ranks = 1 + (wrong > right[:, None]).sum(dim=1) + (wrong == right[:, None]).sum(dim=1).double() / 2
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :top_k]
    return DirectionRanks(ranks, right, order, scores.gather(1, order))
