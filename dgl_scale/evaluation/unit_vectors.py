"""Unit vectors whose inner products are exact, so that ties are facts and not accidents of rounding.

Unit vectors are rounded to multiples of 2^-26; products are then multiples of 2^-52 and, by Cauchy-Schwarz, any
partial sum of them stays below 2, so that float64 holds every one of them without rounding. Scores hence depend
neither on the order of summation nor on tile sizes, threads, BLAS or device, and equal vectors score equally wherever
they stand. The rounding moves a cosine by about 1e-8, less than a float32 product would.
"""

import math

import torch
from torch import Tensor

QUANTUM = 2.0**-26
"""Components of an exact unit vector are multiples of this."""


def exact_unit(features: Tensor) -> Tensor:
    """`[N, E]` to float64 vectors of length 1 whose inner products are exact; a zero vector stays zero."""
    wide = features.double()
    scaled = wide / wide.abs().amax(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    # The length too must not depend on the order of summation: so few bits that the sum of E squares is exact.
    bits = (53 - math.ceil(math.log2(features.shape[-1]))) // 2
    length = (scaled * 2.0**bits).round().square().sum(dim=-1, keepdim=True).sqrt() / 2.0**bits
    return (scaled / length.clamp_min(1.0) / QUANTUM).round() * QUANTUM


def pair_scores(text: Tensor, video: Tensor, *, scale: float) -> Tensor:
    """Float64 `[N]`: the exact scores of `text[i]` with `video[i]`, equal to the entries of a full matrix."""
    return (exact_unit(text) * exact_unit(video)).sum(-1) * scale
