"""Sums over one side of all pairs, bitwise the same however both sides are cut, on any number of threads."""

from collections.abc import Iterator

import torch
from torch import Tensor

from dgl_scale.evaluation.ranking_input import Parts, in_parts
from dgl_scale.evaluation.ranks import UNITS_AT_ONCE, RightScores, rank_text_part
from dgl_scale.evaluation.unit_vectors import exact_unit, integer_unit

_BLOCK = 1024


def log_sums(rows: Tensor, columns: Tensor | Parts, *, scale: float) -> Tensor:
    """Log of the sum over columns of `exp(scale * cosine)`.

    A sum of floats depends on its order: blocks of `_BLOCK` columns, counted from the first one whatever the parts, are
    added one after the other.

    Args:
        rows: `[N, E]`.
        columns: `[M, E]`, whole or in parts, of which one is held at a time.
        scale: inverse temperature.

    Returns:
        float64 `[N]`.
    """
    return torch.cat([_log_sums_of_part(part, in_parts(columns), scale) for part in torch.split(rows, UNITS_AT_ONCE)])


def count_best(queries: Tensor, candidates: Tensor | Parts, *, top_k: int) -> Tensor:
    """Int64 `[V]`: how many queries have each candidate among their `top_k` best; of those that tie, the first are best.

    Args:
        queries: `[N, E]`.
        candidates: `[V, E]`, whole or in parts, of which one is held at a time.
        top_k: at most as many as there are candidates count.
    """
    parts = in_parts(candidates)
    size = sum(len(part) for part in parts)
    count = torch.zeros(size, dtype=torch.int64, device=queries.device)
    for some in torch.split(queries, UNITS_AT_ONCE):
        # Nothing scores above infinity, so that the ranking has only its best to keep.
        own, best = (torch.full((n,), torch.inf, dtype=torch.float64, device=queries.device) for n in (len(some), size))
        right = RightScores(own, best, torch.ones(size, dtype=torch.int64, device=queries.device))
        found = rank_text_part(some, 0, parts, right, scale=1.0, block_size=_BLOCK, top_k=top_k)
        count += torch.bincount(found.text_to_video.top_indices.flatten(), minlength=size)
    return count


def _log_sums_of_part(rows: Tensor, columns: Parts, scale: float) -> Tensor:
    units = integer_unit(rows)
    most = torch.full((len(rows),), -torch.inf, dtype=torch.float64, device=rows.device)
    total = torch.zeros_like(most)
    for block in _of_equal_size(columns):
        factor = exact_unit(block).T
        for start in range(0, len(rows), _BLOCK):
            some = slice(start, start + _BLOCK)
            tile = (exact_unit(units[some]) @ factor).mul_(scale)  # [rows, columns]
            highest = torch.maximum(most[some], tile.amax(dim=1))
            added = tile.sub_(highest[:, None]).exp_().sum(dim=1)
            total[some] = total[some] * (most[some] - highest).exp() + added
            most[some] = highest
    return most + total.log()


def _of_equal_size(parts: Parts) -> Iterator[Tensor]:
    """All rows in blocks of `_BLOCK`; the last one may be shorter."""
    left: Tensor | None = None
    for part in parts:
        part = part if left is None else torch.cat([left, part])
        end = len(part) // _BLOCK * _BLOCK
        yield from torch.split(part[:end], _BLOCK) if end else ()
        left = part[end:].clone()
    if left is not None and len(left):
        yield left
