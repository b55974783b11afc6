"""Training runs of one process, in this one: what ends them, what guards them, what they leave."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import webdataset

from dgl_scale.quickstart.processes import free_port
from dgl_scale.run_folder import FINISHED, list_checkpoints, newest_complete, step_folder
from dgl_scale.train import main
from dgl_scale.training.run_estimate import checkpoint_bytes

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(ROOT)
    # What start_distributed sets for a run of one process must not outlive it.
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def arguments(world: Path, output: Path, *more: str) -> list[str]:
    data = [f"data.{split}={world}/shards/{split}" for split in ("train", "test")]
    training = ["max_steps=6", "global_batch_size=12", "checkpoint_every_steps=2", "log_every_steps=1"]
    model = ["model.pretrained=null", "data.num_workers=0", "data.validation=null", "seed=3"]
    return [
        "--config",
        "configs/quickstart.yaml",
        "--device",
        "cpu",
        f"output={output}",
        *model,
        *data,
        *(f"training.{value}" for value in training),
        *more,
    ]


def steps(output: Path) -> list[int]:
    return [int(path.name[5:]) for path in list_checkpoints(output / "quickstart")]


def records(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "quickstart" / "metrics.jsonl").read_text().splitlines()]


def test_a_run_says_where_its_time_went_and_that_it_is_finished(
    small_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(small_world, tmp_path, "training.keep_checkpoints=1", "training.keep_every_steps=4")) == 0
    assert steps(tmp_path) == [4, 6]
    assert json.loads((tmp_path / "quickstart" / FINISHED).read_text())["step"] == 6
    checkpoint = sum(path.stat().st_size for path in step_folder(tmp_path / "quickstart", 6).iterdir())
    assert 0 < checkpoint - checkpoint_bytes(276_992) < 20_000  # the heads of the files, in which the tensors' names are
    last = records(tmp_path)[-1]
    phases = sum(last[f"{name}_s"] for name in ("data", "forward", "communication", "backward", "optimizer"))
    assert 0 < phases <= last["step_s"] * 1.5
    parts = sum(last[f"grad_norm/{part}"] ** 2 for part in ("global_prompts", "latent_space", "text_projections"))
    assert parts**0.5 == pytest.approx(last["grad_norm"], rel=1e-4)
    assert last["model_tflops_per_s"] > 0
    assert "mfu" not in last
    assert "0.0 GiB" not in capsys.readouterr().err
    assert not list((tmp_path / "quickstart").rglob("*.tmp"))


def test_the_time_limit_writes_a_checkpoint_and_the_same_command_goes_on(
    small_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notice, metrics = tmp_path / "notice", tmp_path / "quickstart" / "metrics.jsonl"

    def give_notice() -> None:
        # After a step: a run that is stopped before its first one has nothing to keep.
        while not (metrics.exists() and metrics.read_bytes()):
            time.sleep(0.02)
        notice.touch()

    threading.Thread(target=give_notice, daemon=True).start()
    more = ("training.checkpoint_every_steps=100", f"training.preemption_file={notice}", "training.max_steps=300")
    assert main(arguments(small_world, tmp_path, *more)) == 75
    said = capsys.readouterr().err
    assert "stopped by a notice of preemption (training.preemption_file) at step" in said
    notice.unlink()
    (stopped_at,) = steps(tmp_path)
    assert main(arguments(small_world, tmp_path, *more, "training.max_minutes=0.02")) == 75
    said = capsys.readouterr().err
    assert f"resumed quickstart at step {stopped_at} of 300" in said
    assert "stopped by its time limit (training.max_minutes)" in said
    assert not (tmp_path / "quickstart" / FINISHED).exists()


def test_a_loss_that_is_not_finite_stops_the_run_and_old_checkpoints_stay(
    small_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(small_world, tmp_path, "optim.lr=1e30", "optim.warmup_fraction=0", "training.checkpoint_every_steps=1")) == 1
    said = capsys.readouterr().err
    assert "error: loss is nan at step " in said or "error: the gradient's norm is" in said
    assert "rank 0: samples " in said
    assert "Traceback" not in said
    newest, problems = newest_complete(tmp_path / "quickstart")
    assert newest is not None
    assert not problems


def test_a_loss_that_stays_high_stops_the_run(small_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(small_world, tmp_path, "training.max_loss_factor=0.01", "training.max_steps=40")) == 1
    assert "(training.max_loss_factor times chance) for 20 steps" in capsys.readouterr().err


def test_training_goes_on_while_a_slow_disk_writes(small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_fsync, is_slow = os.fsync, threading.Event()

    def slow_fsync(descriptor: int) -> None:
        if threading.current_thread().name.startswith("checkpoint") and not is_slow.is_set():
            is_slow.set()
            time.sleep(3)
        real_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", slow_fsync)
    assert main(arguments(small_world, tmp_path, "training.checkpoint_every_steps=3", "training.max_steps=5")) == 0
    written = (tmp_path / "quickstart" / "checkpoints" / "step-00000003").stat().st_mtime
    assert [record["time"] < written for record in records(tmp_path) if record["step"] in (4, 5)] == [True, True]


def test_a_full_disk_keeps_what_is_there_and_the_run_ends_with_one_line(
    small_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(disk)], capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a small file system here")
    try:
        assert main(arguments(small_world, disk, "training.keep_checkpoints=10", "training.max_steps=8")) == 1
        said = capsys.readouterr().err
        assert said.count("warning: a checkpoint failed: cannot write") == 1
        assert said.count("error: cannot write") == 1
        assert "No space left on device" in said
        newest, problems = newest_complete(disk / "quickstart")
        assert newest is not None
        assert not problems
        assert not list((disk / "quickstart").rglob("*.tmp"))
        for checkpoint in list_checkpoints(disk / "quickstart")[:-1]:
            shutil.rmtree(checkpoint)
        assert main(arguments(small_world, disk, "training.keep_checkpoints=1", "training.max_steps=8")) == 0
        assert steps(disk)[-1] == 8
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_second_run_in_the_folder_is_refused(small_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import fcntl

    (tmp_path / "quickstart").mkdir()
    with open(tmp_path / "quickstart" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(arguments(small_world, tmp_path)) == 1
    assert "another run is writing to" in capsys.readouterr().err


def test_a_watched_run_validates_nothing_itself(small_world: Path, tmp_path: Path) -> None:
    more = (f"data.validation={small_world}/shards/validation", "training.validation=watched", "training.max_steps=2")
    assert main(arguments(small_world, tmp_path, *more)) == 0
    assert steps(tmp_path) == [2]
    assert not [name for record in records(tmp_path) for name in record if name.startswith("validation/")]
    assert not (tmp_path / "quickstart" / "checkpoints" / "best").exists()


def test_a_streaming_run_goes_on_in_mid_epoch_the_same_way_each_time_and_on_two_ranks(
    small_world: Path, engine_environment: dict[str, str], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    for shard in range(8):
        with webdataset.TarWriter(str(tmp_path / f"foreign-{shard:03d}.tar")) as writer:
            for number in range(6):
                frames = {f"{t:03d}.jpg": simplejpeg.encode_jpeg(rng.integers(0, 255, (64, 64, 3), np.uint8)) for t in range(2)}
                writer.write({"__key__": f"{shard}-{number}", **frames, "txt": f"clip {number} of shard {shard}"})
    sources = f"[{{shards: '{tmp_path}/foreign-{{000..007}}.tar', samples: 48}}]"
    streaming = (f"data.streaming={{sources: {sources}, shuffle_buffer: 4}}", "data.train=null", "model.num_frames=2")
    assert main(arguments(small_world, tmp_path / "whole", *streaming)) == 0
    for name in ("again", "twice", "ranks"):
        shutil.copytree(tmp_path / "whole", tmp_path / name, symlinks=True)
        shutil.rmtree(tmp_path / name / "quickstart" / "checkpoints" / "step-00000006")
        (tmp_path / name / "quickstart" / FINISHED).unlink()
    for name in ("again", "twice"):
        assert main(arguments(small_world, tmp_path / name, *streaming)) == 0
    two_ranks = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}", "dgl_scale/train.py"]
    command = [*two_ranks, *arguments(small_world, tmp_path / "ranks", *streaming)]
    done = subprocess.run(command, cwd=ROOT, env=engine_environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    losses = {
        name: [(record["step"], record["loss"]) for record in records(tmp_path / name)] for name in ("whole", "again", "twice", "ranks")
    }
    assert losses["again"] == losses["twice"]
    # The stream begins anew at a shard, so that the batches after it are others than those of the undisturbed run.
    assert losses["again"][:4] == losses["ranks"][:4] == losses["whole"][:4]
    assert losses["again"] != losses["whole"]
    assert [step for step, _ in losses["ranks"]] == [1, 2, 3, 4, 5, 6]
