"""`train --estimate` by hand; operations, bytes on the network and checkpoints are compared with real ones by the tests of those."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dgl_scale.bench.synthetic_split import write_synthetic_split
from dgl_scale.config import RunConfig
from dgl_scale.config_file import load_config
from dgl_scale.model.estimate import StepEstimate
from dgl_scale.train import main
from dgl_scale.training.deepspeed_config import Stage3Limits
from dgl_scale.training.run_estimate import Assumptions, estimate_run, rank_bytes, with_split

CONFIG = "configs/msrvtt_vit_l14.yaml"


def estimate(*overrides: str, world_size: int = 8, **assumed: float):
    return estimate_run(load_config(RunConfig, CONFIG, overrides), world_size, Assumptions(**assumed))


def test_the_command_says_it_all_without_data_weights_or_ranks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", CONFIG, "--estimate", "--world-size", "8,64", "--videos", "8500", "--captions", "20"]) == 0
    text = capsys.readouterr().out
    rows = {line[2:40].strip(): line[40:].split("  ") for line in text.splitlines()[1:]}
    words = {title: [word.strip() for word in values if word] for title, values in rows.items()}
    assert words["GPUs"] == ["8", "64"]
    assert words["micro-batch × accumulation"] == ["32 × 2", "8 × 1"]
    # 512/64 pairs of 2 x 768 floats to each of 63 ranks; 17,649,408 numbers in bf16, reduced and gathered: three shares of 63/64.
    assert words["network, MB a step and GPU: stage 1"][1] == f"{(63 * 8 * 2 * 768 * 4 + 3 * 63 / 64 * 2 * 17_649_408) / 1e6:.1f}"
    assert "a checkpoint    282.4 MB" in text
    assert "1,660 steps; epochs 5, videos 8,500, captions a video 20" in text
    assert not torch.distributed.is_initialized()


def test_without_a_number_of_videos_the_time_is_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", CONFIG, "--estimate", "data.train=/no/shards"]) == 0
    text = capsys.readouterr().out
    assert "unknown" in text and "epochs 5; their steps and time follow from --videos and --captions" in text
    assert main(["--config", CONFIG, "--estimate", "training.epochs=null", "training.max_steps=70"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"time of the run +[\d.]+ min\n", text) and "the run         70 steps\n" in text


def test_a_split_that_is_here_says_its_own_sizes(tmp_path: Path) -> None:
    write_synthetic_split(tmp_path / "train", num_videos=3, num_frames=2, side=32, captions=5)
    config = load_config(RunConfig, CONFIG, [f"data.train={tmp_path}/train"])
    found = with_split(config, Assumptions())
    tar = (tmp_path / "train" / "synthetic-test-000000.tar").stat().st_size
    assert (found.videos, found.captions) == (3, 5) and 0 <= tar - 3 * found.sample_bytes <= 10240
    assert with_split(config, Assumptions(videos=9)) == Assumptions(videos=9)


def test_what_a_step_takes() -> None:
    one, eight = estimate(world_size=1), estimate(world_size=8)
    assert one.network_s == 0 and one.network[3].total == 0
    # Sixteen times or twice the same micro-batch, each with its second forward pass.
    assert one.step_flops == pytest.approx(8 * eight.step_flops)
    whole = estimate("training.micro_batch_size=null", "training.activation_checkpointing=false")
    assert whole.accumulation_steps == 1 and 1.4 < eight.step_flops / whole.step_flops < 1.6
    slow = estimate("training.peak_tflops=98.9", network_gbit=1.25, utilisation=0.4)
    assert slow.step_s == pytest.approx(10 * eight.step_s)
    assert slow.read_bytes_per_s == pytest.approx(eight.read_bytes_per_s / 10)
    assert eight.read_bytes_per_s == pytest.approx(512 / eight.step_s * 1.3e6)


@pytest.mark.parametrize(
    ("stage", "expected"),
    # 1,000 trained numbers in bf16, 2 + 2 + 12 bytes each; 500 bytes of frozen weights (150 numbers gathered at stage 3), 70 activations.
    [(0, 16_000 + 570), (1, 4_000 + 3_000 + 570), (2, 2_000 + 3_500 + 570), (3, 4_000 + 125 + 2 * 150 + 70)],
)
def test_memory_of_a_rank_by_hand(stage: int, expected: int) -> None:
    step = StepEstimate(
        0, 0, 0, frozen_bytes=500, trained_bytes=16_000, saved_bytes=60, transient_bytes=10, saved_values_per_token_and_layer=0
    )
    assert rank_bytes(stage, 4, step, 2, Stage3Limits(100, 50)) == expected
    assert rank_bytes(stage, 1, replace(step, frozen_bytes=0), 2, Stage3Limits(100, 50)) == 16_070


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--world-size", "2"], "--world-size is for --estimate"),
        (["--videos", "2"], "--videos is for --estimate"),
        (["--estimate", "--world-size", "2,0"], "'0' is no positive number"),
        (["--estimate", "--utilisation", "nan"], "'nan' is no positive number"),
        (["--estimate", "--world-size", "3"], "cannot be shared equally by 3 ranks"),
        (["--estimate", "model.latent_space=null"], "a frozen CLIP has nothing to train"),
        (["--estimate", "model.clip=ViT-L-15"], "did you mean"),
        (["--estimate", "--videos", "9"], "larger than the 9 pairs"),
    ],
)
def test_wrong_usage_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(["--config", CONFIG, *words])
    except SystemExit as ended:
        code = ended.code
    error = capsys.readouterr().err
    assert code == 2 and error.startswith("error: ") and message in error and error.count("\n") == 1
