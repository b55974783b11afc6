"""Anybody's similarity matrix gives the same figures as features do, and bad ones one clear line."""

import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dgl_scale.evaluation.metrics import retrieval_metrics
from dgl_scale.evaluation.metrics_command import main, matrix_metrics
from dgl_scale.evaluation.ranks import rank_both_directions
from dgl_scale.evaluation.unit_vectors import exact_unit
from tests.reference.exact_ranking import literal_ranks


def test_agrees_with_the_ranking_of_features() -> None:
    generator = torch.Generator().manual_seed(0)
    words = torch.randn(6, 5, generator=generator)
    text, video = words[torch.randint(6, (17,), generator=generator)], words[torch.randint(6, (9,), generator=generator)]
    target = torch.cat([torch.arange(9), torch.randint(9, (8,), generator=generator)])
    ranking = rank_both_directions(text, video, target, scale=1.0, block_size=4, top_k=1)
    results = matrix_metrics((exact_unit(text) @ exact_unit(video).T).numpy(), target.numpy())
    for direction in ("text_to_video", "video_to_text"):
        figures = {name: value for name, value in results[direction].items() if name not in {"interval", "mAP", "nDCG"}}
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


@pytest.fixture
def several() -> tuple[np.ndarray, np.ndarray]:
    """A matrix with ties, and several captions a video."""
    generator = np.random.default_rng(5)
    matrix = generator.integers(-3, 9, (23, 7)).astype(np.float32) / 4
    return matrix, np.concatenate([np.arange(7), generator.integers(0, 7, 16)])


def test_agrees_with_a_literal_loop_and_with_scikit_learn(several: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    matrix, target = several
    monkeypatch.setattr("dgl_scale.evaluation.metrics_command._SCORES_AT_ONCE", 30)
    results = matrix_metrics(matrix, target)
    to_video, to_text = literal_ranks(torch.from_numpy(matrix), target.tolist())
    for direction, ranks in (("text_to_video", to_video), ("video_to_text", to_text)):
        for name, value in retrieval_metrics(np.array(ranks)).items():
            assert results[direction][name] == pytest.approx(value)
    is_right = target[None, :] == np.arange(7)[:, None]
    assert results["video_to_text"]["mAP"] == pytest.approx(100 * sklearn_metrics.label_ranking_average_precision_score(is_right, matrix.T))
    assert results["video_to_text"]["nDCG"] == pytest.approx(100 * sklearn_metrics.ndcg_score(is_right, matrix.T))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_order_of_captions_and_videos_and_growing_functions_change_nothing(seed: int) -> None:
    generator = np.random.default_rng(seed)
    matrix, target = generator.integers(-4, 5, (19, 6)) / 4, np.concatenate([np.arange(6), generator.integers(0, 6, 13)])
    captions, videos = generator.permutation(19), generator.permutation(6)
    plain, place = figures(matrix, target), np.argsort(videos)
    assert figures(matrix[captions][:, videos], place[target[captions]]) == pytest.approx(plain)
    assert figures(np.exp(matrix) - 100, target) == pytest.approx(plain)
    better = matrix.copy()
    better[0, target[0]] += 1
    assert figures(better, target)["text_to_video/MnR"] <= plain["text_to_video/MnR"]


def figures(matrix: np.ndarray, target: np.ndarray) -> dict[str, float]:
    results = matrix_metrics(matrix, target)
    directions = ("text_to_video", "video_to_text")
    return {f"{d}/{name}": value for d in directions for name, value in results[d].items() if name != "interval"} | {
        "RSum": results["RSum"]
    }


@pytest.mark.parametrize("form", ["npy", "npz", "pt", "pt dictionary", "parquet"])
def test_all_files_give_the_same_figures(
    form: str, several: tuple[np.ndarray, np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    matrix, target = several
    path = tmp_path / f"matrix.{form.split()[0]}"
    videos = ["--videos", str(tmp_path / "videos.npy")]
    np.save(tmp_path / "videos.npy", target)
    if form == "npy":
        np.save(path, matrix)
    elif form == "npz":
        np.savez(path, similarity=matrix, videos=target)
    elif form == "pt":
        torch.save(torch.from_numpy(matrix).bfloat16(), path)
    elif form == "pt dictionary":
        torch.save({"similarity": torch.from_numpy(matrix), "videos": torch.from_numpy(target)}, path)
    else:
        columns = {f"video {i}": matrix[:, i] for i in range(7)}
        pyarrow.parquet.write_table(pyarrow.table({**columns, "videos": target}), path)
    assert main([str(path), "--json", *(videos if form in {"npy", "pt"} else [])]) == 0
    assert json.loads(capsys.readouterr().out) == matrix_metrics(matrix, target)


def test_tables(several: tuple[np.ndarray, np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    matrix, target = several
    np.savez(tmp_path / "matrix.npz", similarity=matrix, videos=target)
    cell = f"{matrix_metrics(matrix, target)['video_to_text']['nDCG']:.1f} ("
    for option, start in (("--markdown", "| "), ("--latex", r"\begin{tabular}{lrrrrrrrr}")):
        assert main([str(tmp_path / "matrix.npz"), option]) == 0
        printed = capsys.readouterr().out
        assert printed.startswith(start)
        assert cell in printed
        assert "RSum" in printed


def test_code_in_a_pt_file_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"similarity": _Evil(str(tmp_path / "ran"))}, tmp_path / "evil.pt")
    assert main([str(tmp_path / "evil.pt")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: cannot read")
    assert error.count("\n") == 1
    assert not (tmp_path / "ran").exists()


class _Evil:
    def __init__(self, path: str) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self._path, "w")


def test_missing_and_foreign_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.npy").write_text("no array")
    assert main([str(tmp_path / "text.npy")]) == 1
    assert main([str(tmp_path / "absent.npy")]) == 1
    assert capsys.readouterr().err.count("error: cannot read") == 2
    assert main([str(tmp_path / "matrix.csv")]) == 1
    assert "is none of the files that are read: .npy, .npz, .pt, .pth, .parquet" in capsys.readouterr().err
    np.savez(tmp_path / "two.npz", a=np.eye(2), b=np.eye(2))
    assert main([str(tmp_path / "two.npz")]) == 1
    assert "holds a, b; name the matrix 'similarity'" in capsys.readouterr().err
    torch.save([1, 2], tmp_path / "list.pt")
    assert main([str(tmp_path / "list.pt")]) == 1
    assert "it holds a list, not a tensor" in capsys.readouterr().err
