import json
import os
from pathlib import Path

import pytest

from shard_tools.bench import main
from shard_tools.bench_contestants import ffmpeg_program
from tests.shard_tools.clips import encode, picture


@pytest.mark.slow
def test_every_contestant_runs_and_the_ratios_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(2):
        encode(tmp_path / "videos" / f"{number}.mp4", "libx264", [picture(i, 320, 240) for i in range(40)])
    assert main(["--videos", str(tmp_path / "videos"), "--rounds", "1", "--json", str(tmp_path / "figures.json")]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    chain = {"ffmpeg to JPEG", "ffmpeg to MP4"} if ffmpeg_program() else set()
    assert set(figures["clips_per_cpu_second"]) == {"bare", "bare with Pillow", "build"} | chain
    assert set(figures["bytes_per_clip"]) == {"build"} | chain and min(figures["bytes_per_clip"].values()) > 1000
    assert ("two workers against one" in figures["ratios"]) == (len(os.sched_getaffinity(0)) > 1)
    text = capsys.readouterr().out
    assert "2 clips;" in text and "of the bare loop" in text and "target 0.85" in text


def test_a_folder_without_videos_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--videos", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: --videos {tmp_path} has 0 video files; two or more are needed\n"
