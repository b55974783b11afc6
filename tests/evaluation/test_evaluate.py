"""The command: one line for each mistake, a whole evaluation with Ray, a report of it, nothing left behind."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dgl_scale import evaluate
from dgl_scale.config import RunConfig
from dgl_scale.config_file import load_config
from dgl_scale.data.index import load_split
from dgl_scale.data.tokenizer import load_tokenizer
from dgl_scale.evaluation import report_command
from dgl_scale.evaluation.embedding import encode_split, evaluate_model, load_model, read_annotations
from dgl_scale.evaluation.features import join_features
from dgl_scale.evaluation.pairwise import InProcess, labelled
from dgl_scale.evaluation.rescoring import qb_norm_figures
from dgl_scale.evaluation.results import read_ranks, read_results
from dgl_scale.files import exclusive_lock
from dgl_scale.model import build_model, save_prompts

SCRIPT = Path(evaluate.__file__)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--checkpoint", "none", "evaluation.block_size=0"], 2, "evaluation.block_size"),
        (["--checkpoint", "none", "evaluation.split=train"], 2, "evaluation.split"),
        (["--checkpoint", "none", "--workers", "0"], 2, "evaluation.num_workers"),
        (["--checkpoint", "none", "--split", "validation"], 2, "data.validation is missing"),
        (["--checkpoint", "none", "evaluation.tok_k=3"], 2, "did you mean top_k?"),
        (["--checkpoint", "no/such/run"], 1, "no checkpoint at no/such/run"),
        (["--checkpoint", "none", "data.test=no/such/shards"], 1, "no/such/shards"),
        (["--checkpoint", "none", "evaluation.qb_norm.k=1"], 2, "evaluation.qb_norm needs data.train"),
        (["--checkpoint", "none", "--watch", "runs/x"], 2, "give --checkpoint or --watch, not both"),
        (["--watch", "no/such/run", "evaluation.watch_patience_s=0.001", "evaluation.watch_seconds=0.01"], 1, "no run folder"),
        ([], 2, "--checkpoint is missing"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], code: int, message: str, write_config: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert evaluate.main(["--config", str(write_config()), *words]) == code
    error = "".join(line for line in capsys.readouterr().err.splitlines(keepends=True) if not line.startswith("watching "))
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://localhost:1", "http://127.0.0.1:1"])
def test_an_absent_cluster_is_said_at_once(
    address: str, write_config: Callable[..., Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert evaluate.main(["--config", str(write_config()), "--checkpoint", "none"]) == 2
    assert f"error: no Ray cluster at RAY_ADDRESS={address}" in capsys.readouterr().err


def test_prompts_of_another_model_are_refused_before_any_worker_starts(
    write_config: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config_file = write_config()
    config = load_config(RunConfig, config_file)
    other = build_model(config.model.model_copy(update={"num_frames": 5}), seed=config.seed)
    save_prompts(other, tmp_path / "other.safetensors")
    assert evaluate.main(["--config", str(config_file), "--checkpoint", str(tmp_path / "other.safetensors")]) == 1
    assert "num_frames" in capsys.readouterr().err


def test_a_second_evaluation_into_one_folder_is_refused(
    write_config: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--config", str(write_config()), "--checkpoint", "none"]
    with exclusive_lock(tmp_path / "runs" / "tiny" / "evaluation" / ".frozen-test.lock"):
        assert evaluate.main(words) == 1
    assert capsys.readouterr().err.startswith(f"error: another evaluation is writing to {tmp_path}/runs/tiny/evaluation/frozen-test; wait")


def test_show_config(write_config: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main(["--config", str(write_config()), "--workers", "3", "--show-config", "--local_rank=0"]) == 0
    assert "num_workers: 3" in capsys.readouterr().out


def test_twins_and_captions_are_read_from_the_shards(tiny_split: Path) -> None:
    index = load_split(tiny_split)
    annotations = read_annotations(index, tuple(map(str, index.keys)))
    assert annotations.twins["clip_00"] == "clip_01"
    assert "clip_10" not in annotations.twins
    assert [len(annotations.captions[f"clip_{i:02d}"]) for i in range(4)] == [1, 2, 3, 1]


def test_frozen_evaluation_in_this_process(tiny_config: RunConfig, tiny_split: Path) -> None:
    index = load_split(tiny_split)
    tokenizer = load_tokenizer(tiny_config.model.clip, tiny_config.data.max_words)
    model = load_model(tiny_config, None, torch.device("cpu")).train()
    figures = evaluate_model(model, index, tokenizer, tiny_config, torch.device("cpu")).figures
    assert (figures["queries"], figures["videos"], figures["pair_accuracy"]["pairs"]) == (21, 11, 5)
    assert model.training


@pytest.mark.slow
def test_a_whole_evaluation_and_its_report(
    write_config: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config_file = write_config(qb_norm={"betas": [1.0, 20.0]})
    config = load_config(RunConfig, config_file)
    model = build_model(config.model, seed=config.seed)
    save_prompts(model, tmp_path / "mine.safetensors", {"run": "other", "dataset": "elsewhere", "shards": "0" * 64})
    splits = [f"data.{split}={config.data.test}" for split in ("train", "validation")]
    words = ["--config", str(config_file), "--checkpoint", str(tmp_path / "mine.safetensors"), "--device", "cpu", *splits]
    temporary = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    assert evaluate.main(words) == 0
    printed = capsys.readouterr().out
    assert "21 captions, 11 videos, split test" in printed
    assert "zero-shot transfer: trained on elsewhere (run other), evaluated on tiny" in printed
    temporary.rmdir()  # refuses a folder that is not empty

    folder = tmp_path / "runs" / "tiny" / "evaluation" / "mine-test"
    results = read_results(folder)
    json.dumps(results, allow_nan=False)
    assert results["trained_parameters"] == sum(p.numel() for _, p in model.trainable_parameters())
    assert 0 < results["trained_share"] < 1
    assert results["selection"] == "given by name"
    index, tokenizer = load_split(str(config.data.test)), load_tokenizer(config.model.clip, config.data.max_words)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    here = evaluate_model(model, index, tokenizer, config, torch.device("cpu"))
    part = encode_split(model, index, tokenizer, start=0, stop=11, config=config, device=torch.device("cpu"))
    torch.set_num_threads(threads)
    # All three splits are one here: captions are their own bank.
    features, bank = join_features([part]), config.evaluation.qb_norm
    assert bank is not None
    here.figures["rerank"]["qb_norm"] = qb_norm_figures(
        labelled(features), features.text, labelled(features), bank, scale=features.scale, pairwise=InProcess(64)
    )
    assert {name: results[name] for name in here.figures} == here.figures
    assert [row["rank"] for row in read_ranks(folder, "video_to_text")] == here.ranking.video_to_text.ranks.tolist()

    # Other figures of the same features: nothing is encoded, so no cluster is missed.
    with monkeypatch.context() as patch:
        patch.setenv("RAY_ADDRESS", "127.0.0.1:1")
        assert evaluate.main([*words, "evaluation.block_size=3"]) == 0
    results = read_results(folder)
    assert results["encoded"] == {"videos": 0, "captions_of_videos": 0}
    assert {name: results[name] for name in here.figures} == here.figures

    assert report_command.main([str(tmp_path / "runs" / "tiny")]) == 0
    page = (tmp_path / "runs" / "tiny" / "report.html").read_text()
    assert "DGL-Transformer" in page
    assert "<script>alert" not in page
    assert all(f"clip_{i:02d}" in page for i in range(11))


@pytest.mark.slow
def test_ctrl_c_leaves_no_process(
    write_config: Callable[..., Path], find_descendants: Callable[[int], list[tuple[int, str]]], tmp_path: Path
) -> None:
    command = [sys.executable, str(SCRIPT), "--config", str(write_config()), "--checkpoint", "none", "--workers", "2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        started = _wait_for_actors(process, find_descendants)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.terminate()
        process.wait()
    assert process.returncode == 75
    assert "interrupted" in errors
    assert "Traceback" not in errors
    deadline = time.monotonic() + 30
    while left := [pid for pid in started if _is_running(pid)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
    assert not list(tmp_path.glob("runs/tiny/evaluation/[!.]*"))


def _wait_for_actors(process: "subprocess.Popen[str]", find_descendants: Callable[[int], list[tuple[int, str]]]) -> list[int]:
    """All processes below `process` once a worker of the evaluation is among them."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        below = find_descendants(process.pid)
        if any(title.startswith("ray::Encoder") for _, title in below):
            return [pid for pid, _ in below]
        time.sleep(0.1)
    raise AssertionError(f"no worker started; exit code {process.poll()}")


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_report_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report_command.main([str(tmp_path)]) == 1
    assert "is no run folder" in capsys.readouterr().err
    (tmp_path / "metrics.jsonl").touch()
    assert report_command.main([str(tmp_path)]) == 1
    assert "holds no evaluation" in capsys.readouterr().err
    assert report_command.main([os.fspath(tmp_path / "absent")]) == 1
    assert "no run folder" in capsys.readouterr().err
