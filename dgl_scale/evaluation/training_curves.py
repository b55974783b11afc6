"""Charts of metrics.jsonl: loss, recall on validation and in training, and what else the runs recorded."""

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
# Keys drawn by name below; of the others each gets a chart of its own, in the order in which it was first recorded.
_DRAWN = {"step", "time", "loss", _IN_BATCH}
_TITLES = {
    "lr": ("Learning rate", "Learning rate"),
    "grad_norm": ("Norm of the gradient", "before clipping"),
    "step_s": ("Time of a step", "seconds"),
    "data_s": ("Of this, waiting for data", "seconds"),
    "videos_per_s": ("Videos a second", "over all ranks"),
}

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
    """A chart for each other number that the training steps recorded: gradients, learning rate, time, memory."""
    records = {name: read_metrics(folder) for name, folder in runs.items()}
    keys = dict.fromkeys(key for rows in records.values() for row in rows for key in row)
    curves = []
    for key in keys:
        if key in _DRAWN or key.startswith("validation/"):
            continue
        title, unit = _TITLES.get(key, (key, key))
        lines = [Series(name, _points(rows, key), style) for style, (name, rows) in enumerate(records.items())]
        curves.append(Curve(title, "step", unit, lines))
    return curves


def _points(records: Records, key: str) -> list[tuple[float, float]]:
    # A number that was not finite at some step is a gap, not a chart without a scale.
    return [(row["step"], row[key]) for row in records if isinstance(row.get(key), int | float) and abs(row[key]) < float("inf")]
