"""`dgl-scale bench model`: a training step of DGL beside its rivals and its limit, all in one run.

Rivals: the literal formulation of the published code with the same weights (`literal_dgl`), the frozen CLIP with mean
pooling (forward only), and the same CLIP fully fine-tuned. Limit: the step's own matrix products, alone
(`matrix_rate`). A step is forward, contrastive loss and backward; no optimizer and no data loading.
"""

import json
import platform
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dgl_scale.bench.literal_dgl import LiteralDGL
from dgl_scale.bench.matrix_rate import tower_products
from dgl_scale.bench.model_scaling import draw_scaling, measure_scaling
from dgl_scale.bench.step_cost import Memory, Step, count_flops, measure_memory, time_in_turn
from dgl_scale.bench.train_step import caption_length, random_batch, train_step
from dgl_scale.config import ModelConfig
from dgl_scale.entry import Parser, positive_int, run_command
from dgl_scale.errors import ConfigError, ExitCode
from dgl_scale.files import write_json, write_text
from dgl_scale.model import DGL, build_model
from dgl_scale.model.backbone import load_backbone
from dgl_scale.model.estimate import StepEstimate, StepSize, estimate_step, largest_batch
from dgl_scale.model.precision import DTYPES

_LIMIT = "matrix products"
_SCALING_CLIPS = ("ViT-B-32-quickgelu", "ViT-B-16-quickgelu", "ViT-L-14-quickgelu")


