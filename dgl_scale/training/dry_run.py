"""`train --dry-run`: everything is built, steps of the largest shape are taken, and nothing is left behind."""

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from dgl_scale import distributed
from dgl_scale.batch import VideoTextBatch
from dgl_scale.config import RunConfig
from dgl_scale.data.index import SplitIndex, load_split
from dgl_scale.data.tokenizer import load_tokenizer
from dgl_scale.errors import DataError
from dgl_scale.model import DGL, build_model
from dgl_scale.model.precision import DTYPES
from dgl_scale.telemetry import say
from dgl_scale.training.engine import TrainingEngine
from dgl_scale.training.memory import estimate_memory, is_out_of_memory, memory_error
from dgl_scale.training.run import build_loader, choose_precision, rank_sizes
from dgl_scale.training.step import Inputs, train_step
from dgl_scale.training.step_timer import StepTimer

_GIB = 1 << 30
# The first step also loads kernels, compiles layers and makes the optimizer's state; the second one is timed.
_STEPS = 2


@dataclass(frozen=True)
class DryRun:
    """What a dry run found, over all ranks.

    Attributes:
        total_steps: of the whole run; None where the shards that decide it are not there.
        step_s: of the slowest rank, without reading.
        read_s: of a step's batch on the slowest rank, with the workers still starting; None where frames were random.
        peak_bytes: resident memory of the process, the largest of all ranks.
        gpu_peak_bytes: reserved by PyTorch on the GPU, the largest of all ranks; None on a CPU.
    """

    num_trained: int
    num_frozen: int
    total_steps: int | None
    step_s: float
    read_s: float | None
    peak_bytes: int
    gpu_peak_bytes: int | None


def dry_run(config: RunConfig, device: torch.device) -> DryRun:
    """Build what `run_training` builds, take steps with captions of full length, report. Collective.

    Raises:
        ConfigError, DataError: as `run_training`; missing shards are told, and replaced by random frames.
        DglError: memory is too small; says which micro-batch fits.
    """
    micro_batch_size, accumulation_steps = rank_sizes(config)
    precision = choose_precision(config.training.precision, Path(config.output).expanduser() / config.name, device)
    config = config.model_copy(update={"training": config.training.model_copy(update={"precision": precision})})
    distributed.start_control_group()
    index = _find_shards(config)
    with _memory_told(config, micro_batch_size, device):
        model = build_model(config.model, seed=config.seed, dtype=DTYPES[precision], device=device)
        model.set_execution(activation_checkpointing=config.training.activation_checkpointing, compile=config.training.compile)
        trained = model.trainable_parameters()
        num_trained = sum(parameter.numel() for _, parameter in trained)
        num_frozen = sum(parameter.numel() for parameter in model.parameters()) - num_trained
        engine = TrainingEngine(model, trained, config.training, config.optim, micro_batch_size, accumulation_steps)
        batch, read_s, total_steps = _first_batch(config, model, index, micro_batch_size, accumulation_steps)
        step_s = _time_step(engine, Inputs(device, model.image_mean, model.image_std, float(model.logit_scale.exp())), batch)
    found = _over_ranks(DryRun(num_trained, num_frozen, total_steps, step_s, read_s, *_peak_memory(device)))
    if distributed.is_main():
        say("\n".join(_lines(config, found, device, micro_batch_size, accumulation_steps)))
    return found


def _find_shards(config: RunConfig) -> SplitIndex | None:
    data = config.data
    for split, folder in (("validation", data.validation), ("test", data.test)):
        if folder is not None:
            try:
                load_split(folder, cache=data.cache)
            except DataError as error:
                _say(f"data.{split}: {error}")
    if data.streaming is not None:
        return None
    if data.train is None:
        _say("data.train is missing: random frames instead")
        return None
    try:
        return load_split(data.train, data.exclude, data.cache)
    except DataError as error:
        _say(f"data.train: {error}; random frames instead")
        return None


