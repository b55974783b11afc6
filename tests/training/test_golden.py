"""Losses to all digits, so that a change that should change no numbers is seen to change none.

DGL_WRITE_GOLDEN=1 python -m pytest tests/training/test_golden.py       # after a change that should change them; say why in the commit
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.reference.tiny_clip import clip_config, write_config

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "loss_tiny_cpu.txt"


@pytest.mark.slow
def test_losses_are_reproduced_and_are_the_golden_ones(tmp_path: Path) -> None:
    script = Path(__file__).with_name("exact_rank.py")
    command = [sys.executable, str(script), write_config(tmp_path, clip_config()), str(tmp_path / "losses.pt")]
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = torch.load(tmp_path / "losses.pt", weights_only=True)
    assert found.pop("again") == found["transformer bf16"], "two runs of one process differ"
    losses = {name: one["losses"] for name, one in found.items()}
    for name, values in losses.items():
        assert values[-1] < values[0], name
    if os.environ.get("DGL_WRITE_GOLDEN"):
        GOLDEN.write_text("".join(f"{name}: {' '.join(map(repr, values))}\n" for name, values in losses.items()))
    golden = dict(line.split(": ") for line in GOLDEN.read_text().splitlines())
    assert golden.keys() == losses.keys()
    for name, values in losses.items():
        # Equal to the last digit on the same family of CPUs; another one sums in another order. bf16 keeps 8 bits.
        tolerance = 1e-5 if "fp32" in name else 1e-2
        assert values == pytest.approx([float(value) for value in golden[name].split()], rel=tolerance), name
