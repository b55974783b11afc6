"""The symmetric contrastive loss of the global batch, exact over ranks and accumulation steps."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dgl_scale import distributed

Gather = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class ContrastiveResult:
    """The loss of the global batch and what is logged with it.

    Attributes:
        loss: scalar; its value is that of the global batch, the same on every rank. Its gradient with
            respect to this rank's features is scaled so that the mean over ranks of all parameter
            gradients, which is what data-parallel engines compute, is the gradient of the global loss.
        recall_at_1: scalar on the features' device, percent of captions whose own video scores highest within the batch.
    """

    loss: Tensor
    recall_at_1: Tensor


def symmetric_contrastive_loss(text_features: Tensor, video_features: Tensor, logit_scale: float) -> tuple[Tensor, Tensor]:
    """Mean of text-to-video and video-to-text cross entropies (paper, equations 9 to 11).

    Args:
        text_features: `[B, E]`, L2-normalised.
        video_features: `[B, E]`, L2-normalised; its row i belongs to row i of the texts.
        logit_scale: the factor itself (100 for CLIP), not its logarithm.

    Returns:
        the scalar loss, and the logits `[B, B]` (captions by videos).
    """
    logits = logit_scale * text_features @ video_features.T
    target = torch.arange(logits.shape[0], device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2, logits


def global_contrastive_loss(text_features: Tensor, video_features: Tensor, logit_scale: float) -> ContrastiveResult:
    """The loss of all ranks' pairs together.

    Each rank gathers all features and puts its own, which carry the gradient, in their place. The
    parameter gradient of one rank is then its term of the global gradient, a sum over ranks;
    engines average over ranks, so the loss is scaled by the world size in the backward pass only.

    Args:
        text_features: this rank's `[B, E]`, the same B on every rank.
        video_features: likewise.
    """
    gathered = gather_features(text_features, video_features)
    return contrastive_loss_of(*gathered, logit_scale)


def gather_features(text_features: Tensor, video_features: Tensor) -> tuple[Tensor, Tensor]:
    """All ranks' features `[world_size * B, E]` of each kind, in rank order; only this rank's own carry a gradient. Collective."""
    return _with_other_ranks(text_features), _with_other_ranks(video_features)


def contrastive_loss_of(text_features: Tensor, video_features: Tensor, logit_scale: float) -> ContrastiveResult:
    """The loss of features that `gather_features` returned."""
    loss, logits = symmetric_contrastive_loss(text_features, video_features, logit_scale)
    hits = logits.detach().argmax(dim=1) == torch.arange(logits.shape[0], device=logits.device)
    return ContrastiveResult(_scale_gradient(loss, distributed.world_size()), 100 * hits.float().mean())


def feature_gradients(
    text_features: Tensor, video_features: Tensor, logit_scale: float, gather: Gather = gather_features
) -> tuple[ContrastiveResult, Tensor, Tensor]:
    """The loss and its gradients with respect to features computed without a graph.

    First half of accumulation by feature caching: the features of all micro-batches, `[B, E]` of this
    rank, give their gradients `[B, E]`; `surrogate_loss` then carries them into the parameters.

    Args:
        gather: as `gather_features`, perhaps timed.
    """
    text = text_features.detach().requires_grad_()
    video = video_features.detach().requires_grad_()
    result = contrastive_loss_of(*gather(text, video), logit_scale)
    text_gradient, video_gradient = torch.autograd.grad(result.loss, (text, video))
    return ContrastiveResult(result.loss.detach(), result.recall_at_1), text_gradient, video_gradient


def surrogate_loss(features: tuple[Tensor, Tensor], gradients: tuple[Tensor, Tensor]) -> Tensor:
    """A scalar whose gradient with respect to `features` is `gradients`: their inner product."""
    return sum((f * g).sum() for f, g in zip(features, gradients, strict=True))  # type: ignore[return-value]


def _with_other_ranks(features: Tensor) -> Tensor:
    if distributed.world_size() == 1:
        return features
    parts = list(torch.split(distributed.all_gather(features.detach()), features.shape[0]))
    parts[distributed.rank()] = features
    return torch.cat(parts)


def _scale_gradient(loss: Tensor, factor: int) -> Tensor:
    if factor == 1:
        return loss
    return loss.detach() + factor * (loss - loss.detach())
