"""Line charts as plain geometry, in the units of an SVG view box; the template draws them.

Lines differ in colour and in the shape of their marks, so that they can be told apart without colour.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 480, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 16, 12, 42
_MAX_POINTS = 300
_TICKS = 5
_MAX_MARKS = 12
NUM_STYLES = 6
# Around (0, 0), within 4 units: circle, square, triangle, diamond, cross, star of two strokes.
_SHAPES = (
    "m-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0 -7 0z",
    "m-3.2 -3.2h6.4v6.4h-6.4z",
    "m0 -4.2l4.2 7.4h-8.4z",
    "m0 -4.6l4.6 4.6l-4.6 4.6l-4.6 -4.6z",
    "m-3.4 -3.4l6.8 6.8m0 -6.8l-6.8 6.8",
    "m-4.2 0h8.4m-4.2 -4.2v8.4",
)


@dataclass(frozen=True)
class Series:
    """A line.

    Attributes:
        points: (x, y) in order of x.
        style: which colour and marks; None: by its place in the chart.
        is_dashed: a second kind of line, such as training beside validation.
    """

    name: str
    points: Sequence[tuple[float, float]]
    style: int | None = None
    is_dashed: bool = False


@dataclass(frozen=True)
class Curve:
    """A chart to draw; with `from_zero` the y axis begins at zero."""

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    from_zero: bool = False


@dataclass(frozen=True)
class Tick:
    """A position on an axis and the number written there."""

    position: float
    label: str


@dataclass(frozen=True)
class Line:
    """A series in view-box units.

    Attributes:
        points: the `points` attribute of an SVG polyline.
        marks: the `d` attribute of an SVG path: marks at up to twelve of the points.
        style: 0 to 5, its colour and shape of marks; from the seventh line on `is_hollow`.
        last: its last value.
    """

    name: str
    points: str
    marks: str
    style: int
    is_hollow: bool
    is_dashed: bool
    last: str


@dataclass(frozen=True)
class Plot:
    """A curve ready to draw; `description` says in words what the chart shows."""

    curve: Curve
    lines: Sequence[Line]
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    description: str
    width: int = WIDTH
    height: int = HEIGHT
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    top: int = _TOP
    bottom: int = HEIGHT - _BOTTOM


def plot_curve(curve: Curve) -> Plot:
    """Lay out a curve; a series without points is left out."""
    series = [s for s in curve.series if s.points]
    if not series:
        return Plot(curve, (), (), (), f"{curve.title}: nothing recorded")
    x_ticks = nice_ticks([x for s in series for x, _ in s.points])
    y_ticks = nice_ticks([y for s in series for _, y in s.points] + ([0.0] if curve.from_zero else []))

    def place(x: float, y: float) -> tuple[float, float]:
        return _position(x, x_ticks, _LEFT, WIDTH - _RIGHT), _position(y, y_ticks, HEIGHT - _BOTTOM, _TOP)

    lines = []
    for number, one in enumerate(series):
        style = number if one.style is None else one.style
        points = [place(x, y) for x, y in thin_out(one.points, _MAX_POINTS)]
        marks = "".join(draw_mark(style, *place(x, y)) for x, y in thin_out(one.points, _MAX_MARKS))
        hollow = style // NUM_STYLES % 2 == 1
        last_value = format_number(one.points[-1][1])
        lines.append(Line(one.name, " ".join(f"{x},{y}" for x, y in points), marks, style % NUM_STYLES, hollow, one.is_dashed, last_value))
    words = [f"{s.name} from {format_number(s.points[0][1])} to {format_number(s.points[-1][1])}" for s in series]
    last = format_number(max(s.points[-1][0] for s in series))
    return Plot(
        curve,
        lines,
        [Tick(place(x, y_ticks[0])[0], format_number(x)) for x in x_ticks],
        [Tick(place(x_ticks[0], y)[1], format_number(y)) for y in y_ticks],
        f"{curve.title} over {curve.x_label} up to {last}: {'; '.join(words)}",
    )


def nice_ticks(values: Sequence[float]) -> list[float]:
    """About five round numbers, evenly spaced, that enclose all values."""
    low, high = min(values), max(values)
    if high - low <= 1e-9 * max(1.0, abs(low), abs(high)):
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def draw_mark(style: int, x: float, y: float) -> str:
    """A mark of the style's shape at (x, y), for the `d` attribute of an SVG path."""
    return f"M{x} {y}{_SHAPES[style % NUM_STYLES]}"


def thin_out(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most `most` of the points, at even distances, first and last among them."""
    if len(points) <= most:
        return list(points)
    return [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]


def format_number(value: float) -> str:
    """Up to three significant digits, without trailing zeros."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _position(value: float, ticks: Sequence[float], start: float, end: float) -> float:
    return round(start + (value - ticks[0]) / (ticks[-1] - ticks[0]) * (end - start), 2)
