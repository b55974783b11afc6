"""`dgl-scale quickstart`: a video world, and the three engine commands of a cluster user in a row."""

import argparse
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from dgl_scale.config import RunConfig
from dgl_scale.config_file import load_config
from dgl_scale.entry import Parser, require, run_command
from dgl_scale.errors import ExitCode
from dgl_scale.quickstart.commands import (
    DEFAULT_FOLDER,
    Place,
    RunChoice,
    build_command,
    engine_environment,
    environment_prefix,
    evaluate_command,
    find_place,
    run_overrides,
    train_command,
)
from dgl_scale.quickstart.local_ray import local_ray
from dgl_scale.quickstart.processes import free_port, run_process, show_command

_SPLITS = ("train", "validation", "test")
_DESCRIPTION = "Make a small video world, build shards, train, evaluate and report; a second run does only what is missing."
_REDUCED_SCALE = 0.1
_REDUCED_OVERRIDES = (
    "training.max_steps=12",
    "training.global_batch_size=32",
    "training.checkpoint_every_steps=6",
    "training.log_every_steps=3",
    "evaluation.bootstrap_samples=200",
)
# What Ray and DeepSpeed say of themselves; it is in the log.
_NOISE = (
    "[INFO]",
    "INFO cli.py",
    "SUCC cli.py",
    "INFO dashboard_sdk.py",
    "INFO packaging.py",
    "INFO job_manager.py",
    "INFO worker.py",
    "INFO sdk.py",
    "Running entrypoint",
    "WARNING working_dir.py",
    "fetch_hostfile",
    "FutureWarning",
    "return func(",
)