@dataclass(frozen=True)
class Measurement:
    """One contender.

    Attributes:
        seconds: the fastest round.
        all_seconds: every round.
        flops: of its own formulation, as PyTorch's counter has them.
        share_of_matrix_rate: its FLOP/s over those of its matrix products alone.
        memory: null where it was not measured.
    """

    name: str
    seconds: float
    all_seconds: list[float]
    videos_per_second: float
    flops: float
    share_of_matrix_rate: float
    memory: Memory | None


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, measure or estimate, print; returns the exit code."""
    arguments = _parser().parse_args(argv)
    return run_command(lambda: _run(arguments), debug=arguments.debug)


def _parser() -> Parser:
    parser = Parser(prog="dgl-scale bench model", description="A training step of DGL beside its rivals and its limit, in one run.")
    parser.add_argument("--clip", default="ViT-B-32-quickgelu", metavar="NAME", help="open_clip model or model-config file, random weights")
    parser.add_argument("--latent-space", nargs="+", choices=("linear", "transformer"), default=["linear", "transformer"])
    parser.add_argument("--num-frames", type=positive_int, default=12, metavar="T")
    parser.add_argument("--videos", type=positive_int, default=4, metavar="B", help="micro-batch: videos and captions")
    parser.add_argument(
        "--words", type=positive_int, default=32, metavar="L", help="padded caption positions; captions fill a third of them"
    )
    parser.add_argument("--local", type=int, default=4, metavar="N", help="local prompts a frame")
    parser.add_argument("--global", type=positive_int, default=4, metavar="G", dest="num_globals", help="global prompts")
    parser.add_argument("--precision", choices=tuple(DTYPES), default="fp32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=positive_int, default=None, help="CPU threads (default: all)")
    parser.add_argument("--rounds", type=positive_int, default=5, help="rounds; each contender once a round, the fastest counts")
    parser.add_argument("--compile", action="store_true", help="one more contender: DGL with compiled layers")
    parser.add_argument("--no-rivals", action="store_true", help="DGL and the limit only")
    parser.add_argument("--profile", action="store_true", help="print the operations that take longest")
    parser.add_argument("--estimate", action="store_true", help="operations and memory from the config alone, nothing is run")
    parser.add_argument("--memory-gib", type=float, metavar="N", help="say the largest micro-batch that this memory is estimated to hold")
    parser.add_argument(
        "--peak-tflops", type=float, metavar="N", help="the device's peak in this precision: say the model FLOP utilisation"
    )
    parser.add_argument("--scaling", metavar="FILE.svg", help="time against T, P and prompts, drawn to a file, instead")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _run(arguments: Namespace) -> int:
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda was asked for, but torch sees no GPU")
    if arguments.device == "cpu" and arguments.precision == "fp16":
        raise ConfigError("--precision fp16 is for GPUs; take fp32 or bf16 on a CPU")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    report: dict[str, Any] = {"machine": describe_machine(arguments.device), "arguments": _plain(vars(arguments)), "variants": {}}
    if not arguments.estimate:
        sys.stdout.write(f"{report['machine']}\n")
    if arguments.scaling:
        return _scaling(arguments, report)
    for latent_space in arguments.latent_space:
        config = model_config(arguments, latent_space)
        estimate = _estimate(config, arguments)
        sys.stdout.write(f"\n{_title(config, arguments)}\n{_estimate_lines(estimate, config, arguments)}")
        entry: dict[str, Any] = {"estimate": {**asdict(estimate), "model_flops": estimate.model_flops, "peak_bytes": estimate.peak_bytes}}
        if not arguments.estimate:
            measurements, agreement = measure(config, arguments)
            sys.stdout.write(_table(measurements, agreement))
            if arguments.peak_tflops:
                utilisation = estimate.model_flops / measurements[0].seconds / (1e12 * arguments.peak_tflops)
                sys.stdout.write(f"  model FLOP utilisation of DGL: {100 * utilisation:.1f}% of {arguments.peak_tflops:g} TFLOP/s\n")
                entry["model_flop_utilisation"] = utilisation
            entry |= {"measurements": [asdict(one) for one in measurements], "largest_feature_difference": agreement}
        report["variants"][latent_space] = entry
    if arguments.json:
        write_json(arguments.json, report)
    return ExitCode.DONE


def _scaling(arguments: Namespace, report: dict[str, Any]) -> int:
    config = model_config(arguments, arguments.latent_space[0])
    dtype, device = DTYPES[arguments.precision], torch.device(arguments.device)
    points = measure_scaling(config, clips=_SCALING_CLIPS, dtype=dtype, device=device, rounds=arguments.rounds)
    write_text(Path(arguments.scaling), draw_scaling(points))
    if arguments.json:
        write_json(arguments.json, report | {"scaling": [asdict(point) for point in points]})
    return ExitCode.DONE


def model_config(arguments: Namespace, latent_space: Any) -> ModelConfig:
    """The model that the arguments name."""
    return ModelConfig(
        clip=arguments.clip,
        latent_space=latent_space,
        num_frames=arguments.num_frames,
        num_local_prompts=arguments.local,
        num_global_prompts=arguments.num_globals,
    )


def measure(config: ModelConfig, arguments: Namespace) -> tuple[list[Measurement], float | None]:
    """Measure all contenders; and the largest difference of features between DGL and its literal rival, if both ran."""
    device, dtype = torch.device(arguments.device), DTYPES[arguments.precision]
    model = build_model(config, dtype=dtype, device=device)
    frames, tokens = random_batch(model, arguments.videos, arguments.num_frames, arguments.words, dtype, device)
    steps: dict[str, Step] = {"DGL": train_step(model, frames, tokens)}
    watched: dict[str, torch.nn.Module] = {"DGL": model}
    agreement = None
    if arguments.compile:
        compiled = build_model(config, dtype=dtype, device=device)
        compiled.set_execution(compile=True)
        steps["DGL, compiled"] = train_step(compiled, frames, tokens)
    if not arguments.no_rivals:
        literal = _literal(config, model, dtype, device)
        agreement = max(
            float((one - other).detach().abs().max()) for one, other in zip(model(frames, tokens), literal(frames, tokens), strict=True)
        )
        steps["literal formulation"], watched["literal formulation"] = train_step(literal, frames, tokens), literal
        steps |= _frozen_and_tuned(config, frames, tokens, dtype, device)
    rows = arguments.videos * arguments.num_frames * (model.shape.num_patches + 1)
    limit, limit_flops = tower_products(model.shape.vision, rows, dtype, device)
    flops = {name: count_flops(step) for name, step in steps.items() if name != "DGL, compiled"}
    if arguments.compile:
        flops["DGL, compiled"] = flops["DGL"]
    seconds = time_in_turn(steps | {_LIMIT: limit}, rounds=arguments.rounds, device=device)
    if arguments.profile:
        sys.stdout.write(profile(steps["DGL"], device))
    rate = limit_flops / min(seconds[_LIMIT])
    measurements = [
        Measurement(
            name,
            min(seconds[name]),
            seconds[name],
            arguments.videos / min(seconds[name]),
            flops[name],
            flops[name] / min(seconds[name]) / rate,
            measure_memory(steps[name], watched[name], device) if name in watched else None,
        )
        for name in steps
    ]
    return [*measurements, Measurement(_LIMIT, min(seconds[_LIMIT]), seconds[_LIMIT], 0.0, limit_flops, 1.0, None)], agreement


def profile(step: Step, device: torch.device) -> str:
    """The operations of a step that take longest by themselves."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as record:
        step()
    key = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    return str(record.key_averages().table(sort_by=key, row_limit=15, max_name_column_width=60)) + "\n"


