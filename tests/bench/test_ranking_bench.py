"""The rivals rank as they should, where nothing ties, and the command writes what it measured."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dgl_scale.bench.ranking import (
    main,
    make_features,
    rank_by_dual_softmax,
    ranks_by_chunks,
    ranks_by_sorting,
    ranks_by_whole_dual_softmax,
)
from dgl_scale.evaluation.pairwise import InProcess
from dgl_scale.evaluation.ranks import rank_both_directions


def test_rivals_agree_with_the_exact_ranking_where_nothing_ties() -> None:
    text, video = make_features(150, 16, 1.0)
    exact = rank_both_directions(text, video, torch.arange(150), scale=1.0, block_size=64, top_k=1)
    by_chunks, by_sorting = ranks_by_chunks(text, video), ranks_by_sorting(text, video)
    # Each rival decides in float32 and by its own summation: a rank may be off by one here and there.
    for direction, chunks, positions in zip(("text_to_video", "video_to_text"), by_chunks, by_sorting, strict=True):
        ranks = getattr(exact, direction).ranks - 1
        assert (ranks - chunks).abs().max() <= 1
        assert (ranks - torch.from_numpy(positions)).abs().max() <= 1
    assert exact.text_to_video.ranks.max() > 1


def test_both_ways_of_dual_softmax_agree() -> None:
    text, video = make_features(150, 16, 1.0)
    blocks, whole = rank_by_dual_softmax(text, video, InProcess(64)), ranks_by_whole_dual_softmax(text, video)
    for ranks, counts in zip((blocks.text_to_video.ranks, blocks.video_to_text.ranks), whole, strict=True):
        assert (ranks - 1 - counts).abs().max() <= 1
        assert ranks.max() > 1


def test_the_command_prints_ratios_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--size", "60", "--rivals-size", "40", "--width", "8", "--rounds", "1", "--json", str(tmp_path / "figures.json")]) == 0
    printed = capsys.readouterr().out
    assert "60 captions x 60 videos x 8" in printed
    assert "100.0%" in printed
    written = json.loads((tmp_path / "figures.json").read_text())["measurements"]
    assert [one["size"] for one in written] == [60, 60, 60, 60, 40, 40, 60, 40]
    assert all(one["seconds"] > 0 and one["name"] in printed for one in written)


def test_without_rivals_only_the_ranking_and_its_limit_are_measured(tmp_path: Path) -> None:
    assert main(["--size", "60", "--width", "8", "--rounds", "1", "--no-rivals", "--json", str(tmp_path / "figures.json")]) == 0
    written = json.loads((tmp_path / "figures.json").read_text())["measurements"]
    assert [one["name"] for one in written] == ["exact ranking", "bare product, float32"]


@pytest.mark.slow
def test_workers_are_measured_too(tmp_path: Path) -> None:
    report = tmp_path / "figures.json"
    command = [sys.executable, "-m", "dgl_scale.bench.ranking", "--size", "60", "--width", "8", "--rounds", "1", "--no-rivals"]
    run = subprocess.run([*command, "--workers", "2", "--json", str(report)], capture_output=True, text=True, timeout=200, check=False)
    assert run.returncode == 0, run.stderr
    written = json.loads(report.read_text())["measurements"]
    assert [one["name"] for one in written][2:] == ["exact ranking, 2 workers", "dual softmax, 2 workers"]
    assert all(one["seconds"] > 0 for one in written)
