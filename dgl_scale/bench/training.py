"""Bytes that training sends over the network in a step, per ZeRO stage, measured and beside a formula.

    dgl-scale bench training --network [--clip NAME …] [--world 2] [--pairs 4] [--json FILE]

Real ranks over gloo take real steps. Each counts what the kernel says was written to its own TCP connections, so that other traffic
of the machine does not count, and neither do shortcuts that a count of tensors would miss.
"""

import json
import os
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from dgl_scale.bench.model import describe_machine
from dgl_scale.bench.network_rank import Measurement, Plan
from dgl_scale.config import ModelConfig
from dgl_scale.entry import Parser, positive_int, run_command
from dgl_scale.errors import ConfigError, DglError, ExitCode
from dgl_scale.files import write_json
from dgl_scale.model.backbone import load_backbone
from dgl_scale.model.estimate import frozen_parameters, trained_parameters
from dgl_scale.model.precision import DTYPES
from dgl_scale.training.deepspeed_config import stage_3_limits
from dgl_scale.training.launch import free_port
from dgl_scale.training.network import NetworkBytes, network_bytes

_SMALL_CLIP = str(Path(__file__).parents[1] / "quickstart" / "clip" / "tiny_clip.json")
_LARGE_CLIPS = ("ViT-L-14-quickgelu", "ViT-bigG-14")
_LARGE_WORLD, _LARGE_PAIRS, _LARGE_FRAMES = 8, 16, 12
_TIMEOUT_S = 900
_WIDTHS = "{:<30}{:>6}{:>14}{:>14}{:>14}{:>16}{:>16}{:>10}"


