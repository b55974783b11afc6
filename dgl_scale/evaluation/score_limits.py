"""How far quick scores can be from the exact ones, and limits that quick scores can be compared with instead.

`a` and `b` are exact units (`unit_vectors`): multiples of 2^-26, of length 1 but for about 1e-7, or zero; `a'` and `b'` are what they
are rounded to. By the triangle inequality and Cauchy-Schwarz

    |<a, b> - <a', b'>| = |<a - a', b'> + <a, b - b'>| <= |a - a'| (|b| + |b - b'|) + |a| |b - b'|,

and a sum of E products in floating point, in any order, with or without fused multiplication, is at most E u / (1 - E u) times the
sum of their absolute values from the true one (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1), u = 2^-24 in
float32; that sum is at most |a'| |b'|. All of these are multiples of 2^-52 or more, so that nothing underflows.

*float32* (`error_bound`): |a - a'| <= 2^-24 |a|, so that two more roundings are added to the E.

*bfloat16* (`bfloat16_bound`): factors are rounded to 8 significant bits, and the sum, in float32, once more in the end. The lengths
|a - a'| are measured, as they are less than half of what 2^-8 |a| allows: 0.0017. Processors differ in how they add pairs of
products, some with twice the error of float32, which is allowed for. The last rounding needs no bound: it never turns two
numbers round, and leaves a bfloat16 as it is. So if x is at or above a limit that is a bfloat16, then x rounded is too, and if
x rounded is above it, then x is.

A positive bfloat16 orders like its bits taken as int16, which are then positive; a negative one has negative bits.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dgl_scale.evaluation.candidate_pairs import Singles

Floats = NDArray[np.float64]
Shorts = NDArray[np.int16]

_ALL_PASS = np.iinfo(np.int16).min
_ROWS_AT_ONCE = 512
_MARGIN = 1.01
"""For second-order terms, and for lengths that are not quite 1."""


def error_bound(width: int) -> float:
    """How far a float32 product of two exact unit vectors of `width` components can be from the exact one.

    Two more roundings than the module says are added, for scores that are rounded after scaling.
    """
    return _MARGIN * (width + 4) * 2.0**-24


def bfloat16_bound(width: int, residuals: Floats, most_other: float) -> Floats:
    """Float64 `[N]`: how far the bfloat16 products of each of `N` units, before they are rounded, can be from the exact ones.

    Args:
        width: components of a unit.
        residuals: `[N]`, of `round_to_bfloat16`.
        most_other: the largest of the other factors' residuals.
    """
    return _MARGIN * (residuals + most_other + residuals * most_other) + 2 * error_bound(width)


def round_to_bfloat16(singles: Tensor) -> tuple[Tensor, Floats]:
    """Of float32 units `[N, E]`: bfloat16 `[N, E]`, and float64 `[N]` bounds of the distances to the exact units."""
    rounded = torch.empty(singles.shape, dtype=torch.bfloat16)
    distances = torch.empty(len(singles))
    for start in range(0, len(singles), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        rounded[rows] = singles[rows]
        # Neighbours differ by a float32; what it is of the exact unit, and the error of the length, are in the margins.
        torch.linalg.vector_norm(singles[rows] - rounded[rows], dim=1, out=distances[rows])
    return rounded, _MARGIN * distances.double().numpy() + _MARGIN * 2.0**-24


def round_down(values: Floats | Singles) -> Singles:
    """Float32 values that are surely lower."""
    return np.nextafter(values.astype(np.float32), np.float32(-np.inf))


def bits_at_most(limits: Floats | Singles) -> Shorts:
    """Bits of the highest bfloat16 that is surely no higher; of limits that are not positive, bits that all have passed."""
    lower = round_down(limits)
    bits = (lower.view(np.int32) >> 16).astype(np.int16)
    return np.where(lower > 0, bits, _ALL_PASS)


def bits_at_least(limits: Floats | Singles) -> Shorts:
    """Bits of the lowest bfloat16 that is surely no lower, and not negative."""
    higher = np.maximum(-round_down(-limits), np.float32(0))
    return ((higher.view(np.int32) + 0xFFFF) >> 16).astype(np.int16)
