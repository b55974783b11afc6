"""Time of a step against frames, patches and prompts, beside what the estimate of operations predicts; as SVG charts."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import torch

from dgl_scale.bench.matrix_rate import tower_products
from dgl_scale.bench.step_cost import time_in_turn
from dgl_scale.bench.train_step import random_batch, train_step
from dgl_scale.config import ModelConfig
from dgl_scale.evaluation.charts import HEIGHT, WIDTH, Curve, Plot, Series, plot_curve
from dgl_scale.model import build_model
from dgl_scale.model.estimate import StepSize, estimate_step

_COLOURS = ("#2a6fb0", "#c2571a")
_STYLE = (
    "text{font:11px sans-serif;fill:#555}.title{font-weight:bold;fill:#333}.grid{stroke:#ddd}polyline{fill:none;stroke-width:2}"
    "@media(prefers-color-scheme:dark){text{fill:#bbb}.title{fill:#eee}.grid{stroke:#444}}"
)


@dataclass(frozen=True)
class Point:
    """A step of one size: `value` is what the axis counts."""

    axis: str
    value: int
    seconds: float
    predicted_seconds: float


def measure_scaling(config: ModelConfig, *, clips: Sequence[str], dtype: torch.dtype, device: torch.device, rounds: int) -> list[Point]:
    """Measure steps of one video: each axis alone, the others as in `config`.

    The prediction is the estimate's operations over the rate of matrix products, measured in the same run.
    """
    points = []
    for axis, value, one in _sizes(config, clips):
        model = build_model(one, dtype=dtype, device=device)
        frames, tokens = random_batch(model, 2, one.num_frames, 32, dtype, device)
        limit, limit_flops = tower_products(
            model.shape.vision, frames.shape[0] * one.num_frames * (model.shape.num_patches + 1), dtype, device
        )
        seconds = time_in_turn({"step": train_step(model, frames, tokens), "limit": limit}, rounds=rounds, device=device, warm_up=1)
        length = int(tokens.argmax(dim=1).max()) + 1
        estimate = estimate_step(one, model.shape, StepSize(2, 2, one.num_frames, length), bytes_per_value=dtype.itemsize)
        predicted = estimate.model_flops / limit_flops * min(seconds["limit"])
        points.append(Point(axis, model.shape.num_patches if axis == "patches" else value, min(seconds["step"]), predicted))
        sys.stdout.write(f"  {axis:<24}{points[-1].value:>6}{points[-1].seconds:>10.3f} s, at the limit {predicted:.3f} s\n")
    return points


def draw_scaling(points: Sequence[Point]) -> str:
    """All axes as one SVG file, a chart each, two in a row."""
    axes = list(dict.fromkeys(point.axis for point in points))
    plots = [plot_curve(_curve(axis, [point for point in points if point.axis == axis])) for axis in axes]
    rows = -(-len(plots) // 2)
    charts = "".join(
        f'<g transform="translate({WIDTH * (i % 2)} {(HEIGHT + 40) * (i // 2)})">{_chart(plot)}</g>' for i, plot in enumerate(plots)
    )
    description = escape("; ".join(plot.description for plot in plots), quote=True)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * WIDTH} {rows * (HEIGHT + 40)}" role="img" aria-label="{description}">'
        f"<style>{_STYLE}</style>{charts}</svg>\n"
    )


def _sizes(config: ModelConfig, clips: Sequence[str]) -> Iterator[tuple[str, int, ModelConfig]]:
    changes: dict[str, tuple[str, Sequence[Any]]] = {
        "frames": ("num_frames", (8, 16, 32, 64)),
        "patches": ("clip", clips),
        "local prompts a frame": ("num_local_prompts", (0, 4, 16, 32)),
        "global prompts": ("num_global_prompts", (1, 4, 16, 32)),
    }
    for axis, (key, values) in changes.items():
        for value in values:
            yield axis, value if isinstance(value, int) else 0, config.model_copy(update={key: value})


def _curve(axis: str, points: Sequence[Point]) -> Curve:
    points = sorted(points, key=lambda point: point.value)
    measured = Series("measured", [(point.value, point.seconds) for point in points])
    predicted = Series("its operations at the measured matrix rate", [(point.value, point.predicted_seconds) for point in points])
    return Curve(f"Seconds of a step against {axis}", axis, "seconds", (measured, predicted), from_zero=True)


def _chart(plot: Plot) -> str:
    parts = [f'<text class="title" x="{plot.left}" y="10">{escape(plot.curve.title)}</text>']
    for tick in plot.y_ticks:
        parts.append(f'<line class="grid" x1="{plot.left}" x2="{plot.right}" y1="{tick.position}" y2="{tick.position}"/>')
        parts.append(f'<text x="{plot.left - 7}" y="{tick.position + 4}" text-anchor="end">{tick.label}</text>')
    parts += [f'<text x="{tick.position}" y="{plot.bottom + 17}" text-anchor="middle">{tick.label}</text>' for tick in plot.x_ticks]
    for line, colour in zip(plot.lines, _COLOURS, strict=True):
        parts.append(f'<polyline points="{line.points}" stroke="{colour}"/>')
        parts.append(f'<path d="{line.marks}" fill="{colour}"/>')
    for i, (line, colour) in enumerate(zip(plot.lines, _COLOURS, strict=True)):
        parts.append(f'<text x="{plot.left + 130 * i}" y="{plot.height + 10}" style="fill:{colour}">{escape(line.name)}</text>')
    return "".join(parts)
