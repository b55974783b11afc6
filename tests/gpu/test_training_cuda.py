"""Training steps on a GPU: fp16 with loss scaling, determinism, memory that is too small."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.reference.tiny_clip import clip_config, write_config

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

OVERFLOW = """
import sys, torch
from dgl_scale.config import ModelConfig, OptimConfig, TrainingConfig
from dgl_scale.model import build_model
from dgl_scale.training.engine import TrainingEngine, start_distributed, stop_distributed
device = start_distributed("cuda")
model = build_model(ModelConfig(clip=sys.argv[1], latent_space="linear", num_frames=2), dtype=torch.float16, device=device)
training = TrainingConfig(global_batch_size=4, max_steps=4, precision="fp16", deepspeed="configs/deepspeed/zero1.json")
engine = TrainingEngine(model, model.trainable_parameters(), training, OptimConfig(), 4, 1)
frames = torch.randn(4, 2, 3, 6, 6, device=device, dtype=torch.float16)
tokens = torch.tensor([[21, 1, 22]] * 4)
before = [p.detach().clone() for _, p in engine.parameters]
scales = []
for factor in (float("inf"), float("inf"), 1.0):
    video, text = engine.forward(frames, tokens)
    engine.backward((video.float().sum() + text.float().sum()) * factor)
    norm = engine.step(1e-2, is_boundary=True)
    scales.append(engine._engine.optimizer.loss_scale)
    same = all(torch.equal(a, b) for a, (_, b) in zip(before, engine.parameters))
    assert (norm is None) == same == (factor != 1.0), (norm, same)
assert scales[1] < 2**16, scales
stop_distributed(gracefully=True)
"""


def test_fp16_gradients_that_overflow_skip_the_step_and_lower_the_scale(tmp_path: Path) -> None:
    command = [sys.executable, "-c", OVERFLOW, write_config(tmp_path, clip_config())]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ}, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_too_little_gpu_memory_says_which_micro_batch_fits(tmp_path: Path) -> None:
    command = [sys.executable, "dgl_scale/train.py", "--config", "configs/msrvtt_vit_b32.yaml", "--dry-run", "model.pretrained=null"]
    command += ["training.global_batch_size=8192", "training.micro_batch_size=8192", "training.max_steps=1", f"output={tmp_path}"]
    command += ["data.train=null", "data.validation=null", "data.test=null"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1
    assert "memory of the cuda is too small for micro-batches of 8192" in done.stderr
    assert "set training.micro_batch_size=" in done.stderr
