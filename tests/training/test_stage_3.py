"""ZeRO stage 3: a rank keeps as many gathered weights as its file says, which changes memory and traffic, never a bit."""

import json
import sys
from pathlib import Path

import pytest

from dgl_scale.training.deepspeed_config import Stage3Limits, stage_3_limits
from tests.training.local_ranks import run_ranks
from tests.training.stage_3_rank import DEPTH, WIDTH

LAYER = WIDTH * WIDTH
KEPT = 3 * LAYER


def on_two_ranks(deepspeed: str, output: Path) -> dict:
    run_ranks(2, [sys.executable, "-m", "tests.training.stage_3_rank", deepspeed, str(output)])
    return json.loads(output.read_text())


@pytest.mark.slow
def test_no_more_weights_than_the_limit_stay_between_the_passes(tmp_path: Path) -> None:
    file = tmp_path / "limited.json"
    limits = {"stage3_max_live_parameters": KEPT, "stage3_max_reuse_distance": KEPT, "stage3_prefetch_bucket_size": LAYER}
    file.write_text(json.dumps({"zero_optimization": {"stage": 3, **limits}}))
    limited = on_two_ranks(str(file), tmp_path / "limited.out")
    shipped = on_two_ranks("configs/deepspeed/zero3.json", tmp_path / "shipped.out")
    assert all(LAYER <= held <= KEPT + DEPTH * WIDTH for held in limited["held"][1:]), limited["held"]
    assert all(held >= DEPTH * LAYER for held in shipped["held"][1:]), "fewer than the shipped limit are all kept"
    assert limited["state"] == shipped["state"]


def test_limits_are_those_of_the_file_that_stage_3_would_be_trained_with(tmp_path: Path) -> None:
    file = tmp_path / "own.json"
    file.write_text('{"zero_optimization": {"stage": 3, "stage3_max_live_parameters": 7, "stage3_prefetch_bucket_size": 3}}')

    # Whichever allows more: DeepSpeed keeps what it needs again within a distance, however much lives.
    assert stage_3_limits(str(file)) == Stage3Limits(1_000_000_000, 3)
    assert stage_3_limits("configs/deepspeed/zero1.json") == stage_3_limits() == Stage3Limits(100_000_000, 50_000_000)
