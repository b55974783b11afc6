import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from dgl_scale.data.samples import decode_tar_range
from shard_tools.build import main
from shard_tools.verify import main as verify

IDS = ["video0", "video1", "video2", "video3", "video.4", "../video5", "video6", "video7"]


@pytest.fixture
def msrvtt(tmp_path: Path, make_clip: Callable[..., Path], clip: Path) -> list[str]:
    """Arguments of a build of an MSR-VTT-like dataset: six clips in three containers, a missing file and a link out of the folder."""
    for name in ("all/video0.mp4", "all/video1.mkv", "all/video2.mov", "all/video3.mp4", "all/video.4.mp4", "all/unknown.mp4"):
        make_clip(tmp_path / "videos" / name, num_frames=5)
    (tmp_path / "videos" / "all" / "video6.mp4").symlink_to(clip)
    make_clip(tmp_path / "videos" / "video5.mp4", num_frames=5)
    data = {
        "videos": [
            {"video_id": name, "category": 1, "url": f"https://youtu.be/?v=s{i}", "start time": 50.0, "end time": 60.0, "split": "train"}
            for i, name in enumerate(IDS)
        ],
        "sentences": [
            {"video_id": name, "caption": f"{name} caption {i}", "sen_id": 20 * n + i} for n, name in enumerate(IDS) for i in range(2)
        ],
    }
    (tmp_path / "data.json").write_text(json.dumps(data))
    (tmp_path / "train.csv").write_text("\ufeffvideo_id\r\n" + "".join(f"{name}\r\n" for name in IDS[:6]), encoding="utf-8")
    (tmp_path / "test.csv").write_text("key,vid_key,video_id,sentence\nret0,msr6,video6,a query\nret1,msr7,video7,none\n")
    files = {"captions": "data.json", "train": "train.csv", "test": "test.csv"}
    paths = [f"msrvtt.{key}={tmp_path / name}" for key, name in files.items()]
    return [*paths, f"videos={tmp_path / 'videos'}", f"output={tmp_path / 'out'}", "validation_videos=1", "frames.short_side=32"]


def samples(split: Path) -> dict[str, Any]:
    found = {}
    for path in sorted(split.glob("*.parquet")):
        tar = path.with_suffix(".tar").read_bytes() if path.with_suffix(".tar").exists() else b""
        for row in pyarrow.parquet.read_table(path, partitioning=None).to_pylist():
            good = row["status"] == "ok"
            found[row["video_id"]] = decode_tar_range(tar[row["offset"] : row["offset"] + row["size"]]) if good else row["status"]
    return found


def test_a_build_of_a_published_dataset(
    msrvtt: list[str], tmp_path: Path, without_ray: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--config", "configs/shards/msrvtt.yaml", *msrvtt, "max_failed_fraction=0.5"]
    assert main(command) == 1
    shown = capsys.readouterr()
    assert "split test has 1 of 2 annotated videos (50%); require_coverage is 100%" in shown.err
    assert shown.err.splitlines()[-1].startswith("error: split test has")
    assert "test: 2 annotated, 1 found (50%), 1 missing, 1 found but failed\n" in shown.out
    assert "2 video files without annotation" in shown.out
    record = json.loads((tmp_path / "out" / "build.json").read_text())
    assert record["status"] == "low_coverage"
    assert record["coverage"] == {"annotated": 8, "found": 7, "missing": 1, "failed": 2, "extra": 2}
    assert record["splits"]["test"]["coverage"] == {"annotated": 2, "found": 1, "missing": 1, "failed": 1}

    without_ray.clear()
    assert main([*command, "require_coverage=0.5"]) == 0 and without_ray == []
    assert json.loads((tmp_path / "out" / "build.json").read_text())["status"] == "complete"
    assert verify([str(tmp_path / "out")]) == 0

    trained, held_out = samples(tmp_path / "out" / "train"), samples(tmp_path / "out" / "validation")
    assert samples(tmp_path / "out" / "test") == {"video6": "bad_path", "video7": "missing"}
    assert len(held_out) == 1 and {**trained, **held_out}.keys() == set(IDS[:6])
    both = {**trained, **held_out}
    assert both.pop("../video5") == "bad_path"
    assert both["video.4"].metadata.captions == ["video.4 caption 0", "video.4 caption 1"] and "." not in both["video.4"].key
    assert {name: sample.metadata.source for name, sample in both.items()}["video2"] == "all/video2.mov"
    assert all(sample.metadata.duration == 0.5 and len(sample.frames) == 2 for sample in both.values())
