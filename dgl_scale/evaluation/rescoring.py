"""Post-processing of scores that looks at other queries; reported under `rerank`, never as the model's own figure.

Dual softmax (Cheng et al., 2021, arXiv 2109.04290) uses the other test queries; QB-Norm (Bogolin et al., 2022,
arXiv 2112.12777) a bank of training queries. Both are `Adjust` functions for `ranks.rank_both_directions`.
Unlike cosines, their scores are not exact; they are compared to 40 bits, so that equal candidates still tie.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dgl_scale.config import QueryBankConfig
from dgl_scale.errors import ConfigError
from dgl_scale.evaluation.metrics import retrieval_metrics
from dgl_scale.evaluation.ranks import Adjust, rank_both_directions
from dgl_scale.evaluation.unit_vectors import exact_unit

_COMPARED_BITS = 40


@dataclass(frozen=True)
class LabelledFeatures:
    """Captions and the videos that they describe.

    Attributes:
        text: `[Q, E]`.
        video: `[V, E]`.
        target: int64 `[Q]`, the video of each caption.
    """

    text: Tensor
    video: Tensor
    target: Tensor


def qb_norm_figures(
    test: LabelledFeatures, bank: Tensor, validation: LabelledFeatures | None, config: QueryBankConfig, *, scale: float, block_size: int
) -> dict[str, Any]:
    """QB-Norm's entry of `rerank`: text-to-video metrics of `test`, with β chosen on `validation` and never on `test`.

    Only text-to-video: the other direction would need a bank of training videos.

    Args:
        test: what is evaluated.
        bank: `[M, E]`, features of training captions, see `bank_rows`.
        validation: where β is chosen; may be None if the config names one β only.
        config: θ, k and the candidates of β.
        scale: the model's logit scale.
        block_size: as in the ranking.

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
        beta, chosen_on = choose_beta(validation, bank, config, scale=scale, block_size=block_size), "validation"
    metrics = qb_norm_metrics(test, bank, beta, config, scale=scale, block_size=block_size)
    origin = {"beta": beta, "k": config.k, "theta": config.theta, "bank": len(bank), "beta_chosen_on": chosen_on}
    return {"text_to_video": metrics, **origin}


def choose_beta(validation: LabelledFeatures, bank: Tensor, config: QueryBankConfig, *, scale: float, block_size: int) -> float:
    """The candidate with the highest text-to-video R@1 on `validation`; of equal ones that with the lowest mean rank, then the first."""

    def merit(beta: float) -> tuple[float, float]:
        metrics = qb_norm_metrics(validation, bank, beta, config, scale=scale, block_size=block_size)
        return metrics["R@1"], -metrics["MnR"]

    return max(config.betas, key=merit)


def qb_norm_metrics(
    features: LabelledFeatures, bank: Tensor, beta: float, config: QueryBankConfig, *, scale: float, block_size: int
) -> dict[str, float]:
    """Text-to-video metrics under QB-Norm with one β."""
    is_normalised, log_sums = query_bank_norm(
        features.text, features.video, bank, beta=beta, top_k=config.k, threshold=config.theta, block_size=block_size
    )
    adjust = normalised_text_to_video(is_normalised, log_sums, beta=beta, scale=scale)
    ranking = rank_both_directions(
        features.text,
        features.video,
        features.target,
        scale=scale,
        block_size=block_size,
        top_k=1,
        adjust=(adjust, lambda scores, texts, videos: scores),
    )
    return retrieval_metrics(ranking.text_to_video.ranks.numpy())


def bank_rows(num_captions: int, limit: int) -> Sequence[int]:
    """Which training captions make the bank: all, or `limit` of them at even distances."""
    size = min(num_captions, limit)
    return [i * num_captions // size for i in range(size)]


def dual_softmax(text: Tensor, video: Tensor, *, scale: float, block_size: int) -> tuple[Adjust, Adjust]:
    """Scores times their softmax over the queries: over captions for text-to-video, over videos for video-to-text.

    Args:
        text: `[Q, E]`.
        video: `[V, E]`.
        scale: as in the ranking; it is the softmax's inverse temperature.
    """
    per_video = _log_sum_exp(video, text, scale, block_size)  # [V]
    per_caption = _log_sum_exp(text, video, scale, block_size)  # [Q]

    def text_to_video(scores: Tensor, texts: Tensor, videos: Tensor) -> Tensor:
        return _rounded(scores * (scores - per_video[videos]).exp())

    def video_to_text(scores: Tensor, texts: Tensor, videos: Tensor) -> Tensor:
        return _rounded(scores * (scores - per_caption[texts]).exp())

    return text_to_video, video_to_text


def query_bank_norm(
    queries: Tensor, candidates: Tensor, bank: Tensor, *, beta: float, top_k: int, threshold: int, block_size: int
) -> tuple[Tensor, Tensor]:
    """What QB-Norm (dynamic inverted softmax) changes; give the result to `normalised_text_to_video`.

    A candidate is activated if at least `threshold` bank queries have it among their `top_k`. A query whose
    best candidate is activated is normalised.

    Args:
        queries: `[Q, E]`, `candidates`: `[V, E]`, `bank`: `[M, E]`, training queries.
        beta: inverse temperature of the cosine.

    Returns:
        bool `[Q]`, which queries are normalised; float64 `[V]`, log of each candidate's sum of `exp(beta s)` over the bank.
    """
    units = exact_unit(candidates)
    found = torch.zeros(len(candidates), dtype=torch.int64, device=candidates.device)
    for block in torch.split(bank, block_size):
        best = (exact_unit(block) @ units.T).topk(min(top_k, len(candidates)), dim=1).indices
        found += torch.bincount(best.flatten(), minlength=len(candidates))
    best_candidate = torch.cat([(exact_unit(block) @ units.T).argmax(dim=1) for block in torch.split(queries, block_size)])
    return (found >= threshold)[best_candidate], _log_sum_exp(candidates, bank, beta, block_size)


def normalised_text_to_video(is_normalised: Tensor, log_sums: Tensor, *, beta: float, scale: float) -> Adjust:
    """QB-Norm as an adjustment of text-to-video scores.

    Normalised queries are scored by the logarithm of `exp(beta s) / sum`, which ranks the same.
    """

    def adjust(scores: Tensor, texts: Tensor, videos: Tensor) -> Tensor:
        normalised = _rounded(scores * (beta / scale) - log_sums[videos])
        return torch.where(is_normalised[texts], normalised, scores)

    return adjust


def _log_sum_exp(rows: Tensor, columns: Tensor, scale: float, block_size: int) -> Tensor:
    """Float64 `[len(rows)]`: log of the sum over columns of `exp(scale * cosine)`."""
    total = torch.full((len(rows),), -torch.inf, dtype=torch.float64, device=rows.device)
    units = [exact_unit(block) for block in torch.split(rows, block_size)]
    for block in torch.split(columns, block_size):
        unit = exact_unit(block)
        part = torch.cat([(row_unit @ unit.T * scale).logsumexp(dim=1) for row_unit in units])
        total = torch.logaddexp(total, part)
    return total


def _rounded(scores: Tensor) -> Tensor:
    mantissa, exponent = torch.frexp(scores)
    return torch.ldexp((mantissa * 2.0**_COMPARED_BITS).round(), exponent.double() - _COMPARED_BITS)