@dataclass(frozen=True)
class Quickstart:
    """What was asked for.

    Attributes:
        device: `cpu` or `cuda`.
        num_processes: training processes, and evaluation workers.
    """

    place: Place
    choices: tuple[RunChoice, ...]
    device: str
    num_processes: int
    reduced: bool


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and run; returns the exit code."""
    parser = Parser(prog="dgl-scale quickstart", description=_DESCRIPTION)
    parser.add_argument("--folder", type=Path, default=DEFAULT_FOLDER, help="where everything goes (default: quickstart)")
    parser.add_argument("--latent-spaces", nargs="+", choices=("transformer", "linear"), default=["transformer"], help="DGL variants")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="one run a seed and variant")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: cuda where there is one")
    parser.add_argument("--num-processes", type=int, help="training processes (default: 2 on a CPU, all GPUs otherwise)")
    parser.add_argument("--reduced", action="store_true", help="a tenth of the clips, 12 steps: shows that all works, learns nothing")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    arguments = parser.parse_args(argv)
    # A scheduler's SIGTERM ends the commands as Ctrl-C does.
    signal.signal(signal.SIGTERM, _interrupt)
    return run_command(lambda: run_quickstart(_plan(arguments)), debug=arguments.debug)


def run_quickstart(quickstart: Quickstart) -> int:
    """All phases, in order; each says what it found or does.

    Raises:
        DglError: a command failed; names its log.
    """
    started = time.monotonic()
    _make_world(quickstart)
    _build_shards(quickstart)
    for choice in quickstart.choices:
        _train(quickstart, choice)
    for choice in quickstart.choices:
        _evaluate(quickstart, choice)
    _compare_and_report(quickstart)
    _say(f"done in {(time.monotonic() - started) / 60:.1f} min")
    return ExitCode.DONE


def _plan(arguments: argparse.Namespace) -> Quickstart:
    device, num_devices = _device(arguments.device)
    num_processes = arguments.num_processes or num_devices or 2
    require(num_processes >= 1, f"--num-processes must be at least 1, got {num_processes}")
    require(all(seed >= 0 for seed in arguments.seeds), "--seeds must not be negative")
    overrides = _REDUCED_OVERRIDES if arguments.reduced else ()
    choices = tuple(RunChoice(space, seed, overrides) for space in arguments.latent_spaces for seed in arguments.seeds)
    return Quickstart(find_place(arguments.folder), choices, device, num_processes, arguments.reduced)


def _device(asked: str) -> tuple[str, int]:
    """(cpu or cuda, number of GPUs); torch is imported only where there may be a GPU."""
    if asked == "cpu" or (asked == "auto" and shutil.which("nvidia-smi") is None):
        return "cpu", 0
    import torch

    if torch.cuda.is_available():
        return "cuda", torch.cuda.device_count()
    require(asked == "auto", "device cuda was asked for, but torch sees no GPU; use --device cpu")
    return "cpu", 0


def _make_world(quickstart: Quickstart) -> None:
    from dgl_scale.quickstart.clips import make_world

    _heading("1/5 videos", f"clips and captions in {quickstart.place.world}")
    scale = _REDUCED_SCALE if quickstart.reduced else 1.0
    world = make_world(quickstart.place.world, 0, scale=scale, workers=os.cpu_count() or 1, progress=_progress("encoded", "clips"))
    counts = ", ".join(f"{count} {split}" for split, count in world.num_clips.items())
    total = sum(world.num_clips.values())
    _say(f"    {'found' if world.num_drawn == 0 else f'encoded {world.num_drawn} of'} {total} clips ({counts})")


def _build_shards(quickstart: Quickstart) -> None:
    place = quickstart.place
    _heading("2/5 shards", f"WebDataset shards in {place.shards}, built by Ray")
    are_built = all((place.shards / split / "index.json").exists() for split in _SPLITS)
    if are_built and _is_newer(place.shards / "build.json", place.world / "annotations.jsonl"):
        _say("    found")
        return
    environment = engine_environment(quickstart.num_processes, quickstart.device)
    with local_ray(os.cpu_count() or 1, place.logs / "ray.log") as ray:
        _run(build_command(place, ray.address), place.logs / "build.log", {**environment, **ray.environment})


def _train(quickstart: Quickstart, choice: RunChoice) -> None:
    from dgl_scale.run_folder import checkpoint_step, newest_complete

    place = quickstart.place
    processes = f"by DeepSpeed in {quickstart.num_processes} processes"
    _heading("3/5 training", f"DGL-{choice.latent_space.capitalize()}, seed {choice.seed}, {processes}")
    newest, _ = newest_complete(place.runs / choice.name)
    if newest is not None and checkpoint_step(newest) == _config(place, choice).training.max_steps:
        _say(f"    found {newest}")
        return
    command = train_command(place, choice, quickstart.num_processes, quickstart.device, free_port())
    _run(command, place.logs / f"train-{choice.name}.log", engine_environment(quickstart.num_processes, quickstart.device))


def _evaluate(quickstart: Quickstart, choice: RunChoice) -> None:
    from dgl_scale.evaluation.results import RESULTS, evaluation_folder, resolve_checkpoint

    place = quickstart.place
    run_folder = place.runs / choice.name
    _heading("4/5 evaluation", f"{choice.name} on the held-out clips, by {quickstart.num_processes} Ray workers")
    checkpoint = resolve_checkpoint(str(run_folder))
    results = evaluation_folder(run_folder, checkpoint.name, "test") / RESULTS
    if checkpoint.prompts is not None and results.exists() and _is_newer(results, checkpoint.prompts):
        _say(f"    found {results}")
        return
    command = evaluate_command(place, choice, quickstart.num_processes, quickstart.device)
    _run(command, place.logs / f"evaluate-{choice.name}.log", engine_environment(quickstart.num_processes, quickstart.device))


def _compare_and_report(quickstart: Quickstart) -> None:
    from dgl_scale.quickstart.comparison import compare, print_comparison, write_comparison
    from dgl_scale.quickstart.rivals import evaluate_rivals

    place = quickstart.place
    _heading("5/5 comparison", "the frozen CLIP, a temporal head on frozen features, and DGL")
    seeds = sorted({choice.seed for choice in quickstart.choices})
    config = _config(place, quickstart.choices[0])
    rivals = evaluate_rivals(config, place.runs, seeds, quickstart.device)
    runs = {choice.name: place.runs / choice.name for choice in quickstart.choices}
    rows = compare(rivals, runs)
    print_comparison(rows)
    report = place.folder / "report.html"
    write_comparison(report, rows, runs, _commands(quickstart))
    _say(f"report: {report.resolve()}")


def _commands(quickstart: Quickstart) -> list[str]:
    """What the report says to run: the three engine commands, then this one."""
    place, device, num_processes = quickstart.place, quickstart.device, quickstart.num_processes
    commands = [build_command(place, "http://127.0.0.1:8265")]
    for choice in quickstart.choices:
        commands += [train_command(place, choice, num_processes, device, 29500), evaluate_command(place, choice, num_processes, device)]
    return [show_command(command) for command in commands]


def _config(place: Place, choice: RunChoice) -> RunConfig:
    return load_config(RunConfig, choice.config, run_overrides(place, choice))


def _run(command: list[str], log: Path, environment: dict[str, str]) -> None:
    _say(f"    $ {environment_prefix(environment)}{show_command(command)}")
    run_process(command, log, environment, quiet=_NOISE)


def _is_newer(path: Path, than: Path) -> bool:
    return path.exists() and path.stat().st_mtime >= than.stat().st_mtime


def _progress(verb: str, noun: str) -> Callable[[int, int], None]:
    """A line every five seconds."""
    last = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last > 5.0:
            last = time.monotonic()
            _say(f"    {verb} {done} of {total} {noun}")

    return show


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _heading(title: str, text: str) -> None:
    _say(f"\n{title}  {text}")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
