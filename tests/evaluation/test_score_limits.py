"""Quick products stay within their bounds, and their limits let through all they must."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dgl_scale.evaluation.score_limits import bfloat16_bound, bits_at_least, bits_at_most, error_bound, round_to_bfloat16
from dgl_scale.evaluation.unit_vectors import exact_unit
from tests.reference.exact_ranking import full_matrix

_HALFWAY = 1 + 2.0**-8
"""Between two bfloat16; the even one, 1, is nearest."""


def features(kind: str, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(width)
    signs = torch.randint(0, 2, (60, width), generator=generator) * 2.0 - 1
    if kind == "random":
        return torch.randn(60, width, generator=generator)
    if kind == "signs":
        return signs * torch.rand(60, 1, generator=generator)
    if kind == "equal":
        return torch.ones(60, width)
    return torch.zeros(60, width)


@pytest.mark.parametrize("kind", ["random", "signs", "equal", "zero"])
@pytest.mark.parametrize("width", [1, 3, 512, 4096])
def test_products_of_both_kinds_stay_within_their_bounds(kind: str, width: int) -> None:
    vectors = features(kind, width)
    exact = full_matrix(vectors, vectors, 1.0)
    single = exact_unit(vectors).float()
    assert float((single @ single.T - exact).abs().max()) < error_bound(width)

    rounded, residuals = round_to_bfloat16(single)
    bound = torch.from_numpy(bfloat16_bound(width, residuals, float(residuals.max())))
    # The last rounding to bfloat16 is no part of the bound.
    assert bool(((rounded.float() @ rounded.float().T - exact).abs() <= bound[:, None]).all())


@pytest.mark.parametrize("width", [1, 2, 512])
@pytest.mark.parametrize("length", [1.0, -1.0])
def test_the_bound_holds_where_all_components_are_halfway_between_two_bfloat16(width: int, length: float) -> None:
    """Every component loses all it can, in the same direction; a bound of half as much would be too small."""
    unit = torch.full((1, width), length * _HALFWAY * 2.0 ** -round(np.log2(width) / 2))
    rounded, residuals = round_to_bfloat16(unit)
    exact = float(unit.double().square().sum())
    error = abs(float(rounded.double().square().sum()) - exact)
    bound = float(bfloat16_bound(width, residuals, float(residuals[0]))[0])
    assert error <= bound * exact  # units are of length 1, these are not quite
    assert error > 0.9 * bound


@pytest.mark.parametrize("width", [64, 512])
def test_the_bound_is_far_below_the_worst_case_for_random_units(width: int) -> None:
    _, residuals = round_to_bfloat16(exact_unit(features("random", width)).float())
    assert float(bfloat16_bound(width, residuals, float(residuals.max())).max()) < 2.0**-8 * 1.2  # of 2 * 2.0**-8


@given(st.floats(-1.1, 1.1), st.floats(-1.1, 1.1), st.sampled_from((0.0, 2.0**-8, 2.0**-10)))
def test_limits_let_through_all_that_are_not_surely_lower(limit: float, distance: float, nearness: float) -> None:
    for score in (limit, distance, limit + nearness * distance):
        rounded = torch.tensor(score, dtype=torch.float32).bfloat16()
        bits = int(rounded.view(torch.int16))
        single = float(np.float32(score))
        if single >= limit:
            assert bits >= int(bits_at_most(np.array([limit]))[0])
        if bits > int(bits_at_least(np.array([limit]))[0]):
            assert single > limit


@pytest.mark.parametrize("limit", [1e-3, 0.1, 1 / 3, 0.5, 1.0])
def test_limits_are_the_nearest_bfloat16(limit: float) -> None:
    bits = bits_at_most(np.array([limit])), bits_at_least(np.array([limit]))
    low, high = (float(torch.from_numpy(one).view(torch.bfloat16)[0]) for one in bits)
    assert limit * (1 - 2.0**-7) <= low < limit < high <= limit * (1 + 2.0**-7)


def test_limits_that_are_not_positive_let_all_through_and_call_nothing_surely_above() -> None:
    scores = torch.tensor([-1.0, -1e-30, -0.0, 0.0, 1e-30]).bfloat16().view(torch.int16).numpy()
    for limit in (-np.inf, -0.5, 0.0):
        assert (scores >= bits_at_most(np.array([limit]))).all()
        assert list(scores > bits_at_least(np.array([limit]))) == [False] * 4 + [True]
    assert not (scores > bits_at_least(np.array([np.inf]))).any()
