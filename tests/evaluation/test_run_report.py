"""Which queries a report shows, which curves, and what it says when the shards are gone."""

import json
from pathlib import Path

import pytest

from dgl_scale.data.index import load_split
from dgl_scale.errors import DataError
from dgl_scale.evaluation.run_report import build_coverage, evaluation_folders, query_examples, run_curves, spread_over_ranks


@pytest.mark.parametrize(("count", "expected"), [(3, [1.0, 2.5, 40.0]), (1, [1.0]), (99, [1.0, 1.0, 2.5, 7.0, 40.0])])
def test_examples_are_spread_over_ranks_with_best_and_worst(count: int, expected: list[float]) -> None:
    rows = [{"rank": rank} for rank in (7.0, 1.0, 40.0, 1.0, 2.5)]
    assert [row["rank"] for row in spread_over_ranks(rows, count)] == expected


def test_examples_show_the_right_clip_even_when_it_was_missed(tiny_split: Path) -> None:
    keys = [f"clip_{i:02d}" for i in range(7)]
    row = {"key": "clip_09", "caption": "a caption", "rank": 9.5, "score": 1.5, "top_keys": keys, "top_scores": [9.0 - i for i in range(7)]}
    (missed,) = query_examples([row], load_split(tiny_split))
    assert [candidate.key for candidate in missed.candidates] == keys[:5]
    assert missed.right is not None
    assert (missed.right.key, missed.right.score, missed.right.is_right) == ("clip_09", 1.5, True)
    (found,) = query_examples([{**row, "key": "clip_03", "rank": 4.0}], load_split(tiny_split))
    assert [candidate.is_right for candidate in found.candidates] == [False, False, False, True, False]
    assert found.right is None
    with pytest.raises(DataError, match="no sample gone"):
        query_examples([{**row, "key": "gone"}], load_split(tiny_split))


def test_curves_of_runs(tmp_path: Path) -> None:
    records = [
        {"step": 10, "time": 0.0, "loss": 3.0, "in_batch_R@1": 5.0},
        {"step": 20, "time": 1.0, "loss": 2.0, "in_batch_R@1": 9.0},
        {"step": 20, "time": 1.0, "validation/text_to_video/R@1": 30.0, "validation/video_to_text/R@1": 28.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    loss, recall = run_curves({"a": tmp_path})
    assert loss.series[0].points == [(10, 3.0), (20, 2.0)]
    assert [(series.name, series.points[-1]) for series in recall.series] == [
        ("text to video", (20, 30.0)),
        ("video to text", (20, 28.0)),
        ("within a training batch", (20, 9.0)),
    ]
    loss, recall = run_curves({"a": tmp_path, "b": tmp_path / "none"})
    assert [series.name for series in loss.series] == ["a", "b"]
    assert [list(series.points) for series in recall.series] == [[(20, 30.0)], []]


def test_evaluations_are_listed_with_the_baseline_first(tmp_path: Path) -> None:
    for name in ("step-00000020-test", "step-00000010-test", "frozen-test", ".step-00000030-test.new"):
        folder = tmp_path / "evaluation" / name
        folder.mkdir(parents=True)
        (folder / "results.json").write_text("{}")
    assert [folder.name for folder in evaluation_folders(tmp_path)] == ["frozen-test", "step-00000010-test", "step-00000020-test"]


def test_coverage_of_the_build(tmp_path: Path) -> None:
    assert build_coverage(tmp_path / "test") == {}
    (tmp_path / "build.json").write_text(
        json.dumps({"coverage": {"annotated": 1600, "found": 1599, "missing": 1, "failed": 0, "extra": 0}})
    )
    assert build_coverage(tmp_path / "test") == {"videos of the shard build": "1,600 annotated, 1,599 found, 1 missing, 0 failed, 0 extra"}
