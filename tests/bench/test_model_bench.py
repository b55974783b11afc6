"""`dgl-scale bench model` at the smallest size: what it prints, stores and refuses."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from dgl_scale.bench.command import main as bench
from dgl_scale.bench.model_scaling import draw_scaling, measure_scaling
from dgl_scale.config import ModelConfig
from tests.reference.tiny_clip import clip_config, write_config


def test_measures_all_contenders_and_stores_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip, report = write_config(tmp_path, clip_config(3, 3)), tmp_path / "bench.json"
    words = [
        "model",
        "--clip",
        clip,
        "--num-frames",
        "2",
        "--videos",
        "2",
        "--words",
        "9",
        "--rounds",
        "1",
        "--device",
        "cpu",
        "--peak-tflops",
        "0.1",
    ]
    assert bench([*words, "--json", str(report)]) == 0
    content = json.loads(report.read_text())
    assert list(content["variants"]) == ["linear", "transformer"]
    for variant in content["variants"].values():
        names = [one["name"] for one in variant["measurements"]]
        assert names == ["DGL", "literal formulation", "frozen CLIP, forward", "full fine-tuning", "matrix products"]
        assert all(one["seconds"] > 0 and one["flops"] > 0 for one in variant["measurements"])
        ours, literal = variant["measurements"][:2]
        assert ours["flops"] < literal["flops"] and ours["memory"]["saved"] < literal["memory"]["saved"]
        assert variant["largest_feature_difference"] < 1e-5
        assert variant["estimate"]["model_flops"] == pytest.approx(ours["flops"], rel=0.05)
    output = capsys.readouterr().out
    assert "literal formulation" in output and "% of 0.1 TFLOP/s" in output


def test_estimates_without_running_anything(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(["model", "--estimate", "--clip", "ViT-bigG-14", "--videos", "64", "--precision", "bf16", "--memory-gib", "80"]) == 0
    output = capsys.readouterr().out
    assert "DGL transformer over ViT-bigG-14, B = 64, T = 12, bf16" in output and "GiB saved" in output
    assert "largest micro-batch in 80 GiB by this estimate: 1" in output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model", "--precision", "fp16", "--device", "cpu"], "fp16 is for GPUs"),
        (["model", "--clip", "ViT-B-31"], "did you mean"),
        (["modle"], "unknown benchmark modle; known: "),
    ],
)
def test_wrong_usage_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_scaling_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = write_config(tmp_path, clip_config())
    points = measure_scaling(
        ModelConfig(clip=clip, latent_space="linear", num_frames=2), clips=[clip], dtype=torch.float32, device=torch.device("cpu"), rounds=1
    )
    assert {point.axis for point in points} == {"frames", "patches", "local prompts a frame", "global prompts"}
    drawing = ElementTree.fromstring(draw_scaling(points))
    assert drawing.attrib["role"] == "img" and "Seconds of a step against frames" in drawing.attrib["aria-label"]
