"""Anybody's similarity matrix gives the same figures as features do, and bad ones one clear line."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dgl_scale.evaluation.metrics import retrieval_metrics
from dgl_scale.evaluation.metrics_command import main, matrix_metrics
from dgl_scale.evaluation.ranks import rank_both_directions
from dgl_scale.evaluation.unit_vectors import exact_unit


def test_agrees_with_the_ranking_of_features() -> None:
    generator = torch.Generator().manual_seed(0)
    words = torch.randn(6, 5, generator=generator)
    text, video = words[torch.randint(6, (17,), generator=generator)], words[torch.randint(6, (9,), generator=generator)]
    target = torch.cat([torch.arange(9), torch.randint(9, (8,), generator=generator)])
    ranking = rank_both_directions(text, video, target, scale=1.0, block_size=4, top_k=1)
    results = matrix_metrics((exact_unit(text) @ exact_unit(video).T).numpy(), target.numpy())
    for direction in ("text_to_video", "video_to_text"):
        figures = dict(results[direction])
        figures.pop("interval")
        assert figures == retrieval_metrics(getattr(ranking, direction).ranks.numpy())


def test_a_constant_matrix_scores_chance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "constant.npy", np.ones((11, 11), dtype=np.float16))
    assert main([str(tmp_path / "constant.npy"), "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert results["text_to_video"]["MnR"] == results["video_to_text"]["MnR"] == 6
    assert main([str(tmp_path / "constant.npy")]) == 0
    assert "6.0 (6.0-6.0)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([[1.0, np.nan], [0.0, 1.0]]), "similarity of caption 0 and video 1 is nan"),
        (np.ones(3), "must be a matrix"),
        (np.ones((2, 3)), "video 2 has no caption"),
        (np.ones((3, 2)), "caption 2 describes a video that the 2 columns lack"),
        (np.array([["a"]]), "must be a matrix of real numbers"),
        (np.array([[{}]], dtype=object), "cannot read"),
    ],
)
def test_bad_matrices(array: np.ndarray, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "bad.npy", array)
    assert main([str(tmp_path / "bad.npy")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error


def test_missing_and_foreign_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.npy").write_text("no array")
    assert main([str(tmp_path / "text.npy")]) == 1
    assert main([str(tmp_path / "absent.npy")]) == 1
    assert capsys.readouterr().err.count("error: cannot read") == 2
