"""Scores that are changed before they are ranked: what such a change must be able to do; see `rescoring`."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Reach:
    """Below `offset + slope * terms` a candidate's score, once changed, is surely lower than that of a query's right candidate.

    Attributes:
        offset: float64 `[N]`, of each query; minus infinity where nothing is known.
        slope: float64 `[N]`, of each query.
        terms: float64 `[C]`, of each of all candidates; None where slopes are 0.
    """

    offset: Tensor
    slope: Tensor
    terms: Tensor | None


class Adjust(Protocol):
    """Changes the scores of one direction of retrieval."""

    def __call__(self, scores: Tensor, texts: Tensor, videos: Tensor) -> Tensor:
        """Elementwise: float64 scores of captions `texts` with videos `videos`; the indices are broadcast."""

    def reach(self, right: Tensor, queries: Tensor) -> Reach:
        """Which scores can matter to some queries.

        Args:
            right: float64 `[N]`, the changed scores of the queries' right candidates.
            queries: int64 `[N]`, their indices.
        """
