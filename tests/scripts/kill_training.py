"""Kill training runs again and again, at random moments, and compare what they lead to with an undisturbed run.

    python tests/scripts/kill_training.py --count 200 --seed 0 --log kills.tsv

Each kill is SIGKILL to one process: a rank, a reading worker, the launcher, or its process on the host. Every third is
aimed at the moment in which a checkpoint is being written. All other processes must end within a minute by themselves;
then the same command is started again, as a user or a scheduler would. Ends with 1 unless every run leads to exactly the
prompts, moments and losses of the undisturbed one, nothing outlives a kill, and no temporary file is left.

Runs are of one process, of two as `srun` starts them (no launcher that would end the others), and of two under `deepspeed`. The
first two are forked from this script, which has imported all packages: a start takes two seconds instead of ten.
"""

import argparse
import contextlib
import json
import multiprocessing.connection
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Before torch is imported, here and in all that is forked.
os.environ |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}

import deepspeed  # noqa: F401 - for the forked
import psutil
import torch
from safetensors.torch import load_file

import dgl_scale.evaluation.retrieval
import dgl_scale.training.run  # noqa: F401 - for the forked
from dgl_scale import train
from dgl_scale.quickstart.processes import free_port
from dgl_scale.run_folder import is_finished, newest_complete

ROOT = Path(__file__).resolve().parents[2]
STEPS = 60
CHECKPOINT_EVERY = 3
LAUNCHERS = {"python": 0.45, "ranks": 0.45, "deepspeed": 0.1}
KINDS = {"rank": 40, "launcher": 20, "host": 20, "worker": 20}
END_S = 60.0
GRACE_S = 30.0
WAIT_S = 400.0
POLL_S = 0.002


