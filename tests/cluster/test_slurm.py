"""The scripts of cluster/slurm under a real Slurm on this machine: `make test-slurm`. Two nodes train, a third watches."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

from dgl_scale.quickstart.clips import make_world
from tests.cluster.slurm_on_one_host import Slurm, missing_programs, processes_with, slurm_cluster

ROOT = Path(__file__).resolve().parents[2]
STEPS = 40
TRAIN, BUILD, EVALUATE, PIPELINE = (f"cluster/slurm/{name}.sbatch" for name in ("train", "build", "evaluate", "pipeline"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(os.environ.get("DGL_TEST_SLURM") != "1", reason="`make test-slurm` starts it"),
    pytest.mark.skipif(bool(missing_programs()), reason=f"needs {', '.join(missing_programs())}"),
]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        for name, value in {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "RANKS_PER_NODE": "1"}.items():
            patch.setenv(name, value)
        with slurm_cluster(tmp_path_factory.mktemp("slurm"), [tmp_path_factory.getbasetemp(), ROOT]) as cluster:
            yield cluster


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    make_world(folder / "world", 0, scale=0.05, workers=1)
    return folder


@pytest.fixture(scope="module")
def shards(world: Path) -> Path:
    """Built without a cluster."""
    command = [sys.executable, "shard_tools/build.py", "--config", "configs/shards/quickstart.yaml", *building(world, world / "shards")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
    return world / "shards"


def building(world: Path, output: Path) -> list[str]:
    places = [f"annotations={world}/world/annotations.jsonl", f"videos={world}/world", f"output={output}"]
    return [*places, "max_samples_per_shard=4"]


def running(shards: Path, output: Path) -> list[str]:
    """Config and overrides of the run that all tests train."""
    training = [f"max_steps={STEPS}", "global_batch_size=12", "checkpoint_every_steps=5", "log_every_steps=1", "validation=watched"]
    data = [f"data.{split}={shards}/{split}" for split in ("train", "validation", "test")]
    overrides = ["model.pretrained=null", "data.num_workers=0", "seed=3", f"output={output}", "evaluation.watch_seconds=1"]
    return ["configs/quickstart.yaml", *overrides, *data, *(f"training.{setting}" for setting in training)]


def sbatch(slurm: Slurm, logs: Path, *words: str) -> str:
    return slurm.run("sbatch", "--parsable", f"--chdir={ROOT}", f"--output={logs}/%j.log", *words)


def train(slurm: Slurm, shards: Path, output: Path, *options: str) -> str:
    return sbatch(slurm, output, "--nodes=2", *options, TRAIN, *running(shards, output))


def log_of(logs: Path, job: str) -> str:
    path = logs / f"{job}.log"
    return path.read_text() if path.exists() else "no log"


def complete(slurm: Slurm, logs: Path, job: str) -> None:
    try:
        slurm.wait_for(job, "COMPLETED")
    except AssertionError as error:
        raise AssertionError(f"{error}\n{log_of(logs, job)}") from error


def wait_for_step(output: Path, step: int, name: str = "quickstart") -> None:
    wait_for_line(output / name / "metrics.jsonl", f'"step": {step},')


def wait_for_line(path: Path, text: str) -> None:
    deadline = time.monotonic() + 400
    while not path.exists() or text not in path.read_text():
        assert time.monotonic() < deadline, f"no {text!r} in {path}"
        time.sleep(0.05)


def wait_for_running_step(slurm: Slurm, job: str, output: Path, step: int) -> None:
    slurm.wait_for(job, "RUNNING")
    wait_for_step(output, step)


def rank_of(job: str, rank: int) -> psutil.Process:
    """A rank of a training job, to be treated badly."""
    (process,) = [
        process
        for process in processes_with("SLURM_JOB_ID", job)
        if process.environ().get("SLURM_PROCID") == str(rank) and process.cmdline()[1:2] == ["dgl_scale/train.py"]
    ]
    return process


def state_of(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "quickstart" / "checkpoints" / f"step-{STEPS:08d}" / "optimizer.safetensors")


def is_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


def contents(shards: Path) -> dict[str, bytes]:
    paths = [path for path in sorted(shards.rglob("*")) if path.suffix in (".tar", ".parquet") or path.name == "index.json"]
    return {str(path.relative_to(shards)): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def undisturbed(slurm: Slurm, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("undisturbed")
    complete(slurm, output, train(slurm, shards, output))
    return output


def test_disturbed_in_every_way_and_watched_a_job_trains_to_the_same_prompts(
    slurm: Slurm, shards: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """Requeued, preempted, robbed of a node that is down, kept from one that is drained."""
    job = train(slurm, shards, tmp_path)
    following = ["--watch", str(tmp_path / "quickstart"), "--split=validation"]
    watcher = sbatch(slurm, tmp_path, "--partition=beside", EVALUATE, *running(shards, tmp_path), *following)
    wait_for_step(tmp_path, 3)
    slurm.run("scontrol", "requeue", job)
    slurm.wait_for(job, "PENDING")
    wait_for_running_step(slurm, job, tmp_path, 8)

    urgent = slurm.run("sbatch", "--parsable", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    slurm.wait_for(urgent, "COMPLETED")
    wait_for_running_step(slurm, job, tmp_path, 16)

    slurm.run("scontrol", "update", "NodeName=n2", "State=DOWN", "Reason=test")
    slurm.run("scontrol", "update", "NodeName=n2", "State=RESUME")
    slurm.wait_for(job, "PENDING")
    wait_for_running_step(slurm, job, tmp_path, 24)

    slurm.run("scontrol", "update", "NodeName=n2", "State=DRAIN", "Reason=test")
    wait_for_step(tmp_path, 26)
    slurm.run("scancel", "--signal=TERM", watcher)
    slurm.run("scontrol", "requeue", job)
    slurm.run("scontrol", "update", f"JobId={job}", "StartTime=now")
    time.sleep(8)
    assert slurm.state(job) == "PENDING", "a job of two nodes started with one"
    slurm.run("scontrol", "update", "NodeName=n2", "State=RESUME")

    complete(slurm, tmp_path, job)
    assert slurm.restarts(job) >= 4
    assert is_equal(state_of(tmp_path), state_of(undisturbed))
    complete(slurm, tmp_path, watcher)
    log = log_of(tmp_path, watcher)
    assert slurm.restarts(watcher) == 1, log
    assert "interrupted\n" in log
    assert f"step {STEPS}: text-to-video R@1" in log
    assert (tmp_path / "quickstart" / "evaluation" / "best.json").exists()


def test_at_its_time_limit_a_job_goes_back_into_the_queue(slurm: Slurm, shards: Path, undisturbed: Path, tmp_path: Path) -> None:
    job = train(slurm, shards, tmp_path, "--time=3")
    wait_for_step(tmp_path, 3)
    # Its time runs out in the middle, however fast this machine is. Slurm wakes what it signals.
    rank_of(job, 1).suspend()
    slurm.wait_for(job, "PENDING")
    slurm.run("scontrol", "update", f"JobId={job}", "TimeLimit=30")
    complete(slurm, tmp_path, job)
    assert slurm.restarts(job) == 1
    assert "interrupted; back into the queue (restart 1 of at most 50)" in log_of(tmp_path, job)
    assert is_equal(state_of(tmp_path), state_of(undisturbed))


def test_a_killed_rank_ends_the_others_and_the_job_until_it_is_submitted_again(
    slurm: Slurm, shards: Path, undisturbed: Path, tmp_path: Path
) -> None:
    job = train(slurm, shards, tmp_path)
    wait_for_step(tmp_path, 3)
    rank_of(job, 1).kill()
    slurm.wait_for(job, "FAILED")
    found, log = slurm.job(job), log_of(tmp_path, job)
    assert found["Restarts"] == "0"
    assert found["ExitCode"] in ("1:0", "137:0"), log
    assert not processes_with("SLURM_JOB_ID", job)
    assert "back into the queue" not in log
    complete(slurm, tmp_path, train(slurm, shards, tmp_path))
    assert is_equal(state_of(tmp_path), state_of(undisturbed))


def test_a_wrong_config_ends_a_job_for_good(slurm: Slurm, shards: Path, tmp_path: Path) -> None:
    job = sbatch(slurm, tmp_path, "--nodes=2", TRAIN, *running(shards, tmp_path), "optim.gone=1")
    slurm.wait_for(job, "FAILED")
    found = slurm.job(job)
    assert (found["ExitCode"], found["Restarts"]) == ("2:0", "0")
    assert "error: " in log_of(tmp_path, job)


def test_an_array_trains_a_run_for_each_seed_and_restarts_have_a_limit(slurm: Slurm, shards: Path, tmp_path: Path) -> None:
    options = ["--array=0-1", "--nodes=1", "--export=ALL,MAX_RESTARTS=1"]
    array = sbatch(slurm, tmp_path, *options, TRAIN, *running(shards, tmp_path))
    for step in (3, 9):
        wait_for_step(tmp_path, step, "quickstart-seed1")
        slurm.run("scancel", "--signal=TERM", f"{array}_1")
        slurm.wait_for(f"{array}_1", "PENDING" if step == 3 else "FAILED")
        if step == 3:
            slurm.wait_for(f"{array}_1", "RUNNING")
    found = slurm.job(f"{array}_1")
    assert (found["ExitCode"], found["Restarts"]) == ("75:0", "1")
    assert "interrupted after 1 restarts, and MAX_RESTARTS is 1" in log_of(tmp_path, found["JobId"])
    slurm.wait_for(f"{array}_0", "COMPLETED")
    assert slurm.restarts(f"{array}_0") == 0, "the other task was none of its business"
    for seed in (0, 1):
        assert yaml.safe_load((tmp_path / f"quickstart-seed{seed}" / "config.yaml").read_text())["seed"] == seed


def test_a_checkpoint_is_evaluated_on_two_nodes(slurm: Slurm, shards: Path, undisturbed: Path) -> None:
    words = ["--checkpoint", str(undisturbed / "quickstart"), "evaluation.batch_size=1"]
    job = sbatch(slurm, undisturbed, "--nodes=2", EVALUATE, *running(shards, undisturbed), *words)
    complete(slurm, undisturbed, job)
    results = json.loads((undisturbed / "quickstart" / "evaluation" / f"step-{STEPS:08d}-test" / "results.json").read_text())
    assert results["encoded"]["videos"] == results["videos"]
    assert "evaluation.num_workers=2" in results["command"]
    # Ray ended with the job, and took its files with it.
    assert not processes_with("SLURM_JOB_ID", job)
    assert not [*slurm.folder.glob(f"tmp-*/ray-{job}*")]


def test_the_pipeline_goes_on_through_interruptions(slurm: Slurm, world: Path, shards: Path, tmp_path: Path) -> None:
    nodes = {"BUILD_NODES": "2", "TRAIN_NODES": "1", "EVALUATE_NODES": "1", "SBATCH_OUTPUT": f"{tmp_path}/%j.log"}
    words = [*building(world, tmp_path / "shards"), "--", *running(tmp_path / "shards", tmp_path)]
    done = subprocess.run(
        ["bash", PIPELINE, "configs/shards/quickstart.yaml", *words],
        cwd=ROOT,
        env=slurm.environment | nodes,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    build, training, watcher, evaluation = re.findall(r"^\w+ (\d+)", done.stdout, flags=re.MULTILINE)
    deadline = time.monotonic() + 300
    while len(contents(tmp_path / "shards")) < 4:
        assert time.monotonic() < deadline, log_of(tmp_path, build)
        time.sleep(0.1)
    slurm.run("scancel", "--signal=TERM", build)
    slurm.wait_for(build, "PENDING")
    complete(slurm, tmp_path, build)
    assert contents(tmp_path / "shards") == contents(shards)

    slurm.wait_for(training, "RUNNING")
    wait_for_step(tmp_path, 3)
    slurm.run("scancel", "--signal=TERM", training)
    slurm.wait_for(training, "PENDING")
    for job in (training, watcher, evaluation):
        complete(slurm, tmp_path, job)
    results = tmp_path / "quickstart" / "evaluation" / f"step-{STEPS:08d}-validation" / "results.json"
    assert json.loads(results.read_text())["step"] == STEPS
    assert [*(tmp_path / "quickstart" / "evaluation").glob("step-*-test/results.json")]
