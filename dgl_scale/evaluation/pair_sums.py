"""Sums over one side of all pairs, bitwise the same however both sides are cut, on any number of threads."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from dgl_scale.evaluation.ranking_input import Parts, in_parts
from dgl_scale.evaluation.ranks import UNITS_AT_ONCE, RightScores, rank_text_part
from dgl_scale.evaluation.unit_vectors import exact_unit, integer_unit

BLOCK = 1024
MOST_SCALE_OF_BOTH = 300.0
"""Up to here the smallest and the largest of all terms, `exp(-2 * scale)` and 1, are float64."""


def log_sums(rows: Tensor, columns: Tensor | Parts, *, scale: float) -> Tensor:
    """Log of the sum over columns of `exp(scale * cosine)`.

    A sum of floats depends on its order: blocks of `BLOCK` columns, counted from the first one whatever the parts, are
    added one after the other.

    Args:
        rows: `[N, E]`.
        columns: `[M, E]`, whole or in parts, of which one is held at a time.
        scale: inverse temperature.

    Returns:
        float64 `[N]`.
    """
    return torch.cat([_log_sums_of_part(part, in_parts(columns), scale) for part in torch.split(rows, UNITS_AT_ONCE)])


def log_sums_of_both(rows: Tensor, columns: Tensor | Parts, *, scale: float) -> tuple[Tensor, Tensor]:
    """`log_sums` of the rows over the columns and of the columns over the rows, from each product and exponential once.

    Args:
        rows: `[N, E]`.
        columns: `[M, E]`, whole or in parts, of which one is held at a time.
        scale: inverse temperature, at most `MOST_SCALE_OF_BOTH`.

    Returns:
        float64 `[N]` and `[M]`.
    """
    return log_of_sums((partial_sums(part, columns, scale=scale) for part in torch.split(rows, UNITS_AT_ONCE)), scale=scale)


def partial_sums(rows: Tensor, columns: Tensor | Parts, *, scale: float) -> tuple[Tensor, Tensor]:
    """What some rows add to `log_sums_of_both`; they begin at a multiple of `BLOCK` rows.

    Returns:
        Sums of `exp(scale * (cosine - 1))`: float64 `[n]` of these rows, float64 `[blocks of BLOCK rows, M]` of the columns.
    """
    units = integer_unit(rows)
    of_rows = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    of_columns: list[Tensor] = []
    for block in _of_equal_size(in_parts(columns)):
        factor = exact_unit(block).T
        found = []
        for start in range(0, len(rows), BLOCK):
            some = slice(start, start + BLOCK)
            terms = (exact_unit(units[some]) @ factor).sub_(1).mul_(scale).exp_()  # [rows, columns]
            of_rows[some] += terms.sum(dim=1)
            found.append(terms.sum(dim=0))
        of_columns.append(torch.stack(found))
    return of_rows, torch.cat(of_columns, dim=1)


def log_of_sums(parts: Iterable[tuple[Tensor, Tensor]], *, scale: float) -> tuple[Tensor, Tensor]:
    """`log_sums_of_both` from `partial_sums` of all rows, in their order."""
    of_rows: list[Tensor] = []
    of_columns: Tensor | None = None
    for rows, blocks in parts:
        of_rows.append(rows)
        for block in blocks:
            of_columns = block if of_columns is None else of_columns + block
    assert of_columns is not None, "there are rows"
    return torch.cat(of_rows).log() + scale, of_columns.log() + scale


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
        found = rank_text_part(some, 0, parts, right, scale=1.0, block_size=BLOCK, top_k=top_k)
        count += torch.bincount(found.text_to_video.top_indices.flatten(), minlength=size)
    return count


def _log_sums_of_part(rows: Tensor, columns: Parts, scale: float) -> Tensor:
    units = integer_unit(rows)
    most = torch.full((len(rows),), -torch.inf, dtype=torch.float64, device=rows.device)
    total = torch.zeros_like(most)
    for block in _of_equal_size(columns):
        factor = exact_unit(block).T
        for start in range(0, len(rows), BLOCK):
            some = slice(start, start + BLOCK)
            tile = (exact_unit(units[some]) @ factor).mul_(scale)  # [rows, columns]
            highest = torch.maximum(most[some], tile.amax(dim=1))
            added = tile.sub_(highest[:, None]).exp_().sum(dim=1)
            total[some] = total[some] * (most[some] - highest).exp() + added
            most[some] = highest
    return most + total.log()


def _of_equal_size(parts: Parts) -> Iterator[Tensor]:
    """All rows in blocks of `BLOCK`; the last one may be shorter."""
    left: Tensor | None = None
    for part in parts:
        part = part if left is None else torch.cat([left, part])
        end = len(part) // BLOCK * BLOCK
        yield from torch.split(part[:end], BLOCK) if end else ()
        left = part[end:].clone()
    if left is not None and len(left):
        yield left
