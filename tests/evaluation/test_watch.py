"""Following a run: every complete checkpoint once, whatever the run deletes, whoever else watches."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dgl_scale import evaluate
from dgl_scale.config import RunConfig
from dgl_scale.config_file import load_config
from dgl_scale.errors import CheckpointError, DglError
from dgl_scale.evaluation.metrics import METRICS
from dgl_scale.evaluation.results import read_results
from dgl_scale.evaluation.retrieval import DIRECTIONS
from dgl_scale.evaluation.watch import watch
from dgl_scale.evaluation.watch_summary import write_curves
from dgl_scale.files import exclusive_lock, file_sha256, write_json
from dgl_scale.model import build_model, load_prompts, save_prompts
from dgl_scale.ray_cluster import ray_cluster
from dgl_scale.run_folder import mark_finished, read_pointer, remove_checkpoint, step_folder, write_manifest
from dgl_scale.storage.clients import StorageError
from dgl_scale.storage.storage import Storage
from dgl_scale.telemetry import read_metrics
from tests.evaluation.conftest import CLIP, NUM_VIDEOS, make_sample, write_split
from tests.s3_server import s3_bucket

Results = dict[str, Any]


@pytest.fixture(scope="module")
def make_config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., RunConfig]]:
    """`make_config(output, **evaluation)`: configs with one store, so that only the first test that needs features encodes them."""
    folder = tmp_path_factory.mktemp("watch")
    split = write_split(folder / "shards" / "validation", [make_sample(i) for i in range(NUM_VIDEOS)])
    (folder / "tiny_clip.json").write_text(json.dumps(CLIP))

    def make(output: Path, **evaluation: object) -> RunConfig:
        settings = {"batch_size": 4, "bootstrap_samples": 20, "top_k": 5, "split": "validation", "watch_seconds": 0.05, **evaluation}
        values = {
            "name": "tiny",
            "output": str(output),
            "model": {"clip": str(folder / "tiny_clip.json"), "latent_space": "linear", "num_frames": 3},
            "data": {"validation": str(split), "max_words": 16},
            "training": {"global_batch_size": 4, "max_steps": 1},
            "evaluation": {"feature_store": str(folder / "store"), **settings},
        }
        output.mkdir(parents=True, exist_ok=True)
        (output / "config.yaml").write_text(yaml.safe_dump(values))
        return load_config(RunConfig, output / "config.yaml")

    with ray_cluster(1):
        yield make


def write_checkpoint(config: RunConfig, step: int, *, seed: int = 0) -> Path:
    """A checkpoint with prompts of its own, as training leaves it."""
    folder = step_folder(Path(config.output) / config.name, step)
    folder.mkdir(parents=True)
    model, generator = build_model(config.model, seed=config.seed), torch.Generator().manual_seed(step + seed)
    for tensor in model.prompts_state().values():
        tensor.add_(torch.randn(tensor.shape, generator=generator))
    save_prompts(model, folder / "prompts.safetensors", {"step": step})
    write_manifest(folder)
    return folder


def follow(config: RunConfig, announce: Callable[[Results], None] = lambda results: None, run: str | None = None) -> tuple[int, list[int]]:
    steps: list[int] = []

    def note(results: Results) -> None:
        steps.append(results["step"])
        announce(results)

    run = run or str(Path(config.output) / config.name)
    return watch(config, run, "cpu", command=["test"], progress=lambda done, total: None, announce=note), steps


@pytest.mark.slow
def test_a_run_is_followed_while_it_writes_and_deletes(make_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = make_config(tmp_path)
    run = tmp_path / "tiny"
    write_checkpoint(config, 10)
    doomed = write_checkpoint(config, 20)
    seen: list[float] = []

    def training_goes_on(results: Results) -> None:
        seen.append((results["text_to_video"]["R@1"] + results["video_to_text"]["R@1"]) / 2)
        if results["step"] == 10:
            remove_checkpoint(doomed)
            write_checkpoint(config, 30)
        if results["step"] == 30:
            write_checkpoint(config, 40)
            mark_finished(run, 40)

    assert follow(config, training_goes_on) == (3, [10, 30, 40])
    evaluations = run / "evaluation"
    assert not list(evaluations.glob("*20*"))
    results = [read_results(evaluations / f"step-{step:08d}-validation") for step in (10, 30, 40)]
    assert [result["checkpoint"] for result in results] == [
        str(run / f"checkpoints/step-{s:08d}/prompts.safetensors") for s in (10, 30, 40)
    ]
    curves = read_metrics(evaluations / "curves-validation")
    assert [record["step"] for record in curves] == [10, 30, 40]
    assert [record["validation/text_to_video/R@1"] for record in curves] == [result["text_to_video"]["R@1"] for result in results]
    assert len(list((evaluations / "curves-validation" / "tensorboard").iterdir())) == 1

    best = json.loads((evaluations / "best.json").read_text())
    assert best["value"] == max(seen)
    assert best["step"] == (10, 30, 40)[seen.index(max(seen))]
    assert read_pointer(run, "best") == {"checkpoint": f"step-{best['step']:08d}", "metric": "validation mean R@1", "value": max(seen)}
    model = build_model(config.model, seed=config.seed)
    assert load_prompts(model, evaluations / best["prompts"])["extra"]["step"] == best["step"]
    assert len(list(evaluations.glob("best-step-*"))) == 1
    assert not list(evaluations.glob(".*"))
    # Another watcher of the same run finds nothing to do.
    assert follow(config) == (0, [])


@pytest.mark.slow
def test_the_newest_first_and_what_others_hold_later(make_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = make_config(tmp_path, watch_order="newest")
    for step in (10, 30, 40):
        write_checkpoint(config, step)
    mark_finished(tmp_path / "tiny", 40)
    held, release = threading.Event(), threading.Event()

    def other_watcher() -> None:
        with exclusive_lock(tmp_path / "tiny" / "evaluation" / ".step-00000030-validation.lock"):
            held.set()
            release.wait(60)

    other = threading.Thread(target=other_watcher)
    other.start()
    held.wait(60)
    count, steps = follow(config, lambda results: release.set() if results["step"] == 10 else None)
    other.join()
    # The other one gave up its claim without results, as if it had died.
    assert (count, steps) == (3, [40, 10, 30])
    assert [record["step"] for record in read_metrics(tmp_path / "tiny" / "evaluation" / "curves-validation")] == [10, 30, 40]


@pytest.fixture
def bucket() -> Iterator[Any]:
    """The file system of an S3 server on this machine, with a bucket `bucket`."""
    with s3_bucket() as system:
        yield system


@pytest.mark.slow
def test_a_run_in_object_storage_is_followed_there_and_its_evaluations_are_there_too(
    make_config: Callable[..., RunConfig], tmp_path: Path, bucket: Any
) -> None:
    trained = make_config(tmp_path / "trained")

    def training_goes_on(results: Results) -> None:
        if results["step"] == 20:
            mirror(bucket, write_checkpoint(trained, 30))
            bucket.pipe_file("bucket/runs/tiny/finished.json", b'{"step": 30}')

    for step in (10, 20):
        mirror(bucket, write_checkpoint(trained, step))
    first, second = (make_config(tmp_path / name, watch_order="newest") for name in ("first", "second"))
    assert follow(first, training_goes_on, "s3://bucket/runs/tiny") == (3, [20, 30, 10])
    there = "bucket/runs/tiny/evaluation"
    here = tmp_path / "first" / "tiny" / "evaluation"
    for step in (10, 20, 30):
        for name in ("results.json", "ranks.parquet"):
            path = f"step-{step:08d}-validation/{name}"
            assert bucket.cat(f"{there}/{path}") == (here / path).read_bytes()
    assert json.loads(bucket.cat(f"{there}/step-00000030-validation/results.json"))["checkpoint"].startswith(
        "s3://bucket/runs/tiny/checkpoints"
    )
    best = json.loads(bucket.cat(f"{there}/best.json"))
    prompts = bucket.cat(f"{there}/{best['prompts']}")
    assert prompts == bucket.cat(f"bucket/runs/tiny/checkpoints/step-{best['step']:08d}/prompts.safetensors")

    # Another machine, whose disk is empty, has nothing left to evaluate, and all figures.
    assert follow(second, run="s3://bucket/runs/tiny") == (0, [])
    other = tmp_path / "second" / "tiny" / "evaluation"
    assert [record["step"] for record in read_metrics(other / "curves-validation")] == [10, 20, 30]
    assert (other / best["prompts"]).read_bytes() == prompts
    assert evaluate.main(["--config", str(tmp_path / "second" / "config.yaml"), "--watch", "s3://bucket/runs/tiny"]) == 0


@pytest.mark.slow
def test_the_evaluation_of_other_prompts_is_replaced_by_that_another_watcher_made(
    make_config: Callable[..., RunConfig], tmp_path: Path, bucket: Any
) -> None:
    first, second = (make_config(tmp_path / name) for name in ("first", "second"))
    bucket.pipe_file("bucket/runs/tiny/finished.json", b'{"step": 10}')
    digests = set()
    for seed in (0, 1):
        folder = write_checkpoint(make_config(tmp_path / f"trained {seed}"), 10, seed=seed)
        digests.add(file_sha256(folder / "prompts.safetensors"))
        mirror(bucket, folder)
        assert follow(first, run="s3://bucket/runs/tiny") == (1, [10])
        assert follow(second, run="s3://bucket/runs/tiny") == (0, [])
        for output in (first, second):
            results = read_results(Path(output.output) / "tiny" / "evaluation" / "step-00000010-validation")
            assert results["prompts_sha256"] == file_sha256(folder / "prompts.safetensors")
    assert len(digests) == 2


@pytest.mark.slow
def test_watchers_that_share_no_disk_evaluate_each_checkpoint_once_and_one_that_is_killed_keeps_nothing(
    make_config: Callable[..., RunConfig], tmp_path: Path, bucket: Any
) -> None:
    trained = make_config(tmp_path / "trained")
    steps = (10, 20, 30, 40)
    for step in steps:
        mirror(bucket, write_checkpoint(trained, step))
    bucket.pipe_file("bucket/runs/tiny/finished.json", b'{"step": 40}')
    there = "bucket/runs/tiny/evaluation"
    names = ("killed", "first", "second")
    for name in names:
        make_config(tmp_path / name, watch_claim_s=6.0, feature_store=str(tmp_path / name / "store"))
    killed = start_watcher(tmp_path / "killed")
    while not bucket.find(f"{there}/claims"):
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert not bucket.find(f"{there}/step-00000040-validation/results.json"), "it was killed too late to show anything"

    others = [start_watcher(tmp_path / name) for name in names[1:]]
    said = [watcher.communicate(timeout=300)[1] for watcher in others]
    assert [watcher.returncode for watcher in others] == [0, 0], said
    complete_before = sum((tmp_path / "killed/tiny/evaluation" / f"step-{step:08d}-validation").exists() for step in steps)
    counts = [int(re.findall(r"checkpoints evaluated here: (\d+)", text)[0]) for text in said]
    assert sum(counts) + complete_before == len(steps), said
    for name in names[1:]:
        folder = tmp_path / name / "tiny" / "evaluation"
        for step in steps:
            results = f"step-{step:08d}-validation/results.json"
            assert (folder / results).read_bytes() == bucket.cat(f"{there}/{results}")
    assert not bucket.find(f"{there}/claims")


def start_watcher(output: Path) -> subprocess.Popen[str]:
    """`evaluate.py --watch` as a process group of its own, with a Ray of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "-m", "dgl_scale.evaluate", "--config", str(output / "config.yaml"), "--watch", "s3://bucket/runs/tiny"]
    return subprocess.Popen(
        [*command, "--device", "cpu", "--workers", "1"], env=environment, start_new_session=True, stderr=subprocess.PIPE, text=True
    )


