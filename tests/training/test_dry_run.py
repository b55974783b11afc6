"""`train --dry-run` as users start it."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def dry_run(output: Path, *overrides: str, limit_gib: int | None = None) -> tuple[int, str]:
    command = [sys.executable, "dgl_scale/train.py", "--config", "configs/quickstart.yaml", "--dry-run", f"output={output}"]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    limit = None if limit_gib is None else (lambda: resource.setrlimit(resource.RLIMIT_AS, (limit_gib << 30, limit_gib << 30)))
    done = subprocess.run(
        [*command, "model.pretrained=null", *overrides],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
        check=False,
        preexec_fn=limit,
    )
    return done.returncode, done.stdout


@pytest.mark.slow
def test_without_shards_frames_are_random_and_nothing_is_left(tmp_path: Path) -> None:
    sizes = ("training.global_batch_size=6", "training.micro_batch_size=3", "training.max_steps=70")
    code, text = dry_run(tmp_path / "runs", "data.train=/no/shards", "data.validation=null", "data.test=null", *sizes)
    assert code == 0, text
    assert "data.train: no folder of shards /no/shards" in text
    assert "276,992 trained, 1,805,312 frozen" in text
    assert "global batch 6 = 1 ranks × 2 accumulation steps × micro-batch 3; 4 frames, 24 words" in text
    assert "the run        70 steps, " in text
    assert "GiB resident at the peak" in text
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_too_little_memory_is_one_line_that_says_which_micro_batch_fits(tmp_path: Path) -> None:
    sizes = ("model.clip=ViT-S-32-alt", "model.num_frames=12", "training.global_batch_size=4096", "data.train=null", "data.validation=null")
    code, text = dry_run(tmp_path / "runs", *sizes, "data.test=null", limit_gib=7)
    assert code == 1, text
    error = text.splitlines()[-1]
    assert error.startswith("error: memory of the cpu is too small for micro-batches of 4096: 7.0 GiB, the estimate is ")
    fitting = int(error.partition("set training.micro_batch_size=")[2].partition(",")[0])
    assert 10 < fitting < 200
    assert "Traceback" not in text
