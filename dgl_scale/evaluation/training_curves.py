"""Charts of metrics.jsonl: loss, recall on validation and in training, and what else the runs recorded."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dgl_scale.evaluation.charts import Curve, Series
from dgl_scale.telemetry import read_metrics

_RECALL = {
    "validation/text_to_video/R@1": "text to video",
    "validation/video_to_text/R@1": "video to text",
}
_IN_BATCH = "in_batch_R@1"
# Keys that `training_curves` draws, and those that say when.
_DRAWN = {"step", "time", "loss", _IN_BATCH}
_TITLES = {
    "lr": ("Learning rate", "Learning rate"),
    "grad_norm": ("Norm of the gradient", "before clipping"),
    "step_s": ("Time of a step", "seconds"),
    "videos_per_s": ("Videos a second", "over all ranks"),
    "memory_gib": ("Memory", "GiB"),
    "model_tflops_per_s": ("Rate of the model", "TFLOP/s"),
}
# Of one run a whole and its parts share a chart.
_PARTS = {"grad_norm": re.compile(r"grad_norm/.*"), "step_s": re.compile(r"(?!step_s).*(?<!_per)_s")}

Records = Sequence[Mapping[str, Any]]


def training_curves(runs: Mapping[str, Path]) -> list[Curve]:
    """Loss, and R@1 on the validation split and within training batches, by the name of each run."""
    records = {name: read_metrics(folder) for name, folder in runs.items()}
    loss = [Series(name, _points(rows, "loss"), style) for style, (name, rows) in enumerate(records.items())]
    curves = [Curve("Loss on the training split", "step", "loss", loss)]
    if len(runs) == 1:
        (rows,) = records.values()
        lines = [Series(f"validation, {words}", _points(rows, key)) for key, words in _RECALL.items()]
        lines.append(Series("training batches", _points(rows, _IN_BATCH), is_dashed=True))
        return [*curves, Curve("R@1", "step", "percent", lines, from_zero=True)]
    for key, words in _RECALL.items():
        lines = []
        for style, (name, rows) in enumerate(records.items()):
            lines.append(Series(f"{name}, validation", _points(rows, key), style))
            lines.append(Series(f"{name}, training batches", _points(rows, _IN_BATCH), style, is_dashed=True))
        curves.append(Curve(f"R@1, {words}", "step", "percent", lines, from_zero=True))
    return curves


def further_curves(runs: Mapping[str, Path]) -> list[Curve]:
    """Charts of the other numbers that the training steps recorded: gradients, learning rate, time, memory.

    Of one run, whole and parts (of the gradient, of a step's time) are in one chart; of several, each number has its own.
    What was zero throughout is left out.
    """
    records = {name: read_metrics(folder) for name, folder in runs.items()}
    keys = [
        key
        for key in dict.fromkeys(key for rows in records.values() for row in rows for key in row)
        if key not in _DRAWN and not key.startswith("validation/") and any(y for rows in records.values() for _, y in _points(rows, key))
    ]
    if len(runs) == 1:
        (rows,) = records.values()
        groups = _group(keys)
        return [_curve(whole, [Series(key, _points(rows, key)) for key in (whole, *parts)]) for whole, parts in groups.items()]
    return [_curve(key, [Series(name, _points(rows, key), style) for style, (name, rows) in enumerate(records.items())]) for key in keys]


def _group(keys: Sequence[str]) -> dict[str, list[str]]:
    """Each key that has a chart, with those that are drawn beside it."""
    parts = {whole: [key for key in keys if pattern.fullmatch(key)] for whole, pattern in _PARTS.items() if whole in keys}
    beside = {key for group in parts.values() for key in group}
    return {key: parts.get(key, []) for key in keys if key not in beside}


def _curve(key: str, lines: Sequence[Series]) -> Curve:
    title, unit = _TITLES.get(key, (key, key))
    return Curve(title, "step", unit, lines)


def _points(records: Records, key: str) -> list[tuple[float, float]]:
    # A number that was not finite at some step is a gap, not a chart without a scale.
    return [(row["step"], row[key]) for row in records if isinstance(row.get(key), int | float) and abs(row[key]) < float("inf")]
