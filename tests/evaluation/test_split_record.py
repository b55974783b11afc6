"""Coverage and leakage are told where the build recorded them, and nothing is made up where not."""

import json
from pathlib import Path

from dgl_scale.evaluation.split_record import read_coverage, read_leakage


def test_coverage(tmp_path: Path) -> None:
    results = {"split_folder": str(tmp_path / "test")}
    assert read_coverage(results) == {}
    counts = {"annotated": 1003, "found": 1000, "missing": 3, "failed": 1}
    (tmp_path / "build.json").write_text(json.dumps({"splits": {"test": {"coverage": counts}, "train": {"coverage": {}}}}))
    assert read_coverage(results) == counts
    assert read_coverage({"split_folder": str(tmp_path / "other")}) == {}
    (tmp_path / "build.json").write_text("cut")
    assert read_coverage(results) == {}
    assert read_coverage({**results, "coverage": {"annotated": 5, "found": None}}) == {"annotated": 5}


def test_leakage(tmp_path: Path) -> None:
    results = {"split_folder": str(tmp_path / "test")}
    assert read_leakage(results) is None
    pairs = [
        {"splits": [one, other], "exact": 2, "near": 1} for one, other in (("test", "test"), ("test", "train"), ("train", "validation"))
    ]
    captions = [
        {"of": of, "also_in": where, "captions": 1200, "videos": 7}
        for of, where in (("test", "train"), ("train", "test"), ("test", "test"))
    ]
    (tmp_path / "leakage.json").write_text(json.dumps({"video_pairs": pairs, "captions": captions}))
    assert read_leakage(results) == ["2 equal and 1 nearly equal videos in train.", "1,200 captions of 7 videos are captions of train too."]
    (tmp_path / "leakage.json").write_text(json.dumps({"video_pairs": [], "captions": []}))
    assert read_leakage(results) == []
