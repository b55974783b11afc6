"""`build --estimate` against a real build of real footage."""

import math
import shutil
from pathlib import Path

import av
import pyarrow.parquet
import pytest

from dgl_scale.config_file import load_config
from dgl_scale.shards_config import FramesConfig, ShardsConfig
from shard_tools.build import main
from shard_tools.estimate import Assumptions, estimate_build, stored_frames

CONFIG = "configs/shards/folder.yaml"


def test_a_real_build_has_the_bytes_of_its_estimate(
    real_clips: list[Path], tmp_path: Path, without_ray: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    clip = tmp_path / "videos" / "clip.mp4"
    clip.parent.mkdir()
    shutil.copy(real_clips[1], clip)
    clip.with_suffix(".txt").write_text("somebody rides a bicycle through a street of shops")
    assert main(["--config", CONFIG, f"videos={clip.parent}", f"output={tmp_path}/shards"]) == 0
    with av.open(str(clip)) as container:
        stream = container.streams.video[0]
        size, seconds = (stream.width, stream.height), float(stream.duration * stream.time_base)
    (parquet,) = (tmp_path / "shards" / "train").glob("*.parquet")
    (row,) = pyarrow.parquet.read_table(parquet).to_pylist()
    capsys.readouterr()
    words = ["--estimate", "--samples", "1", "--clip-seconds", str(seconds), "--source-size", "{}x{}".format(*size)]
    assert main(["--config", CONFIG, *words]) == 0
    assert f"{row['n_frames']} frames of {round(224 * size[0] / size[1])} × 224" in capsys.readouterr().out
    config = load_config(ShardsConfig, CONFIG)
    by_pixels = estimate_build(config, Assumptions(1, clip_seconds=seconds, source_size=size))
    assert by_pixels.sample_bytes == pytest.approx(row["size"], rel=0.25)
    frames = sum(math.ceil(len(frame) / 512) * 512 for frame in jpegs(tmp_path / "shards"))
    by_frames = estimate_build(config, Assumptions(1, clip_seconds=seconds, source_size=size, frame_bytes=frames / row["n_frames"] - 256))
    assert by_frames.sample_bytes == pytest.approx(row["size"], rel=0.001)
    lists = sum(path.stat().st_size for path in parquet.parent.iterdir() if path.suffix != ".tar")
    assert by_frames.index_bytes == pytest.approx(lists, rel=0.2)


def jpegs(output: Path) -> list[bytes]:
    import tarfile

    (path,) = (output / "train").glob("*.tar")
    with tarfile.open(path) as tar:
        return [tar.extractfile(member).read() for member in tar if member.name.endswith(".jpg")]


def test_shards_parts_and_tasks() -> None:
    config = load_config(ShardsConfig, CONFIG, ["max_shard_bytes=500000000", "max_tasks_in_flight=8", "cpus_per_task=2"])
    found = estimate_build(config, Assumptions(10_001, num_cpus=12))
    assert found.sample_bytes == pytest.approx(1_302_000, rel=0.001)
    assert found.tars == 11 * 3 and found.tar_bytes == 10_001 * found.sample_bytes
    assert found.tasks == 6
    assert estimate_build(config, Assumptions(10_001, num_cpus=99)).tasks == 8
    assert estimate_build(config, Assumptions(1001, num_cpus=99)).tasks == 2


@pytest.mark.parametrize(("fps", "max_frames", "expected"), [(3, None, 30), (3, 12, 12), (None, 12, 12), (0.01, None, 1), (0.25, None, 3)])
def test_frames_of_a_video_of_ten_seconds(fps: float | None, max_frames: int | None, expected: int) -> None:
    assert stored_frames(FramesConfig(fps=fps, max_frames=max_frames), 10.0) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--estimate"], "--estimate needs --samples"),
        (["--samples", "3"], "--samples is for --estimate"),
        (["--estimate", "--samples", "3", "--source-size", "640"], "'640' is no frame size such as 640x360"),
    ],
)
def test_wrong_usage_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--config", CONFIG, *words])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and message in error and error.count("\n") == 1
