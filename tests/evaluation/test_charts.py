"""Ticks enclose the values; lines stay inside the view box."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgl_scale.evaluation.charts import HEIGHT, WIDTH, Curve, Series, format_number, nice_ticks, plot_curve, thin_out


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0, 100], [0, 20, 40, 60, 80, 100]), ([3.1, 3.1], [2.6, 2.8, 3.0, 3.2, 3.4, 3.6]), ([1, 400], [0, 100, 200, 300, 400])],
)
def test_ticks(values: list[float], expected: list[float]) -> None:
    assert nice_ticks(values) == pytest.approx(expected)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20))
def test_ticks_enclose_all_values_evenly(values: list[float]) -> None:
    ticks = nice_ticks(values)
    slack = 1e-6 * (ticks[-1] - ticks[0])
    assert ticks[0] <= min(values) + slack
    assert ticks[-1] >= max(values) - slack
    assert 2 <= len(ticks) <= 9
    steps = [b - a for a, b in itertools.pairwise(ticks)]
    assert max(steps) - min(steps) <= 1e-6 * max(steps) + 1e-11


def test_lines_stay_inside_the_view_box() -> None:
    points = [(float(x), math.sin(x / 50) * 1e4) for x in range(1000)]
    plot = plot_curve(Curve("loss", "step", "loss", [Series("a", points), Series("none", [])]))
    assert [line.name for line in plot.lines] == ["a"]
    assert plot.lines[0].marks.count("M") == 12
    placed = [tuple(map(float, pair.split(","))) for pair in plot.lines[0].points.split()]
    assert len(placed) == 300
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in placed)
    assert "a from 0 to" in plot.description


def test_a_curve_without_points_has_no_lines() -> None:
    assert plot_curve(Curve("loss", "step", "loss", [Series("a", [])])).lines == ()


def test_thinning_keeps_both_ends() -> None:
    points = [(float(i), 0.0) for i in range(1001)]
    thinned = thin_out(points, 300)
    assert (len(thinned), thinned[0], thinned[-1]) == (300, points[0], points[-1])
    assert thin_out(points[:5], 5) == points[:5]


def test_lines_differ_in_the_shape_of_their_marks_too() -> None:
    plot = plot_curve(Curve("loss", "step", "loss", [Series(str(i), [(0.0, float(i)), (1.0, 9.0)]) for i in range(12)]))
    shapes = [line.marks.split("M")[1].partition("m")[2] for line in plot.lines]
    assert len(set(shapes[:6])) == 6
    assert len({(shape, line.is_hollow) for shape, line in zip(shapes, plot.lines, strict=True)}) == 12
    kinds = plot_curve(Curve("R@1", "step", "percent", [Series("a", [(0.0, 1.0)], 4), Series("b", [(0.0, 2.0)], 4, is_dashed=True)])).lines
    assert [(line.style, line.is_dashed) for line in kinds] == [(4, False), (4, True)]


@pytest.mark.parametrize(("value", "text"), [(0.5, "0.5"), (12345.6, "12,346"), (0.000123, "0.000123"), (55.21, "55.2")])
def test_numbers(value: float, text: str) -> None:
    assert format_number(value) == text
