"""The start of a run on many ranks, simulated: what a rank lists, reads and plans, and what checkpoints are called, know no world size."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dgl_scale import distributed
from dgl_scale.bench.command import main as bench
from dgl_scale.bench.start_up import join_parts, write_split
from dgl_scale.data.index import load_split
from dgl_scale.data.order import EpochOrder
from dgl_scale.training.checkpoint import save_checkpoint
from dgl_scale.training.engine import TrainedState

RANKS = 1024


# In a process of its own: the kernel counts the reading of every thread, also of one by which tests are handed out.
_PLANS = """
import json, os, sys
from dgl_scale.bench.start_up import plan_of_rank

def refuse(*arguments):
    raise AssertionError("a folder was listed")

split, ranks = sys.argv[1], int(sys.argv[2])
plan_of_rank(split, ranks, 0, 1)  # loads what is loaded once
os.listdir = os.scandir = refuse
found = [plan_of_rank(split, ranks, rank, world) for world, rank in ((1, 0), (8, 0), (ranks, 0), (ranks, ranks - 1))]
print(json.dumps([[plan.reads, plan.read_bytes, [len(part) for part in parts]] for plan, parts in found]))
"""


def test_a_rank_of_1024_reads_and_lists_what_a_single_one_does(tmp_path: Path) -> None:
    write_split(tmp_path, 2 * RANKS + 100)
    command = [sys.executable, "-c", _PLANS, str(tmp_path), str(RANKS)]
    plans = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout)
    assert plans[0][1] > 2 * RANKS * 64
    assert len({(reads, read_bytes) for reads, read_bytes, _ in plans}) == 1
    assert [size for _, _, sizes in plans for size in sizes] == [RANKS] * 2 + [RANKS // 8] * 2 + [1] * 4


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


def test_the_command_counts_and_lets_the_ranks_meet(tmp_path: Path) -> None:
    report = tmp_path / "start_up.json"
    command = [sys.executable, "-m", "dgl_scale.bench.start_up", "--world", "2,64", "--videos", "200", "--json", str(report)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0 and "parts join" in run.stdout, run.stderr
    few, many = json.loads(report.read_text())["figures"]
    assert few["joins"] and many["joins"] and many["meeting_s"] > 0
    assert few["plans"][0]["read_bytes"] == many["plans"][1]["read_bytes"] > 0


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
