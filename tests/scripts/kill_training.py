"""Kill training runs again and again, at random moments, and compare what they lead to with an undisturbed run.

    python tests/scripts/kill_training.py --count 200 --seed 0 --log kills.tsv

Each kill is SIGKILL to one process: a rank, a reading worker, the launcher, or its process on the host. Every third is
aimed at the moment in which a checkpoint is being written. All other processes must end within a minute by themselves;
then the same command is started again, as a user or a scheduler would. Ends with 1 unless every run leads to exactly the
prompts, moments and losses of the undisturbed one, nothing outlives a kill, and no temporary file is left.

Runs are of one process, of two started like `srun` does (no launcher that would end the others), and of two under `deepspeed`.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import load_file

from dgl_scale.quickstart.processes import free_port
from dgl_scale.run_folder import newest_complete

ROOT = Path(__file__).resolve().parents[2]
STEPS = 60
CHECKPOINT_EVERY = 3
LAUNCHERS = {"python": 0.4, "ranks": 0.4, "deepspeed": 0.2}
KINDS = {"rank": 40, "launcher": 20, "host": 20, "worker": 20}
START_RANKS = """
import os, subprocess, sys
at = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": sys.argv[1]}
ranks = [subprocess.Popen(sys.argv[2:], env={**os.environ, **at, "RANK": rank, "LOCAL_RANK": rank}) for rank in "01"]
sys.exit(max((rank.wait() for rank in ranks), key=abs))
"""
END_S = 60.0
WAIT_S = 400.0
POLL_S = 0.002


@dataclass
class Start:
    """A running training command."""

    process: "subprocess.Popen[bytes]"
    run_folder: Path
    output: Path

    def family(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            parent = psutil.Process(self.process.pid)
            return [parent, *parent.children(recursive=True)]
        return []


def command(world: Path, output: Path, launcher: str) -> list[str]:
    program = [sys.executable]
    if launcher == "ranks":
        program = [sys.executable, "-S", "-c", START_RANKS, str(free_port()), sys.executable]
    elif launcher == "deepspeed":
        program = [str(Path(sys.executable).with_name("deepspeed")), "--num_accelerators", "2", "--master_port", str(free_port())]
    data = [f"data.{split}={world}/shards/{split}" for split in ("train", "test")]
    training = [f"max_steps={STEPS}", "global_batch_size=8", f"checkpoint_every_steps={CHECKPOINT_EVERY}", "log_every_steps=1"]
    other = ["model.pretrained=null", "model.num_frames=2", "data.validation=null", "data.num_workers=1", "seed=3", f"output={output}"]
    options = [*other, *data, *(f"training.{value}" for value in training)]
    return [*program, "dgl_scale/train.py", "--config", "configs/quickstart.yaml", *options]


def start(world: Path, output: Path, launcher: str) -> Start:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    log = output.with_suffix(".log")
    with open(log, "ab") as stream:
        process = subprocess.Popen(
            command(world, output, launcher), cwd=ROOT, env=environment, stdout=stream, stderr=stream, start_new_session=True
        )
    return Start(process, output / "quickstart", log)


def kind_of(process: psutil.Process, launcher: int) -> str:
    words = " ".join(process.cmdline())
    if process.pid == launcher and ("sys.exit" in words or "bin/deepspeed" in words):
        return "launcher"
    if "deepspeed.launcher.launch" in words:
        return "host"
    if "multiprocessing.spawn" in words:
        return "worker"
    return "rank" if "dgl_scale/train.py" in words else ""


def steps_done(run_folder: Path) -> int:
    metrics = run_folder / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def wait_for_moment(started: Start, rng: random.Random, is_aimed: bool) -> bool:
    """Wait for a random moment of the start, or for a checkpoint in the making; False if the run ended before."""
    before = steps_done(started.run_folder)
    wanted = 0 if rng.random() < 0.1 else before + rng.randint(0, 3 * CHECKPOINT_EVERY)
    deadline = time.monotonic() + (rng.uniform(0.0, 8.0) if wanted == 0 else WAIT_S)
    checkpoints = started.run_folder / "checkpoints"
    while started.process.poll() is None and time.monotonic() < deadline:
        has_reached = wanted > 0 and steps_done(started.run_folder) > wanted
        if has_reached and (not is_aimed or any(checkpoints.glob(".step-*.tmp"))):
            return True
        time.sleep(POLL_S if has_reached else 0.05)
    return started.process.poll() is None


def kill_one(started: Start, kind: str, rng: random.Random) -> tuple[str, list[psutil.Process]] | None:
    """Kill a process of this kind, or of another that is there; returns what was killed and who was alive then."""
    family = started.family()
    by_kind: dict[str, list[psutil.Process]] = {}
    for process in family:
        with contextlib.suppress(psutil.Error):
            by_kind.setdefault(kind_of(process, started.process.pid), []).append(process)
    chosen = kind if by_kind.get(kind) else "rank"
    if not by_kind.get(chosen):
        return None
    with contextlib.suppress(psutil.NoSuchProcess):
        rng.choice(by_kind[chosen]).kill()
        return chosen, family
    return None


def wait_for_end(started: Start, family: list[psutil.Process]) -> tuple[float, int, int | None]:
    """Seconds until all were gone, how many were not within a minute, and the command's exit code."""
    begin = time.monotonic()
    with contextlib.suppress(subprocess.TimeoutExpired):
        started.process.wait(END_S)
    _, alive = psutil.wait_procs(family, timeout=max(0.0, begin + END_S - time.monotonic()))
    survivors = [process for process in alive if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    seconds = time.monotonic() - begin
    for process in survivors:
        with contextlib.suppress(psutil.Error):
            process.kill()
    return seconds, len(survivors), started.process.poll()


def result_of(run_folder: Path) -> dict[str, Any]:
    checkpoint, problems = newest_complete(run_folder)
    assert checkpoint is not None
    assert not problems, problems
    tensors = {name: load_file(checkpoint / name) for name in ("prompts.safetensors", "optimizer.safetensors")}
    lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    return {"step": checkpoint.name, "tensors": tensors, "losses": [(line["step"], line["loss"]) for line in lines if "loss" in line]}


def differences(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    different = [name for name in ("step", "losses") if expected[name] != found[name]]
    for file, tensors in expected["tensors"].items():
        different += [key for key, tensor in tensors.items() if not torch.equal(tensor, found["tensors"][file][key])]
    return different


def torment(world: Path, folder: Path, launcher: str, count: int, rng: random.Random, log: Any) -> int:
    """Kill `count` times under this launcher; returns how much went wrong."""
    reference = start(world, folder / "reference", launcher)
    assert reference.process.wait(WAIT_S) == 0, reference.output.read_text()
    expected = result_of(reference.run_folder)
    kills = runs = wrong = 0
    while kills < count:
        runs += 1
        output = folder / f"run-{runs}"
        started, code = start(world, output, launcher), None
        while code != 0:
            (kind,) = rng.choices(list(KINDS), list(KINDS.values()))
            is_aimed = rng.random() < 1 / 3
            has_come = kills < count and wait_for_moment(started, rng, is_aimed)
            killed = kill_one(started, kind, rng) if has_come else None
            if killed is None:
                code = started.process.wait(WAIT_S)
            else:
                kills += 1
                done = steps_done(started.run_folder)
                was_writing = any((started.run_folder / "checkpoints").glob(".step-*.tmp"))
                seconds, survivors, code = wait_for_end(started, killed[1])
                wrong += survivors
                moment = "writing a checkpoint" if was_writing else "training" if done else "starting"
                survived = f", {survivors} SURVIVED" if survivors else ""
                log.write(f"{kills}\t{launcher}\t{runs}\t{killed[0]}\t{moment}\t{done}\t{seconds:.1f}\t{code}{survived}\n")
                log.flush()
            if code != 0:
                started = start(world, output, launcher)
        different = differences(expected, result_of(output / "quickstart"))
        left = [str(path.relative_to(output)) for path in output.rglob("*.tmp")]
        wrong += bool(different or left)
        log.write(f"# {launcher}, run {runs}: {f'DIFFERENT: {different[:5]} {left[:5]}' if different or left else 'equal, bit for bit'}\n")
        log.flush()
        shutil.rmtree(output)
    log.write(f"# {launcher}: {kills} kills in {runs} runs, {wrong} wrong\n")
    return wrong


def make_world(folder: Path) -> None:
    from dgl_scale.quickstart.clips import make_world as make_clips

    make_clips(folder / "world", 0, scale=0.05, workers=1)
    build = [sys.executable, "shard_tools/build.py", "--config", "configs/shards/quickstart.yaml"]
    build += [f"annotations={folder}/world/annotations.jsonl", f"videos={folder}/world", f"output={folder}/shards"]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=WAIT_S)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="kills, over all launchers")
    parser.add_argument("--launchers", nargs="+", choices=list(LAUNCHERS), default=list(LAUNCHERS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", help="file for the log (default: standard output)")
    arguments = parser.parse_args()
    weights = {name: LAUNCHERS[name] for name in arguments.launchers}
    with tempfile.TemporaryDirectory(prefix="kills-") as parent, contextlib.ExitStack() as stack:
        log = stack.enter_context(open(arguments.log, "w", encoding="utf-8")) if arguments.log else sys.stdout
        make_world(Path(parent))
        log.write(f"# seed {arguments.seed}; {STEPS} steps a run, a checkpoint every {CHECKPOINT_EVERY}\n")
        log.write("kill\tlauncher\trun\tprocess\twhile\tsteps logged\tseconds until all had ended\texit code\n")
        wrong = 0
        for number, (launcher, weight) in enumerate(weights.items()):
            folder = Path(parent, launcher)
            folder.mkdir()
            share = round(arguments.count * weight / sum(weights.values()))
            wrong += torment(Path(parent), folder, launcher, share, random.Random(arguments.seed + number), log)
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