@dataclass
class Start:
    """A running training command.

    Attributes:
        poll: its exit code, None while it runs.
        wait: the same after at most so many seconds.
        leftovers: of checkpoints that killed starts before were writing.
    """

    launcher: str
    pid: int
    poll: Callable[[], int | None]
    wait: Callable[[float], int | None]
    run_folder: Path
    output: Path
    leftovers: frozenset[Path]

    def is_writing(self) -> bool:
        """Whether a checkpoint is in the making, one of this start."""
        return any(path not in self.leftovers for path in _unfinished(self.run_folder))

    def family(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            parent = psutil.Process(self.pid)
            return [parent, *parent.children(recursive=True)]
        return []

    def kind_of(self, process: psutil.Process) -> str:
        words = " ".join(process.cmdline())
        if "multiprocessing" in words:
            return "worker" if "spawn_main" in words else ""
        if process.pid == self.pid:
            return "rank" if self.launcher == "python" else "launcher"
        return "host" if "deepspeed.launcher.launch" in words else "rank"


def arguments_of(shards: Path, output: Path, num_workers: int) -> list[str]:
    data = [f"data.{split}={shards}/{split}" for split in ("train", "test")]
    training = [f"max_steps={STEPS}", "global_batch_size=8", f"checkpoint_every_steps={CHECKPOINT_EVERY}", "log_every_steps=1"]
    model = ["model.pretrained=null", "model.num_frames=2", "seed=3"]
    other = [f"data.num_workers={num_workers}", "data.validation=null", f"output={output}"]
    return ["--config", "configs/quickstart.yaml", *model, *other, *data, *(f"training.{value}" for value in training)]


def start(shards: Path, output: Path, launcher: str, num_workers: int) -> Start:
    arguments, log, run_folder = arguments_of(shards, output, num_workers), output.with_suffix(".log"), output / "quickstart"
    leftovers = frozenset(_unfinished(run_folder))
    if launcher == "deepspeed":
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        program = [str(Path(sys.executable).with_name("deepspeed")), "--num_accelerators", "2", "--master_port", str(free_port())]
        with open(log, "ab") as stream:
            command = subprocess.Popen(
                [*program, "dgl_scale/train.py", *arguments],
                cwd=ROOT,
                env={**os.environ, "PATH": path},
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )

        def wait_for_command(timeout_s: float) -> int | None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return command.wait(timeout_s)
            return None

        return Start(launcher, command.pid, command.poll, wait_for_command, run_folder, log, leftovers)
    target = run_one if launcher == "python" else run_two
    forked = multiprocessing.get_context("fork").Process(target=target, args=(arguments, log))
    forked.start()

    def wait_for_forked(timeout_s: float) -> int | None:
        forked.join(timeout_s)
        return forked.exitcode

    assert forked.pid is not None
    return Start(launcher, forked.pid, lambda: forked.exitcode, wait_for_forked, run_folder, log, leftovers)


def run_one(arguments: list[str], log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.chdir(ROOT)
    # Else each reading worker would import this script, and all that it imports.
    del sys.modules["__main__"].__file__
    sys.exit(train.main(arguments))


def run_two(arguments: list[str], log: Path) -> None:
    os.environ |= {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = []
    for rank in ("0", "1"):
        os.environ |= {"RANK": rank, "LOCAL_RANK": rank}
        ranks.append(multiprocessing.get_context("fork").Process(target=run_one, args=(arguments, log)))
        ranks[-1].start()
    # As srun does with --wait: a rank that was killed before it met the others cannot be missed by them for a while.
    multiprocessing.connection.wait([process.sentinel for process in ranks])
    deadline = time.monotonic() + GRACE_S
    for process in ranks:
        process.join(max(0.0, deadline - time.monotonic()))
        process.terminate()
        process.join()
    sys.exit(max((process.exitcode or 0 for process in ranks), key=abs))


def _unfinished(run_folder: Path) -> list[Path]:
    return list((run_folder / "checkpoints").glob(".step-*.tmp"))


def steps_done(run_folder: Path) -> int:
    metrics = run_folder / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def wait_for_moment(started: Start, rng: random.Random, is_aimed: bool) -> bool:
    """Wait for a random moment of the start, or for a checkpoint in the making; False if the run ended before."""
    before = steps_done(started.run_folder)
    wanted = 0 if rng.random() < 0.1 else before + rng.randint(0, 3 * CHECKPOINT_EVERY)
    deadline = time.monotonic() + (rng.uniform(0.0, 8.0) if wanted == 0 else WAIT_S)
    while started.poll() is None and time.monotonic() < deadline:
        has_reached = wanted > 0 and steps_done(started.run_folder) > wanted
        if has_reached and (not is_aimed or started.is_writing()):
            return True
        time.sleep(POLL_S if has_reached else 0.05)
    return started.poll() is None


def kill_one(started: Start, kind: str, rng: random.Random) -> tuple[str, list[psutil.Process]] | None:
    """Kill a process of this kind, or of another that is there; returns what was killed and who was alive then."""
    family = started.family()
    by_kind: dict[str, list[psutil.Process]] = {}
    for process in family:
        with contextlib.suppress(psutil.Error):
            by_kind.setdefault(started.kind_of(process), []).append(process)
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
    started.wait(END_S)
    _, alive = psutil.wait_procs(family, timeout=max(0.0, begin + END_S - time.monotonic()))
    survivors = [process for process in alive if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    seconds = time.monotonic() - begin
    for process in survivors:
        with contextlib.suppress(psutil.Error):
            process.kill()
    return seconds, len(survivors), started.poll()


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


def torment(shards: Path, folder: Path, launcher: str, count: int, rng: random.Random, log: Any) -> int:
    """Kill `count` times under this launcher; returns how much went wrong."""
    reference = start(shards, folder / "reference", launcher, num_workers=0)
    assert reference.wait(WAIT_S) == 0, reference.output.read_text()
    expected = result_of(reference.run_folder)
    kills = runs = wrong = 0
    while kills < count:
        runs += 1
        output = folder / f"run-{runs}"
        # Every other run reads in a process of its own.
        num_workers = runs % 2
        started = start(shards, output, launcher, num_workers)
        # Not by the code: `deepspeed` ends with 0 when its process on the host was killed.
        while not is_finished(output / "quickstart"):
            (kind,) = rng.choices(list(KINDS), list(KINDS.values()))
            is_aimed = rng.random() < 1 / 3
            has_come = kills < count and wait_for_moment(started, rng, is_aimed)
            killed = kill_one(started, kind, rng) if has_come else None
            if killed is None:
                started.wait(WAIT_S)
            else:
                kills += 1
                done = steps_done(started.run_folder)
                was_writing = started.is_writing()
                seconds, survivors, code = wait_for_end(started, killed[1])
                wrong += survivors
                moment = "writing a checkpoint" if was_writing else "training" if done else "starting"
                survived = f", {survivors} SURVIVED" if survivors else ""
                log.write(f"{kills}\t{launcher}\t{runs}\t{killed[0]}\t{moment}\t{done}\t{seconds:.1f}\t{code}{survived}\n")
                log.flush()
            if not is_finished(output / "quickstart"):
                started = start(shards, output, launcher, num_workers)
        different = differences(expected, result_of(output / "quickstart"))
        left = [str(path.relative_to(output)) for path in output.rglob("*.tmp")]
        wrong += bool(different or left)
        log.write(f"# {launcher}, run {runs}: {f'DIFFERENT: {different[:5]} {left[:5]}' if different or left else 'equal, bit for bit'}\n")
        log.flush()
        shutil.rmtree(output)
    log.write(f"# {launcher}: {kills} kills in {runs} runs, {wrong} wrong\n")
    return wrong


def make_shards(folder: Path) -> Path:
    from dgl_scale.quickstart.clips import make_world

    make_world(folder / "world", 0, scale=0.05, workers=1)
    build = [sys.executable, "shard_tools/build.py", "--config", "configs/shards/quickstart.yaml"]
    build += [f"annotations={folder}/world/annotations.jsonl", f"videos={folder}/world", f"output={folder}/shards"]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=WAIT_S)
    return folder / "shards"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="kills, over all launchers")
    parser.add_argument("--launchers", nargs="+", choices=list(LAUNCHERS), default=list(LAUNCHERS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shards", type=Path, help="folder of splits to train on (default: a small world is made)")
    parser.add_argument("--log", help="file for the log (default: standard output)")
    arguments = parser.parse_args()
    weights = {name: LAUNCHERS[name] for name in arguments.launchers}
    with tempfile.TemporaryDirectory(prefix="kills-") as parent, contextlib.ExitStack() as stack:
        log = stack.enter_context(open(arguments.log, "w", encoding="utf-8")) if arguments.log else sys.stdout
        shards = (arguments.shards or make_shards(Path(parent))).resolve()
        log.write(f"# seed {arguments.seed}; {STEPS} steps a run, a checkpoint every {CHECKPOINT_EVERY}\n")
        log.write("kill\tlauncher\trun\tprocess\twhile\tsteps logged\tseconds until all had ended\texit code\n")
        wrong = 0
        for number, (launcher, weight) in enumerate(weights.items()):
            folder = Path(parent, launcher)
            folder.mkdir()
            share = round(arguments.count * weight / sum(weights.values()))
            wrong += torment(shards, folder, launcher, share, random.Random(arguments.seed + number), log)
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
