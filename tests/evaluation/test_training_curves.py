"""Curves of one run and of several, and a chart for whatever else was recorded."""

import json
from pathlib import Path

from dgl_scale.evaluation.training_curves import further_curves, training_curves

RECORDS = [
    {"step": 10, "time": 0.0, "loss": 3.0, "in_batch_R@1": 5.0, "lr": 0.1, "step_s": 2.0, "samples_skipped": 0.0},
    {"step": 20, "time": 1.0, "loss": 2.0, "in_batch_R@1": 9.0, "lr": 0.2, "step_s": 2.0, "data_s": 0.5, "samples_skipped": 0.0}
    | {"flops_per_s": 8.0, "grad_norm": 5.0, "grad_norm/prompts": 4.0},
    {"step": 20, "time": 1.0, "validation/text_to_video/R@1": 30.0, "validation/video_to_text/R@1": 28.0},
]


def write(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS) + '{"step": 30, "loss": Infinity}\n')
    return folder


def test_one_run(tmp_path: Path) -> None:
    loss, recall = training_curves({"a": write(tmp_path)})
    assert loss.series[0].points == [(10, 3.0), (20, 2.0)]
    assert [(series.name, series.points[-1], series.is_dashed) for series in recall.series] == [
        ("validation, text to video", (20, 30.0), False),
        ("validation, video to text", (20, 28.0), False),
        ("training batches", (20, 9.0), True),
    ]


def test_several_runs_have_a_style_each_and_training_is_dashed(tmp_path: Path) -> None:
    loss, to_video, to_text = training_curves({"a": write(tmp_path / "a"), "b": tmp_path / "none"})
    assert [series.name for series in loss.series] == ["a", "b"]
    assert [(series.name, series.style, series.is_dashed, list(series.points)) for series in to_video.series] == [
        ("a, validation", 0, False, [(20, 30.0)]),
        ("a, training batches", 0, True, [(10, 5.0), (20, 9.0)]),
        ("b, validation", 1, False, []),
        ("b, training batches", 1, True, []),
    ]
    assert to_text.series[0].points == [(20, 28.0)]


def test_whatever_else_was_recorded_gets_a_chart(tmp_path: Path) -> None:
    curves = further_curves({"a": write(tmp_path / "a"), "b": tmp_path / "none"})
    assert [(curve.title, list(curve.series[0].points)) for curve in curves] == [
        ("Learning rate", [(10, 0.1), (20, 0.2)]),
        ("Time of a step", [(10, 2.0), (20, 2.0)]),
        ("data_s", [(20, 0.5)]),
        ("flops_per_s", [(20, 8.0)]),
        ("Norm of the gradient", [(20, 5.0)]),
        ("grad_norm/prompts", [(20, 4.0)]),
    ]


def test_of_one_run_a_whole_and_its_parts_share_a_chart(tmp_path: Path) -> None:
    curves = further_curves({"a": write(tmp_path)})
    assert [(curve.title, [series.name for series in curve.series]) for curve in curves] == [
        ("Learning rate", ["lr"]),
        ("Time of a step", ["step_s", "data_s"]),
        ("flops_per_s", ["flops_per_s"]),
        ("Norm of the gradient", ["grad_norm", "grad_norm/prompts"]),
    ]
