"""Scores of single pairs of units: in float32, quickly, and exactly."""

import functools
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dgl_scale.evaluation.candidate_pairs import Ints, Singles, place_in_group
from dgl_scale.evaluation.unit_vectors import QUANTUM

_PAIRS_AT_ONCE = 128


@dataclass(frozen=True)
class Units:
    """Units of one side.

    Attributes:
        integers: int32 `[N, E]`, of `integer_unit`.
        singles: float32 `[N, E]`, the same rounded.
    """

    integers: NDArray[np.int32]
    singles: Tensor

    @classmethod
    def of(cls, integers: Tensor) -> "Units":
        """Of int32 `[N, E]`, on the CPU."""
        return cls(integers.numpy(), integers.float().mul_(QUANTUM))

    def __getitem__(self, rows: slice) -> "Units":
        return Units(self.integers[rows], self.singles[rows])


@functools.cache
def prepare() -> None:
    """Let PyTorch say once that its sparse tensors are young, to nobody. Call it before there are threads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _sampled(torch.ones(1, 1), torch.ones(1, 1), np.zeros(1, np.int64), np.zeros(1, np.int64))


def single_products(queries: Units, candidates: Units, query: Ints, candidate: Ints) -> Singles:
    """Float32 `[P]`: products of pairs that are sorted by query. Nothing is copied but the result."""
    return _sampled(queries.singles, candidates.singles, query, candidate)


def exact_products(queries: Units, candidates: Units, query: Ints, candidate: Ints) -> NDArray[np.float64]:
    """Float64 `[P]`, exact."""
    products = np.empty(len(query))
    for start in range(0, len(query), _PAIRS_AT_ONCE):
        some = slice(start, start + _PAIRS_AT_ONCE)
        factors = queries.integers[query[some]].astype(np.float64), candidates.integers[candidate[some]].astype(np.float64)
        np.einsum("pe,pe->p", *factors, out=products[some])
    return products * QUANTUM**2


def exact_products_of_groups(queries: Units, candidates: Units, query: Ints, candidate: Ints, width: int) -> NDArray[np.float64]:
    """The same of pairs that are sorted by query, where most queries have about `width`: the first ones share a product."""
    size = len(queries.integers)
    place = place_in_group(query)
    first = place < width
    grid = np.zeros((size, width), np.int64)
    grid[query[first], place[first]] = candidate[first]
    products = np.empty((size, width))
    step = max(1, _PAIRS_AT_ONCE // width)
    for start in range(0, size, step):
        some = slice(start, start + step)
        factors = candidates.integers[grid[some]].astype(np.float64), queries.integers[some].astype(np.float64)
        products[some] = np.matmul(factors[0], factors[1][:, :, None])[:, :, 0]
    exact = np.empty(len(query))
    exact[first] = products[query[first], place[first]] * QUANTUM**2
    exact[~first] = exact_products(queries, candidates, query[~first], candidate[~first])
    return exact


def exact_matrix(queries: Units, candidates: Units) -> NDArray[np.float64]:
    """Float64 `[N, M]` of all pairs, exact."""
    factors = torch.from_numpy(queries.integers).double(), torch.from_numpy(candidates.integers).double()
    products: NDArray[np.float64] = (factors[0] @ factors[1].T).numpy()
    return products * QUANTUM**2


def _sampled(queries: Tensor, candidates: Tensor, query: Ints, candidate: Ints) -> Singles:
    ends = np.zeros(len(queries) + 1, np.int64)
    np.cumsum(np.bincount(query, minlength=len(queries)), out=ends[1:])
    pairs = torch.sparse_csr_tensor(
        torch.from_numpy(ends),
        torch.from_numpy(candidate),
        torch.zeros(len(query)),
        size=(len(queries), len(candidates)),
        check_invariants=False,
    )
    products: Singles = torch.sparse.sampled_addmm(pairs, queries, candidates.T, beta=0.0).values().numpy()
    return products