def mirror(bucket: Any, folder: Path) -> None:
    """A checkpoint as training leaves it in object storage."""
    for name in ("prompts.safetensors", "manifest.json"):
        bucket.put_file(str(folder / name), f"bucket/runs/tiny/checkpoints/{folder.name}/{name}")


def test_evaluations_that_cannot_be_sent_are_said_and_end_with_an_error(
    make_config: Callable[..., RunConfig], tmp_path: Path, bucket: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(tmp_path)
    write_results_of_step_10(tmp_path / "tiny" / "evaluation")
    bucket.pipe_file("bucket/runs/tiny/finished.json", b'{"step": 10}')

    def refuse(storage: Storage, source: Path, url: str) -> None:
        raise StorageError(f"{url}: access denied")

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "send", refuse)
        with pytest.raises(DglError, match=r"the evaluations are in .*/tiny/evaluation but not all are at s3://bucket/runs/tiny: .*denied"):
            follow(config, run="s3://bucket/runs/tiny")
    assert capsys.readouterr().err.count("the evaluations are not all at s3://bucket/runs/tiny") == 1
    assert follow(config, run="s3://bucket/runs/tiny") == (0, [])
    assert bucket.exists("bucket/runs/tiny/evaluation/step-00000010-validation/results.json")


def write_results_of_step_10(folder: Path) -> None:
    figures = dict.fromkeys(METRICS, 50.0)
    path = folder / "step-00000010-validation"
    path.mkdir(parents=True)
    write_json(path / "results.json", {"step": 10, **dict.fromkeys(DIRECTIONS, figures)})
    write_curves(folder, "validation")