def _first_batch(
    config: RunConfig, model: DGL, index: SplitIndex | None, micro: int, accumulation: int
) -> tuple[list[VideoTextBatch], float | None, int | None]:
    """A step's micro-batches, the seconds that reading them took, and the steps of the run."""
    tokenizer = load_tokenizer(config.model.clip, config.data.max_words)
    # Words enough to fill every position: the text tower computes as many as the longest caption has.
    longest = tokenizer([" ".join(["a"] * config.data.max_words)])[0]
    training = config.training
    if index is None and config.data.streaming is None:
        side = model.image_size
        generator = torch.Generator().manual_seed(config.seed)
        frames = torch.randint(0, 256, (micro, config.model.num_frames, 3, side, side), dtype=torch.uint8, generator=generator)
        batch = VideoTextBatch(frames, longest.repeat(micro, 1), torch.arange(micro), tuple(f"random-{i}" for i in range(micro)))
        return [batch] * accumulation, None, training.max_steps
    loader = build_loader(config, index, tokenizer, model.image_size, micro)
    begin = time.perf_counter()
    batches = next(iter(loader.steps(0, 1)))
    read_s = time.perf_counter() - begin
    filled = [replace(batch, tokens=torch.cat([longest[None], batch.tokens[1:]])) for batch in batches]
    return filled, read_s, training.max_steps or (training.epochs or 0) * loader.steps_per_epoch


def _time_step(engine: TrainingEngine, inputs: Inputs, batch: list[VideoTextBatch]) -> float:
    timer = StepTimer(inputs.device)
    seconds = 0.0
    for _ in range(_STEPS):
        begin = time.perf_counter()
        # A learning rate of 0: the numbers of a random batch need not be good ones.
        train_step(engine, inputs, batch, 0.0, timer)
        if inputs.device.type == "cuda":
            torch.cuda.synchronize(inputs.device)
        seconds = time.perf_counter() - begin
    return seconds


def _peak_memory(device: torch.device) -> tuple[int, int | None]:
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return resident, torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None


def _over_ranks(own: DryRun) -> DryRun:
    every = distributed.gather_objects(own)
    return replace(
        own,
        step_s=max(one.step_s for one in every),
        read_s=None if own.read_s is None else max(one.read_s or 0.0 for one in every),
        peak_bytes=max(one.peak_bytes for one in every),
        gpu_peak_bytes=None if own.gpu_peak_bytes is None else max(one.gpu_peak_bytes or 0 for one in every),
    )


def _lines(config: RunConfig, found: DryRun, device: torch.device, micro: int, accumulation: int) -> Iterator[str]:
    share = 100 * found.num_trained / (found.num_trained + found.num_frozen)
    training, need = config.training, estimate_memory(config, micro, device)
    yield f"dry run of {config.name}: DGL {config.model.latent_space} over {config.model.clip}, {training.precision}, {device.type}"
    yield f"  parameters     {found.num_trained:,} trained, {found.num_frozen:,} frozen ({share:.2f}% trained)"
    yield (
        f"  sizes          global batch {training.global_batch_size} = {distributed.world_size()} ranks × {accumulation} accumulation "
        f"steps × micro-batch {micro}; {config.model.num_frames} frames, {config.data.max_words} words"
    )
    gpu = "" if found.gpu_peak_bytes is None else f"{found.gpu_peak_bytes / _GIB:.2f} GiB of the GPU, "
    yield f"  memory a rank  {gpu}{found.peak_bytes / _GIB:.2f} GiB resident at the peak"
    yield (
        f"  its estimate   {need.needed_bytes / _GIB:.2f} of {need.available_bytes / _GIB:.1f} GiB; "
        f"largest micro-batch by the estimate: {need.largest_micro_batch_size}"
    )
    reading = "reading not measured" if found.read_s is None else f"reading took {found.read_s:.2f} s, workers starting included"
    yield f"  a step         {found.step_s:.2f} s, {training.global_batch_size / found.step_s:.1f} videos/s; {reading}"
    if found.total_steps is None:
        yield f"  the run        {training.epochs} epochs; their steps and time follow from the shards"
        return
    yield f"  the run        {found.total_steps} steps, {_hours(found.total_steps * found.step_s)} if reading keeps up, without validation"


def _hours(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


@contextmanager
def _memory_told(config: RunConfig, micro_batch_size: int, device: torch.device) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise memory_error(config, micro_batch_size, device) from error


def _say(message: str) -> None:
    if distributed.is_main():
        say(message)
