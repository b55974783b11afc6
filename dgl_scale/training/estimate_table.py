"""What `train --estimate` prints: a column for each number of GPUs, and what was assumed."""

from collections.abc import Callable, Iterator, Sequence

from dgl_scale.config import RunConfig
from dgl_scale.training.deepspeed_config import zero_stage
from dgl_scale.training.run_estimate import (
    FRAMES_PER_CORE_S,
    GPU,
    STAGES,
    Assumptions,
    RunEstimate,
    estimate_run,
    gpu_tflops,
    precision_of,
    with_split,
)

_GIB, _GB, _MB = 1 << 30, 1e9, 1e6
_MS = 1000


def estimate_lines(config: RunConfig, world_sizes: Sequence[int], assumptions: Assumptions) -> Iterator[str]:
    """The lines of the estimate; nothing is built, read but the split's index, or started.

    Raises:
        ConfigError: as `estimate_run`.
    """
    assumptions = with_split(config, assumptions)
    runs = [estimate_run(config, world_size, assumptions) for world_size in world_sizes]
    stage = zero_stage(config.training)
    yield (
        f"estimate of {config.name}: DGL {config.model.latent_space} over {config.model.clip}, {precision_of(config)}, ZeRO stage {stage}, "
        f"global batch {config.training.global_batch_size}; nothing was run"
    )
    rows: list[tuple[str, Callable[[RunEstimate], str]]] = [
        ("GPUs", lambda run: f"{run.world_size:,}"),
        ("micro-batch × accumulation", lambda run: f"{run.micro_batch_size} × {run.accumulation_steps}"),
        ("memory of a GPU, GiB", lambda run: f"{run.gpu_bytes / _GIB:,.1f}"),
        *((f"network, MB a step and GPU: stage {each}", _sent(each)) for each in STAGES),
        ("step, ms", lambda run: f"{_MS * run.step_s:,.0f}"),
        ("  computing", lambda run: f"{_MS * run.compute_s:,.0f}"),
        (f"  network, stage {stage}", lambda run: f"{_MS * run.network_s:,.1f}"),
        ("videos/s", lambda run: f"{config.training.global_batch_size / run.step_s:,.0f}"),
        ("reading, MB/s by all GPUs", lambda run: f"{run.read_bytes_per_s / _MB:,.0f}"),
        ("cores that decode, a GPU", lambda run: f"{run.reading_cores:,.1f}"),
        ("index in host memory, GB a GPU", lambda run: "unknown" if run.index_bytes is None else f"{run.index_bytes / _GB:,.2f}"),
        ("time of the run", lambda run: "unknown" if run.total_steps is None else duration(run.total_steps * run.step_s)),
    ]
    yield from (f"  {title:<38}" + "".join(f"{value(run):>12}" for run in runs) for title, value in rows)
    yield f"  a checkpoint    {runs[0].checkpoint_bytes / _MB:,.1f} MB, whatever the number of GPUs"
    yield f"  the run         {_steps(config, runs[0], assumptions)}"
    yield "assumed"
    reached = f"{100 * assumptions.utilisation:g}% of them reached (--utilisation)"
    yield f"  {gpu_tflops(config):g} TFLOP/s a GPU (training.peak_tflops, else an {GPU}'s), {reached}; captions of full length"
    yield f"  {assumptions.network_gbit:g} Gbit/s a GPU on the network (--network-gbit), while nothing else goes on"
    yield f"  {assumptions.sample_bytes / _MB:.2f} MB a stored video (--sample-bytes); a core decodes {FRAMES_PER_CORE_S:,} frames a second"
    yield "  neither validation nor waiting for data"


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    for unit, name in ((86400.0, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 1.5 * unit:
            return f"{seconds / unit:,.1f} {name}"
    return f"{seconds:.0f} s"


def _sent(stage: int) -> Callable[[RunEstimate], str]:
    return lambda run: f"{run.network[stage].total / _MB:,.1f}"


def _steps(config: RunConfig, run: RunEstimate, assumptions: Assumptions) -> str:
    if run.total_steps is None:
        return f"epochs {config.training.epochs}; their steps and time follow from --videos and --captions"
    if config.training.max_steps is not None:
        return f"{run.total_steps:,} steps"
    epochs = f"epochs {config.training.epochs}, videos {assumptions.videos:,}, captions a video {assumptions.captions:g}"
    return f"{run.total_steps:,} steps; {epochs}"