def test_a_checkpoint_that_never_becomes_whole_is_left_out_and_said(
    make_config: Callable[..., RunConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(tmp_path)
    (write_checkpoint(config, 10) / "prompts.safetensors").write_bytes(b"damaged")
    mark_finished(tmp_path / "tiny", 10)
    with pytest.raises(DglError, match=r"1 checkpoints of .*tiny could not be evaluated; the first: .*prompts.safetensors is not what"):
        follow(config)
    assert capsys.readouterr().err.count("step-00000010 is skipped") == 1


def test_a_checkpoint_of_another_model_ends_the_watch_and_names_the_checkpoint(
    make_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = make_config(tmp_path)
    model = build_model(config.model.model_copy(update={"num_local_prompts": 2}), seed=config.seed)
    folder = step_folder(tmp_path / "tiny", 10)
    folder.mkdir(parents=True)
    save_prompts(model, folder / "prompts.safetensors")
    write_manifest(folder)
    with pytest.raises(CheckpointError, match=f"prompts {folder}/prompts.safetensors were trained with num_local_prompts 2"):
        follow(config)


def test_a_folder_that_vanishes_is_one_line(
    make_config: Callable[..., RunConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(tmp_path, watch_patience_s=0.3)
    run = tmp_path / "tiny"
    run.mkdir()
    remover = threading.Thread(target=lambda: (time.sleep(0.5), shutil.rmtree(run)))
    remover.start()
    assert evaluate.main(["--config", str(tmp_path / "config.yaml"), "--watch", str(run)]) == 1
    remover.join()
    errors = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("watching")]
    assert len(errors) == 1
    assert errors[0].startswith(f"error: no run folder {run} for 0.3 s")
    with pytest.raises(DglError, match="no run folder"):
        follow(config)
