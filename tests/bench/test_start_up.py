"""The start of a run on many ranks, simulated: what a rank lists, reads and plans, and what checkpoints are called, know no world size."""

import json
import os
from pathlib import Path

import pytest
import torch

from dgl_scale import distributed
from dgl_scale.bench.command import main as bench
from dgl_scale.bench.start_up import join_parts, plan_of_rank, write_split
from dgl_scale.data.index import load_split
from dgl_scale.data.order import EpochOrder
from dgl_scale.training.checkpoint import save_checkpoint
from dgl_scale.training.engine import TrainedState

RANKS = 1024


def test_a_rank_of_1024_reads_and_lists_what_a_single_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_split(tmp_path, 2 * RANKS + 100)
    plan_of_rank(str(tmp_path), RANKS, 0, 1)  # loads what is loaded once

    def refuse(*arguments: object) -> None:
        raise AssertionError("a folder was listed")

    monkeypatch.setattr(os, "listdir", refuse)
    monkeypatch.setattr(os, "scandir", refuse)
    plans = [plan_of_rank(str(tmp_path), RANKS, rank, world) for world, rank in ((1, 0), (8, 0), (RANKS, 0), (RANKS, RANKS - 1))]
    assert plans[0][0].read_bytes > 2 * RANKS * 64
    assert len({(plan.reads, plan.read_bytes) for plan, _ in plans}) == 1
    assert [len(part) for _, parts in plans for part in parts] == [RANKS] * 2 + [RANKS // 8] * 2 + [1] * 4


def test_the_parts_of_1024_ranks_are_the_batches(tmp_path: Path) -> None:
    write_split(tmp_path, 2 * RANKS + 100)
    batches = EpochOrder(load_split(tmp_path).num_captions, 3, RANKS, "drop").batches(0)
    assert batches.shape == (2, RANKS, 2) and all(join_parts(batches, world) for world in (1, 8, RANKS))
    assert not join_parts(batches[[0, 0]], 8)


def test_a_checkpoint_has_the_same_files_whatever_the_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = TrainedState(7, {"prompts.latent": {key: torch.arange(5.0) for key in ("param", "exp_avg", "exp_avg_sq")}})
    written = []
    for world in (1, RANKS):
        monkeypatch.setattr(distributed, "world_size", lambda world=world: world)
        run = tmp_path / str(world)
        checkpoint = save_checkpoint(run, state, {"shards": "a", "seed": 1}, lambda path, prompts, facts: path.write_text(str(facts)), {})
        written.append({path.name: path.read_bytes() for path in checkpoint.iterdir()} | {"folder": checkpoint.name.encode()})
    assert written[0] == written[1]
    assert sorted(written[0]) == ["folder", "manifest.json", "optimizer.safetensors", "prompts.safetensors", "state.json"]
    assert written[0]["folder"] == b"step-00000007"


def test_the_command_counts_and_lets_the_ranks_meet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "start_up.json"
    assert bench(["start-up", "--world", "2,64", "--videos", "200", "--json", str(report)]) == 0
    few, many = json.loads(report.read_text())["figures"]
    assert few["joins"] and many["joins"] and many["meeting_s"] > 0
    assert few["plans"][0]["read_bytes"] == many["plans"][1]["read_bytes"] > 0
    assert "parts join" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--world", "3,64"], "--world 3 does not divide 64"),
        (["--world", "64", "--videos", "63"], "--videos 63 are fewer than a batch of 64"),
    ],
)
def test_wrong_usage_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(["start-up", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
