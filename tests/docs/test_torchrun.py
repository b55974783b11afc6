"""`torchrun`, the launcher of docs/launching.md that no other test starts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_torchrun_starts_ranks_that_train(tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = ["dgl_scale/train.py", "--config", "configs/quickstart.yaml", "--device", "cpu", "--dry-run", f"output={tmp_path}"]
    sizes = ["training.global_batch_size=4", "training.micro_batch_size=2", "data.num_workers=0"]
    done = subprocess.run(
        [*launcher, *command, *sizes, "model.pretrained=null", "data.train=/no/shards", "data.validation=null"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "global batch 4 = 2 ranks × 1 accumulation steps × micro-batch 2" in done.stdout + done.stderr
