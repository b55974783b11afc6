"""Post-processing of scores that looks at other queries; reported under `rerank`, never as the model's own figure.

Dual softmax (Cheng et al., 2021, arXiv 2109.04290) uses the other test queries; QB-Norm (Bogolin et al., 2022,
arXiv 2112.12777) a bank of training queries. Both are an `Adjust` for a ranking, which goes to its tasks too.
Unlike cosines, their scores are not exact; they are compared to 40 bits, so that equal candidates still tie.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dgl_scale.config import QueryBankConfig
from dgl_scale.errors import ConfigError
from dgl_scale.evaluation.adjust import Adjust, Reach
from dgl_scale.evaluation.metrics import retrieval_metrics
from dgl_scale.evaluation.pair_sums import MOST_SCALE_OF_BOTH
from dgl_scale.evaluation.pairwise import LabelledFeatures, Pairwise

_COMPARED_BITS = 40
_MARGIN = 2.0**-36
"""More than the rounding to `_COMPARED_BITS`, and of float64, can move the logarithm of a score, or a score near 1."""
_NEWTON_STEPS = 8
_LEAST_LOG = -500.0


@dataclass(frozen=True, eq=False)
class TimesSoftmax:
    """Scores times their softmax over the queries.

    Attributes:
        log_sums: float64, of each candidate: log of the sum of `exp(score)` over the queries.
        are_videos: whether the candidates are videos (`[V]`) or captions (`[Q]`).
    """

    log_sums: Tensor
    are_videos: bool

    def __call__(self, scores: Tensor, texts: Tensor, videos: Tensor) -> Tensor:
        """As `ranks.Adjust`."""
        return _rounded(scores * (scores - self.log_sums[videos if self.are_videos else texts]).exp())

    def reach(self, right: Tensor, queries: Tensor) -> Reach:
        """As `Adjust.reach`.

        A score `s` comes to the right one's `r > 0` if `h(s) = s + log s >= log r + log_sum`. As `h` is concave it lies below its
        tangent at any point, best at that where `h` is what a mean candidate needs.
        """
        mean = self.log_sums.mean()
        level = right.clamp_min(torch.finfo(right.dtype).tiny).log() - _MARGIN + mean
        point = _sum_with_log(level)
        slope = point / (1 + point)
        offset = point + slope * (level - point - point.log())
        return Reach(torch.where(right > 0, offset, -torch.inf), slope, self.log_sums - mean)


@dataclass(frozen=True, eq=False)
class QueryBankNorm:
    """Text-to-video scores under QB-Norm (dynamic inverted softmax).

    Normalised queries are scored by the logarithm of `exp(beta s) / sum`, which ranks the same.

    Attributes:
        is_normalised: bool `[Q]`, which queries are.
        log_sums: float64 `[V]`, log of each candidate's sum of `exp(beta s)` over the bank.
        factor: β by the scale of the scores.
    """

    is_normalised: Tensor
    log_sums: Tensor
    factor: float

    def __call__(self, scores: Tensor, texts: Tensor, videos: Tensor) -> Tensor:
        """As `ranks.Adjust`."""
        normalised = _rounded(scores * self.factor - self.log_sums[videos])
        return torch.where(self.is_normalised[texts], normalised, scores)

    def reach(self, right: Tensor, queries: Tensor) -> Reach:
        """As `Adjust.reach`; of captions, since it is text-to-video only."""
        mean, normalised = self.log_sums.mean(), self.is_normalised[queries]
        offset = (right - _MARGIN * right.abs().clamp_min(1.0) + mean) / self.factor
        slope = torch.full_like(right, 1 / self.factor)
        return Reach(torch.where(normalised, offset, right), torch.where(normalised, slope, 0.0), self.log_sums - mean)


class Unchanged:
    """The `Adjust` of a direction that keeps the model's scores."""

    def __call__(self, scores: Tensor, texts: Tensor, videos: Tensor) -> Tensor:
        """The scores."""
        return scores

    def reach(self, right: Tensor, queries: Tensor) -> Reach:
        """The right one's score."""
        return Reach(right, torch.zeros_like(right), None)


