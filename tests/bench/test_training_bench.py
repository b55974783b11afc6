"""`dgl-scale bench training --network`: the formula by hand, and one small world that keeps to it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dgl_scale.bench.command import main as bench
from dgl_scale.bench.training import extrapolate
from dgl_scale.training.network import NetworkBytes, network_bytes
from tests.reference.tiny_clip import clip_config, write_config


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        # 3 other ranks x 5 pairs x two features of 7 floats; 3/4 of 4 bytes a value, twice for an all-reduce.
        (0, NetworkBytes(3 * 5 * 2 * 7 * 4, 2 * 3 * 100, 0, 0)),
        (1, NetworkBytes(840, 2 * 3 * 80, 3 * 100, 0)),
        (2, NetworkBytes(840, 480, 300, 0)),
        (3, NetworkBytes(840, 480, 0, 3 * 1100)),
    ],
)
def test_formula_by_hand(stage: int, expected: NetworkBytes) -> None:
    assert network_bytes(stage, 4, 5, 7, num_trained=100, num_reached=80, num_frozen=1000, bytes_per_value=4) == expected
    accumulated = network_bytes(stage, 4, 5, 7, num_trained=100, num_reached=80, num_frozen=1000, bytes_per_value=4, accumulation=3)
    assert accumulated == replace(expected, gradients=expected.gradients * (3 if stage >= 2 else 1))
    # 300 of the 1,100 are not kept: gathered once more, or in nine passes of three micro-batches eight times more.
    for accumulation, more in ((1, 1), (3, 8)):
        partly = network_bytes(
            stage, 4, 5, 7, num_trained=100, num_reached=80, num_frozen=1000, bytes_per_value=4, accumulation=accumulation, kept=800
        )
        assert partly.weights == (3 * 1100 + more * 3 * 300 if stage == 3 else 0)
    alone = network_bytes(stage, 1, 5, 7, num_trained=100, num_reached=80, num_frozen=1000, bytes_per_value=4)
    assert alone.total == 0


def test_large_backbones_by_the_formula() -> None:
    """METHOD's 17,649,408 trained parameters of ViT-L/14, all-reduced by 8 ranks in bf16; frozen weights count at stage 3 only."""
    plain, whole = extrapolate("ViT-L-14-quickgelu", 0), extrapolate("ViT-L-14-quickgelu", 3)
    assert plain == NetworkBytes(7 * 16 * 2 * 768 * 4, 2 * 7 / 8 * 2 * 17_649_408, 0, 0)
    # Twice all, but for the 100 million that are kept.
    assert 427_000_000 < (whole.weights / (7 / 8 * 2) + 100_000_000) / 2 - 17_649_408 < 429_000_000


@pytest.mark.slow
def test_two_ranks_send_what_the_formula_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip, report = write_config(tmp_path, clip_config()), tmp_path / "network.json"
    sizes = ["--pairs", "32", "--accumulation", "2", "--steps", "1"]
    words = ["training", "--network", "--clip", clip, "--stage", "2", *sizes, "--json", str(report)]
    assert bench(words) == 0
    (figures,) = json.loads(report.read_text())["figures"]
    measured, formula = figures["measured"], figures["formula"]
    # gloo puts less than 300 bytes of its own around each of few collectives, padding to whole shares is a few floats.
    for purpose in formula:
        assert 0 <= measured[purpose] - formula[purpose] <= 2000, purpose
    assert formula["features"] == 64 * 2 * 11 * 4
    assert "× formula" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--network", "--clip", "ViT-B-31"], "did you mean"),
        (["--network", "--world", "0"], "'0' is no positive number"),
        ([], "--network"),
    ],
)
def test_wrong_usage_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = bench(["training", *words])
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
