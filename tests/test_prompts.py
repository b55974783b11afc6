"""`dgl-scale prompts` as a user sees it."""

from pathlib import Path

import pytest
import torch

from dgl_scale.config import ModelConfig
from dgl_scale.files import json_sha256
from dgl_scale.model import build_model, save_prompts
from dgl_scale.prompts import main
from dgl_scale.training.checkpoint import training_facts
from tests.reference.published_layout import PublishedDGL, published_clip, training_checkpoint
from tests.reference.tiny_clip import clip_config, write_config

IDENTITY = {
    "shards": "5" * 64,
    "backbone": "6" * 64,
    "seed": 42,
    "total_steps": 200,
    "training.global_batch_size": 128,
    "optim.lr": 0.002,
    "model.num_frames": 3,
}


def test_info_says_all_that_the_file_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = build_model(ModelConfig(clip=write_config(tmp_path, clip_config()), latent_space="linear", num_frames=3))
    metrics = {"text_to_video/R@1": 45.81, "video_to_text/MnR": 13.1}
    facts = {"run": "mine", "step": 150, **training_facts(IDENTITY), "validation": metrics}
    save_prompts(model, tmp_path / "prompts.safetensors", facts)
    assert main(["info", str(tmp_path / "prompts.safetensors")]) == 0
    said = dict(line.split(":", 1) for line in capsys.readouterr().out.splitlines() if ":" in line)
    said = {name: value.strip() for name, value in said.items()}
    total = 3 * 4 * 14 + 2 * (14 * 15 + 15) + 4 * 14
    assert said == {
        "backbone": f"{tmp_path}/clip.json (weights {str(model.backbone_digest)[:12]})",
        "latent space": "linear, depth all layers, 3 frames",
        "prompts": "4 global, 4 local a frame, 4 + 4 text",
        "video feature": "global_0",
        "parameters": f"{total} trained, {total - 225} reached by gradients",
        "trained on": "shards 555555555555",
        "step": "150 of 200",
        "training": f"lr 0.002, seed 42, global_batch_size 128 (config {json_sha256(IDENTITY)[:12]})",
        "validation": "text_to_video/R@1 45.8, video_to_text/MnR 13.1",
        "run": "mine",
        "made by": said["made by"],
    }


def test_info_of_untrained_prompts_and_of_other_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = build_model(ModelConfig(clip=write_config(tmp_path, clip_config()), num_frames=3))
    save_prompts(model, tmp_path / "prompts.safetensors")
    assert main(["info", str(tmp_path / "prompts.safetensors")]) == 0
    out = capsys.readouterr().out
    assert "trained, all reached by gradients" in out and "trained on" not in out and "validation" not in out
    for name, content in (("a.txt", b"some text that is no tensor"), ("b.safetensors", b""), ("c.pth.tar", b"PK\x03\x04")):
        (tmp_path / name).write_bytes(content)
        assert main(["info", str(tmp_path / name)]) == 1
        error = capsys.readouterr().err
        assert name in error and "are damaged or no safetensors" in error and len(error.splitlines()) == 1


def test_import_and_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = write_config(tmp_path, published_clip())
    theirs = PublishedDGL(published_clip(), "transformer", num_frames=5, count=3, num_text=8)
    ckpt, prompts, back = (str(tmp_path / name) for name in ("ckpt.best.pth.tar", "prompts.safetensors", "back.pth.tar"))
    torch.save(training_checkpoint(theirs), ckpt)
    assert main(["import", ckpt, "--clip", clip, "--pretrained", ckpt, "--output", prompts]) == 0
    out = capsys.readouterr().out
    assert f"{prompts}: " in out and "transformer, depth all layers, 5 frames" in out and "3 local a frame, 4 + 4 text" in out
    assert main(["export", prompts, "--output", back]) == 0
    assert "load it with --resume and --shared_latent_space transformer" in capsys.readouterr().out
    one, other = (torch.load(path, weights_only=True)["state_dict"] for path in (ckpt, back))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert main(["import", ckpt, "--clip", clip, "--pretrained", ckpt, "--output", prompts, "--num-frames", "4"]) == 2
    assert main(["export", prompts, "--output", back, "--pretrained", "openai"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2 and all(line.startswith("error: ") for line in errors)