class BankedFeatures:
    """Features that are ranked with a bank of training captions, under one β after the other.

    A candidate is activated if at least θ captions of the bank have it among their first k. A query whose best candidate
    is activated is normalised.

    Args:
        features: what is ranked.
        bank: `[M, E]`, see `bank_rows`.
        config: θ and k.
        scale: the model's logit scale.
    """

    def __init__(self, features: LabelledFeatures, bank: Tensor, config: QueryBankConfig, *, scale: float, pairwise: Pairwise) -> None:
        self._features, self._bank, self._scale, self._pairwise = features, bank, scale, pairwise
        is_activated = pairwise.count_best(bank, features.video, top_k=config.k) >= config.theta
        plain = pairwise.rank(features, scale=scale, top_k=1).text_to_video
        self.is_normalised = is_activated[plain.top_indices[:, 0]]

    def adjust(self, beta: float) -> QueryBankNorm:
        """QB-Norm with this inverse temperature of the cosine."""
        log_sums = self._pairwise.log_sums(self._features.video, self._bank, scale=beta)
        return QueryBankNorm(self.is_normalised, log_sums, beta / self._scale)

    def metrics(self, beta: float) -> dict[str, float]:
        """Of text-to-video."""
        ranking = self._pairwise.rank(self._features, scale=self._scale, top_k=1, adjust=(self.adjust(beta), Unchanged()))
        return retrieval_metrics(ranking.text_to_video.ranks.numpy())


def qb_norm_figures(
    test: LabelledFeatures,
    bank: Tensor,
    validation: LabelledFeatures | None,
    config: QueryBankConfig,
    *,
    scale: float,
    pairwise: Pairwise,
) -> dict[str, Any]:
    """QB-Norm's entry of `rerank`: text-to-video metrics of `test`, with β chosen on `validation` and never on `test`.

    Only text-to-video: the other direction would need a bank of training videos.

    Args:
        test: what is evaluated.
        bank: `[M, E]`, features of training captions, see `bank_rows`.
        validation: where β is chosen; may be None if the config names one β only.
        config: θ, k and the candidates of β.
        scale: the model's logit scale.
        pairwise: where it is computed.

    Returns:
        `text_to_video` (the metrics), `beta`, `k`, `theta`, `bank` (its size), `beta_chosen_on` (`validation` or `config`).

    Raises:
        ConfigError: there are several candidates and no validation features to choose by.
    """
    if len(config.betas) == 1:
        beta, chosen_on = config.betas[0], "config"
    elif validation is None:
        raise ConfigError(
            f"evaluation.qb_norm.betas has {len(config.betas)} candidates and there is no validation split to choose by; "
            "set data.validation, or one beta"
        )
    else:
        beta, chosen_on = choose_beta(BankedFeatures(validation, bank, config, scale=scale, pairwise=pairwise), config.betas), "validation"
    metrics = BankedFeatures(test, bank, config, scale=scale, pairwise=pairwise).metrics(beta)
    origin = {"beta": beta, "k": config.k, "theta": config.theta, "bank": len(bank), "beta_chosen_on": chosen_on}
    return {"text_to_video": metrics, **origin}


def choose_beta(validation: BankedFeatures, betas: Sequence[float]) -> float:
    """The candidate with the highest text-to-video R@1 on `validation`; of equal ones that with the lowest mean rank, then the first."""

    def merit(beta: float) -> tuple[float, float]:
        metrics = validation.metrics(beta)
        return metrics["R@1"], -metrics["MnR"]

    return max(betas, key=merit)


def bank_rows(num_captions: int, limit: int) -> Sequence[int]:
    """Which training captions make the bank: all, or `limit` of them at even distances."""
    size = min(num_captions, limit)
    return [i * num_captions // size for i in range(size)]


def dual_softmax(text: Tensor, video: Tensor, *, scale: float, pairwise: Pairwise) -> tuple[Adjust, Adjust]:
    """Scores times their softmax over the queries: over captions for text-to-video, over videos for video-to-text.

    Args:
        text: `[Q, E]`.
        video: `[V, E]`.
        scale: as in the ranking; it is the softmax's inverse temperature.
        pairwise: where it is computed.
    """
    if scale <= MOST_SCALE_OF_BOTH:
        per_caption, per_video = pairwise.log_sums_of_both(text, video, scale=scale)
    else:
        per_caption, per_video = pairwise.log_sums(text, video, scale=scale), pairwise.log_sums(video, text, scale=scale)
    return TimesSoftmax(per_video, are_videos=True), TimesSoftmax(per_caption, are_videos=False)


def _sum_with_log(level: Tensor) -> Tensor:
    """About the positive `s` with `s + log s = level`, by Newton's method for `log s`, which comes down to it from above."""
    log = torch.where(level > 1, level.clamp_min(1.0).log(), level)
    for _ in range(_NEWTON_STEPS):
        log = log - (log.exp() + log - level) / (log.exp() + 1)
    return log.clamp_min(_LEAST_LOG).exp()


def _rounded(scores: Tensor) -> Tensor:
    mantissa, exponent = torch.frexp(scores)
    return torch.ldexp((mantissa * 2.0**_COMPARED_BITS).round(), exponent.double() - _COMPARED_BITS)