def describe_machine(device: str) -> str:
    """Processor, threads, GPU if it is used, and versions: what a figure belongs to."""
    name = torch.cuda.get_device_name() if device == "cuda" else f"{_cpu_name()}, {torch.get_num_threads()} threads"
    return f"{name}; torch {torch.__version__}, Python {platform.python_version()}"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _literal(config: ModelConfig, model: DGL, dtype: torch.dtype, device: torch.device) -> LiteralDGL:
    state = load_backbone(config.clip, None).state
    assert state is not None
    return LiteralDGL(config, model.shape, {name: value.to(dtype) for name, value in state.items()}, model.prompts_state()).to(device)


def _frozen_and_tuned(config: ModelConfig, frames: Tensor, tokens: Tensor, dtype: torch.dtype, device: torch.device) -> dict[str, Step]:
    mean_pooling = config.model_copy(update={"latent_space": None})
    frozen, tuned = (build_model(mean_pooling, dtype=dtype, device=device) for _ in range(2))
    tuned.requires_grad_(True)

    def forward() -> None:
        with torch.no_grad():
            frozen(frames, tokens)

    return {"frozen CLIP, forward": forward, "full fine-tuning": train_step(tuned, frames, tokens)}


def _estimate(config: ModelConfig, arguments: Namespace) -> StepEstimate:
    shape = load_backbone(config.clip, None, with_weights=False).shape
    size = StepSize(arguments.videos, arguments.videos, arguments.num_frames, caption_length(arguments.words))
    return estimate_step(config, shape, size, bytes_per_value=DTYPES[arguments.precision].itemsize)


def _title(config: ModelConfig, arguments: Namespace) -> str:
    size = f"B = {arguments.videos}, T = {arguments.num_frames}, {arguments.precision}"
    return f"DGL {config.latent_space} over {config.clip}, {size}"


def _estimate_lines(estimate: StepEstimate, config: ModelConfig, arguments: Namespace) -> str:
    gib = 1 << 30
    largest = ""
    if arguments.memory_gib:
        shape, length = load_backbone(config.clip, None, with_weights=False).shape, caption_length(arguments.words)
        bytes_per_value = DTYPES[arguments.precision].itemsize
        batch = largest_batch(config, shape, arguments.memory_gib * gib, caption_length=length, bytes_per_value=bytes_per_value)
        largest = f"  largest micro-batch in {arguments.memory_gib:g} GiB by this estimate: {batch}\n"
    return (
        f"  estimate: {estimate.model_flops / 1e9:,.1f} GFLOP a step ({estimate.forward_flops / 1e9:,.1f} forward), "
        f"{estimate.saved_bytes / gib:.3f} GiB saved ({estimate.saved_bytes / arguments.videos / (1 << 20):,.1f} MiB a video, "
        f"{estimate.saved_values_per_token_and_layer:.1f} D values a token and layer), peak {estimate.peak_bytes / gib:.3f} GiB "
        f"with {estimate.frozen_bytes / gib:.3f} of weights and {estimate.trained_bytes / gib:.3f} of prompts and optimizer\n" + largest
    )


def _table(measurements: Sequence[Measurement], agreement: float | None) -> str:
    ours = measurements[0].seconds
    rows = [
        f"  {'':<22}{'ms':>10}{'videos/s':>10}{'x DGL':>8}{'GFLOP':>10}{'GFLOP/s':>10}{'of limit':>10}{'saved MiB':>11}{'peak MiB':>10}"
    ]
    for one in measurements:
        is_limit = one.name == _LIMIT
        speed = "" if is_limit else f"{one.videos_per_second:.2f}"
        ratio = "" if is_limit else f"{one.seconds / ours:.2f}"
        memory = f"{one.memory.saved / (1 << 20):>11,.1f}{one.memory.peak / (1 << 20):>10,.1f}" if one.memory else ""
        rows.append(
            f"  {one.name:<22}{1e3 * one.seconds:>10,.1f}{speed:>10}{ratio:>8}{one.flops / 1e9:>10,.1f}"
            f"{one.flops / one.seconds / 1e9:>10,.1f}{100 * one.share_of_matrix_rate:>9.1f}%{memory}"
        )
    if agreement is not None:
        rows.append(f"  largest difference of features between DGL and the literal formulation: {agreement:.1e}")
    return "\n".join(rows) + "\n"


def _plain(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in json.loads(json.dumps(arguments, default=str)).items() if name not in {"debug", "json"}}
