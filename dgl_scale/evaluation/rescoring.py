"""Post-processing of scores that looks at other queries; reported under `rerank`, never as the model's own figure.

Dual softmax (Cheng et al., 2021, arXiv 2109.04290) uses the other test queries; QB-Norm (Bogolin et al., 2022,
arXiv 2112.12777) a bank of training queries. Both are `Adjust` functions for `ranks.rank_both_directions`.
Unlike cosines, their scores are not exact; they are compared to 40 bits, so that equal candidates still tie.
"""

import torch
from torch import Tensor

from dgl_scale.evaluation.ranks import Adjust, exact_unit

_COMPARED_BITS = 40


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
