"""What `--checkpoint` means, and result folders that are whole or as they were."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dgl_scale.config import EvaluationConfig
from dgl_scale.errors import CheckpointError, DataError, DglError
from dgl_scale.evaluation.embedding import Annotations
from dgl_scale.evaluation.features import Features
from dgl_scale.evaluation.results import evaluation_folder, read_ranks, read_results, resolve_checkpoint, write_results
from dgl_scale.evaluation.retrieval import Retrieval, evaluate_features
from dgl_scale.run_folder import step_folder, write_manifest, write_pointer

CAPTIONS = {"a": ["one", "two"], "b": ["three"], "c": ["four"]}


@pytest.fixture
def features() -> Features:
    video = torch.eye(3)
    text = torch.tensor([[1.0, 0, 0], [0, 1, 0.5], [0, 1, 0], [0, 0, 1]])
    return Features(video, text, torch.tensor([0, 0, 1, 2]), torch.arange(4)[:, None], ("a", "b", "c"), 100.0)


@pytest.fixture
def retrieval(features: Features) -> Retrieval:
    return evaluate_features(features, EvaluationConfig(bootstrap_samples=10, top_k=2), twins={}, seed=0)


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    def make(*steps: int, best: int | None = None) -> Path:
        run = tmp_path / "run"
        for step in steps:
            folder = step_folder(run, step)
            folder.mkdir(parents=True)
            (folder / "prompts.safetensors").write_bytes(b"prompts")
            write_manifest(folder)
        if best is not None:
            write_pointer(run, "best", step_folder(run, best), metric="validation mean R@1", value=41.5)
        return run

    return make


def test_a_run_means_its_best_checkpoint_else_its_newest(make_run: Callable[..., Path]) -> None:
    run = make_run(10, 20, 30)
    newest = resolve_checkpoint(str(run))
    assert (newest.name, newest.step) == ("step-00000030", 30)
    assert newest.selection == "the newest complete checkpoint of the run"
    write_pointer(run, "best", step_folder(run, 20), metric="validation mean R@1", value=41.5)
    best = resolve_checkpoint(str(run))
    assert (best.name, best.step) == ("step-00000020", 20)
    assert best.selection == "highest validation mean R@1 of the run (41.50)"


def test_a_step_a_file_and_none(make_run: Callable[..., Path], tmp_path: Path) -> None:
    step = step_folder(make_run(10, 20), 10)
    assert resolve_checkpoint(str(step)).name == resolve_checkpoint(str(step / "prompts.safetensors")).name == "step-00000010"
    assert resolve_checkpoint(str(step)).selection == "given by name"
    (tmp_path / "mine.safetensors").write_bytes(b"prompts")
    loose = resolve_checkpoint(str(tmp_path / "mine.safetensors"))
    assert (loose.name, loose.step) == ("mine", None)
    frozen = resolve_checkpoint("none")
    assert (frozen.name, frozen.prompts, frozen.step) == ("frozen", None, None)
    assert evaluation_folder(tmp_path, frozen.name, "test") == tmp_path / "evaluation" / "frozen-test"


def test_missing_and_damaged_checkpoints_are_refused(make_run: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        resolve_checkpoint(str(tmp_path / "absent"))
    step = step_folder(make_run(10), 10)
    (step / "prompts.safetensors").write_bytes(b"changed")
    with pytest.raises(CheckpointError, match="damaged"):
        resolve_checkpoint(str(step))


def test_written_results_read_back(tmp_path: Path, retrieval: Retrieval, features: Features) -> None:
    folder = tmp_path / "evaluation" / "step-00000010-test"
    results = {**retrieval.figures, "split": "test"}
    write_results(folder, results, retrieval, features, Annotations(CAPTIONS, {}), step=10)
    assert read_results(folder) == results
    assert list((folder / "tensorboard").iterdir())
    to_video, to_text = read_ranks(folder, "text_to_video"), read_ranks(folder, "video_to_text")
    assert [row["key"] for row in to_video] == ["a", "a", "b", "c"]
    assert [row["caption"] for row in to_video] == ["one", "two", "three", "four"]
    assert [row["rank"] for row in to_video] == [1.0, 3.0, 1.0, 1.0]
    assert to_video[1]["top_keys"] == ["b", "c"]
    assert to_video[0]["score"] == pytest.approx(100)
    assert [row["key"] for row in to_text] == ["a", "b", "c"]
    assert to_text[1]["top_captions"] == ["three", "two"]
    assert to_text[1]["top_keys"] == ["b", "a"]


def test_a_second_evaluation_replaces_the_first_and_a_failed_one_does_not(tmp_path: Path, retrieval: Retrieval, features: Features) -> None:
    folder = tmp_path / "frozen-test"
    for seconds in (1.0, 2.0):
        write_results(folder, {**retrieval.figures, "seconds": seconds}, retrieval, features, Annotations(CAPTIONS, {}), step=None)
    assert read_results(folder)["seconds"] == 2.0
    with pytest.raises(ValueError, match="JSON"):
        write_results(folder, {**retrieval.figures, "seconds": float("nan")}, retrieval, features, Annotations(CAPTIONS, {}), step=None)
    with pytest.raises(DataError, match="sample b has 2 captions but 1 were encoded"):
        write_results(folder, retrieval.figures, retrieval, features, Annotations({**CAPTIONS, "b": ["x", "y"]}, {}), step=None)
    assert read_results(folder)["seconds"] == 2.0
    assert [path.name for path in tmp_path.iterdir()] == ["frozen-test"]


def test_damaged_results_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read"):
        read_results(tmp_path)
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(DataError, match="holds no evaluation results"):
        read_results(tmp_path)
    (tmp_path / "ranks.parquet").write_bytes(b"PAR1 no parquet")
    with pytest.raises(DataError, match=r"cannot read .*ranks\.parquet"):
        read_ranks(tmp_path, "text_to_video")


def test_a_place_that_cannot_be_written(tmp_path: Path, retrieval: Retrieval, features: Features) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DglError, match="cannot write"):
        write_results(tmp_path / "file" / "x", retrieval.figures, retrieval, features, Annotations(CAPTIONS, {}), step=None)