def by_purpose(found: Measurement) -> NetworkBytes:
    """What was measured, phases turned into purposes; the few bytes of norms and agreements count to the phase that they are in."""
    phases = found.phases
    update, rest = phases["optimizer"], phases["rest"]
    if found.stage == 0:
        return NetworkBytes(phases["communication"], phases["forward"] + phases["backward"] + update + rest, 0.0, 0.0)
    if found.stage == 3:
        # Weights below DeepSpeed's threshold are gathered right after the update, the others when they are needed.
        return NetworkBytes(phases["communication"], phases["backward"], 0.0, phases["forward"] + update + rest)
    return NetworkBytes(phases["communication"], phases["forward"] + phases["backward"], update + rest, 0.0)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, measure, print; returns the exit code."""
    parser = Parser(prog="bench training", description="Measure what a training step sends over the network.")
    parser.add_argument("--network", action="store_true", required=True, help="bytes a step and rank, by ZeRO stage and purpose")
    parser.add_argument(
        "--clip",
        nargs="+",
        default=[_SMALL_CLIP, "ViT-S-32"],
        metavar="NAME",
        help="backbones, random weights (default: the quickstart's and ViT-S-32)",
    )
    parser.add_argument("--latent-space", choices=("linear", "transformer"), default="linear", help="default linear")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="default fp32")
    parser.add_argument("--stage", type=int, nargs="+", choices=range(4), default=[0, 1, 2, 3], help="ZeRO stages (default all)")
    parser.add_argument("--world", type=positive_int, default=2, metavar="N", help="processes (default 2)")
    parser.add_argument("--pairs", type=positive_int, default=4, metavar="N", help="pairs a process and micro-batch (default 4)")
    parser.add_argument("--accumulation", type=positive_int, default=1, metavar="N", help="micro-batches a step (default 1)")
    parser.add_argument("--num-frames", type=positive_int, default=2, metavar="T", help="frames of a video (default 2)")
    parser.add_argument("--steps", type=positive_int, default=3, metavar="N", help="measured steps (default 3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    arguments = parser.parse_args(argv)
    return run_command(lambda: _run(arguments), debug=arguments.debug)


def _run(arguments: Namespace) -> int:
    if sys.platform != "linux":
        raise ConfigError("bench training --network reads the kernel's counts of its connections, which it can on Linux only")
    for clip in arguments.clip:
        load_backbone(clip, None, with_weights=False)
    plan = Plan(
        clips=arguments.clip,
        stages=arguments.stage,
        latent_space=arguments.latent_space,
        num_frames=arguments.num_frames,
        precision=arguments.precision,
        pairs=arguments.pairs,
        accumulation=arguments.accumulation,
        steps=arguments.steps,
    )
    rows, pairs = [], plan.pairs * plan.accumulation
    for found in measure_network(plan, arguments.world):
        sizes = (found.embed_dim, found.num_trained, found.num_reached, found.num_frozen, DTYPES[plan.precision].itemsize)
        formula = network_bytes(found.stage, arguments.world, pairs, *sizes, accumulation=plan.accumulation, kept=stage_3_limits().kept)
        rows.append((found, by_purpose(found), formula))
    micro_batches = f" in {plan.accumulation} micro-batches" if plan.accumulation > 1 else ""
    sys.stdout.write(f"bytes that one of {arguments.world} ranks sends a step, {pairs} pairs a rank{micro_batches}, {plan.precision}\n\n")
    _print_rows([(found.clip, found.stage, measured, formula) for found, measured, formula in rows])
    sys.stdout.write(
        f"\nby the formula alone: {_LARGE_WORLD} ranks, {_LARGE_PAIRS} pairs a rank, transformer, T = {_LARGE_FRAMES}, bf16\n\n"
    )
    large = [(clip, stage, extrapolate(clip, stage), None) for clip in _LARGE_CLIPS for stage in range(4)]
    _print_rows(large)
    if arguments.json:
        figures = [{**asdict(found), "measured": asdict(measured), "formula": asdict(formula)} for found, measured, formula in rows]
        write_json(arguments.json, {"machine": describe_machine("cpu"), "plan": asdict(plan), "world": arguments.world, "figures": figures})
    return ExitCode.DONE


def measure_network(plan: Plan, world: int) -> list[Measurement]:
    """Start `world` ranks, which measure the plan.

    Raises:
        DglError: a rank failed; says its last line.
    """
    with tempfile.TemporaryDirectory(prefix="bench-training-") as folder, ExitStack() as stack:
        work = Path(folder)
        write_json(work / "plan.json", asdict(plan))
        launch = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "dgl_scale.bench.network_rank", str(work / "plan.json"), str(work / "found.json")]
        processes = []
        for rank in range(world):
            log = stack.enter_context((work / f"{rank}.log").open("w", encoding="utf-8"))
            environment = {**os.environ, **launch, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, text=True)
            stack.callback(process.wait)
            stack.callback(process.kill)
            processes.append(process)
        for rank, process in enumerate(processes):
            try:
                code = process.wait(timeout=_TIMEOUT_S)
            except subprocess.TimeoutExpired as error:
                raise DglError(f"rank {rank} has not ended after {_TIMEOUT_S} s; take fewer steps or a smaller backbone") from error
            if code != 0:
                lines = (work / f"{rank}.log").read_text(encoding="utf-8").strip().splitlines()
                raise DglError(f"rank {rank} ended with exit code {code}: {lines[-1] if lines else 'it said nothing'}")
        return [Measurement(**one) for one in json.loads((work / "found.json").read_text(encoding="utf-8"))]


def extrapolate(clip: str, stage: int) -> NetworkBytes:
    """The formula for a backbone too large to be run here."""
    config = ModelConfig(clip=clip, latent_space="transformer", num_frames=_LARGE_FRAMES)
    shape = load_backbone(clip, None, with_weights=False).shape
    trained = trained_parameters(config, shape)
    frozen = frozen_parameters(shape)
    return network_bytes(
        stage, _LARGE_WORLD, _LARGE_PAIRS, shape.embed_dim, trained, trained, frozen, bytes_per_value=2, kept=stage_3_limits().kept
    )


def _print_rows(rows: Sequence[tuple[str, int, NetworkBytes, NetworkBytes | None]]) -> None:
    titles = ("", "ZeRO", "features", "gradients", "prompts", "weights", "in all", "× formula")
    sys.stdout.write(_WIDTHS.format(*titles) + "\n")
    for clip, stage, sent, formula in rows:
        parts = [f"{round(part):,}" for part in (sent.features, sent.gradients, sent.prompts, sent.weights, sent.total)]
        ratio = f"{sent.total / formula.total:.3f}" if formula and formula.total else ""
        sys.stdout.write(_WIDTHS.format(Path(clip).stem, stage, *parts, ratio) + "\n")


if __name__ == "__main__":
    sys.exit(main())
