"""The scripts of cluster/slurm under a real Slurm of two nodes on this machine: `make test-slurm`."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dgl_scale.quickstart.clips import make_world
from tests.cluster.slurm_on_one_host import Slurm, missing_programs, two_nodes

ROOT = Path(__file__).resolve().parents[2]
STEPS = 40

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(os.environ.get("DGL_TEST_SLURM") != "1", reason="`make test-slurm` starts it"),
    pytest.mark.skipif(bool(missing_programs()), reason=f"needs {', '.join(missing_programs())}"),
]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    os.environ |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "RANKS_PER_NODE": "1"}
    with two_nodes(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def shards(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    make_world(folder / "world", 0, scale=0.05, workers=1)
    places = [f"annotations={folder}/world/annotations.jsonl", f"videos={folder}/world", f"output={folder}/shards"]
    command = [sys.executable, "shard_tools/build.py", "--config", "configs/shards/quickstart.yaml", *places]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
    return folder / "shards"


def sbatch(slurm: Slurm, logs: Path, *words: str) -> str:
    return slurm.run("sbatch", "--parsable", f"--chdir={ROOT}", f"--output={logs}/%j.log", *words)


def log_of(logs: Path, job: str) -> str:
    path = logs / f"{job}.log"
    return path.read_text() if path.exists() else "no log"


def train(slurm: Slurm, shards: Path, output: Path, *options: str) -> str:
    training = [f"max_steps={STEPS}", "global_batch_size=12", "checkpoint_every_steps=5", "log_every_steps=1", "validation=watched"]
    data = [f"data.{split}={shards}/{split}" for split in ("train", "validation", "test")]
    overrides = ["model.pretrained=null", "data.num_workers=0", "seed=3", f"output={output}", *data, *(f"training.{t}" for t in training)]
    return sbatch(slurm, output, "--nodes=2", *options, "cluster/slurm/train.sbatch", "configs/quickstart.yaml", *overrides)


def wait_for_step(output: Path, step: int) -> None:
    metrics = output / "quickstart" / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not metrics.exists() or f'"step": {step},' not in metrics.read_text():
        assert time.monotonic() < deadline, f"step {step} was not reached"
        time.sleep(0.05)


def state_of(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "quickstart" / "checkpoints" / f"step-{STEPS:08d}" / "optimizer.safetensors")


@pytest.fixture(scope="module")
def undisturbed(slurm: Slurm, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    output = tmp_path_factory.mktemp("undisturbed")
    job = train(slurm, shards, output)
    assert slurm.wait_for(job, "COMPLETED", "FAILED") == "COMPLETED", log_of(output, job)
    return state_of(output)


def test_a_job_that_is_requeued_preempted_and_robbed_of_a_node_trains_to_the_same_prompts(
    slurm: Slurm, shards: Path, undisturbed: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    job = train(slurm, shards, tmp_path)
    wait_for_step(tmp_path, 3)
    slurm.run("scontrol", "requeue", job)
    slurm.wait_for(job, "PENDING", "RUNNING")
    wait_for_running_step(slurm, job, tmp_path, 8)

    urgent = slurm.run("sbatch", "--parsable", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    slurm.wait_for(urgent, "COMPLETED")
    wait_for_running_step(slurm, job, tmp_path, 16)

    slurm.run("scontrol", "update", "NodeName=n2", "State=DOWN", "Reason=test")
    slurm.run("scontrol", "update", "NodeName=n2", "State=RESUME")
    assert slurm.wait_for(job, "COMPLETED", "FAILED") == "COMPLETED", log_of(tmp_path, job)
    assert slurm.restarts(job) >= 3
    found = state_of(tmp_path)
    assert all(torch.equal(tensor, found[name]) for name, tensor in undisturbed.items())


def wait_for_running_step(slurm: Slurm, job: str, output: Path, step: int) -> None:
    slurm.wait_for(job, "RUNNING")
    wait_for_step(output, step)
