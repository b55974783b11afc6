"""Builds a training run from its config: model, shards, engine, run folder; then trains."""

import fcntl
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from dgl_scale import distributed
from dgl_scale.config import RunConfig
from dgl_scale.config_file import dump_config, load_config
from dgl_scale.data.index import SplitIndex, load_split
from dgl_scale.data.loader import TrainLoader
from dgl_scale.data.order import rank_places
from dgl_scale.data.stream_loader import StreamLoader
from dgl_scale.data.tokenizer import Tokenizer, load_tokenizer
from dgl_scale.data.workers import death_of_worker
from dgl_scale.errors import ConfigError, DglError
from dgl_scale.files import write_text
from dgl_scale.model import DGL, build_model, save_prompts
from dgl_scale.model.estimate import StepSize, estimate_step
from dgl_scale.model.precision import DTYPES, Precision, fastest_precision
from dgl_scale.run_folder import remove_leftovers, unmark_finished
from dgl_scale.telemetry import say
from dgl_scale.training.checkpoint import run_identity
from dgl_scale.training.checkpoint_store import CheckpointStore
from dgl_scale.training.engine import TrainingEngine
from dgl_scale.training.guards import FrozenWeights
from dgl_scale.training.loop import Trainer, resume, train
from dgl_scale.training.memory import is_out_of_memory, memory_error
from dgl_scale.training.mirror import RunMirror
from dgl_scale.training.progress import RunSize
from dgl_scale.training.step import Inputs
from dgl_scale.training.stop import StopRequest
from dgl_scale.training.utilisation import peak_tflops
from dgl_scale.training.watchdog import HangWatchdog

Validate = Callable[[], dict[str, float]]
BuildValidation = Callable[[DGL, SplitIndex, Tokenizer, RunConfig, torch.device], Validate]
"""Given the model and the validation split, what the loop calls at each checkpoint."""


def run_training(config: RunConfig, device: torch.device, stop: StopRequest, build_validation: BuildValidation) -> Path:
    """Train as `config` says, on this process's rank of the process group; returns the last checkpoint.

    Raises:
        ConfigError: no training split, sizes that do not divide, no trainable parameters.
        DglError: as `loop.train`.
    """
    if config.data.train is None and config.data.streaming is None:
        raise ConfigError("data.train is missing: the folder or address of the training split's shards (or data.streaming)")
    micro_batch_size, accumulation_steps = rank_sizes(config)
    # Before a folder is made and weights are fetched.
    index = load_split(str(config.data.train), config.data.exclude, config.data.cache) if config.data.streaming is None else None
    run_folder = Path(config.output).expanduser() / config.name
    watchdog = HangWatchdog(run_folder / "hang", distributed.rank(), config.training.hang_timeout_s)
    lock: int | None = None
    try:
        with stop.at_once():
            watchdog.beat("connecting the CPUs of the ranks")
            distributed.start_control_group()
        lock = _lock_folder(run_folder) if distributed.is_main() else None
        with stop.at_once():
            watchdog.beat("fetching from the mirror")
            mirror = _open_mirror(config, run_folder)
            precision = choose_precision(config.training.precision, run_folder, device)
            config = config.model_copy(update={"training": config.training.model_copy(update={"precision": precision})})
            watchdog.beat("building the model")
            model = build_model(config.model, seed=config.seed, dtype=DTYPES[precision], device=device)
            model.set_execution(activation_checkpointing=config.training.activation_checkpointing, compile=config.training.compile)
            watchdog.beat("starting DeepSpeed")
            sizes = (micro_batch_size, accumulation_steps)
            trainer = _build_trainer(config, model, index, run_folder, device, stop, build_validation, sizes, mirror)
            _announce(trainer, model, micro_batch_size, accumulation_steps)
            if distributed.is_main():
                remove_leftovers(run_folder)
            watchdog.beat("resuming from the newest checkpoint")
            start_step = resume(trainer)
        # Only now, so that a config that does not fit the run's checkpoints leaves its config.yaml alone.
        if distributed.is_main():
            write_text(run_folder / "config.yaml", dump_config(config))
            if start_step < trainer.total_steps:
                unmark_finished(run_folder)
        frozen = FrozenWeights(model) if config.training.check_frozen_weights else None
        last = train(trainer, start_step, watchdog)
        if frozen is not None:
            frozen.check()
        return last
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise memory_error(config, micro_batch_size, device) from error
        if explained := death_of_worker(error) or _death_of_rank(error):
            raise explained from error
        raise
    finally:
        watchdog.close()
        if lock is not None:
            os.close(lock)


def _death_of_rank(error: RuntimeError) -> DglError | None:
    words = distributed.lost_peer(error)
    if words is None:
        return None
    reason = f"{words[0].lower()}{words[1:]}"
    return DglError(f"another rank, or the network to it, is gone ({reason}); run the same command to go on from the newest checkpoint")


def rank_sizes(config: RunConfig) -> tuple[int, int]:
    """Micro-batch size and accumulation steps of each rank.

    Raises:
        ConfigError: the ranks cannot share the global batch equally, or there is nothing to train.
    """
    if config.model.latent_space is None:
        raise ConfigError("model.latent_space is null: a frozen CLIP has nothing to train; choose linear or transformer")
    places = rank_places(config.training.global_batch_size, distributed.rank(), distributed.world_size(), config.training.micro_batch_size)
    return places[0].stop - places[0].start, len(places)


def _build_trainer(
    config: RunConfig,
    model: DGL,
    index: SplitIndex | None,
    run_folder: Path,
    device: torch.device,
    stop: StopRequest,
    build_validation: BuildValidation,
    sizes: tuple[int, int],
    mirror: RunMirror | None,
) -> Trainer:
    (micro, accumulation), training, data = sizes, config.training, config.data
    tokenizer = load_tokenizer(config.model.clip, data.max_words)
    loader = build_loader(config, index, tokenizer, model.image_size, micro)
    total_steps = training.max_steps or (training.epochs or 0) * loader.steps_per_epoch
    inputs = Inputs(device, model.image_mean, model.image_std, float(model.logit_scale.exp()))
    is_inline = training.validation == "inline"
    validation = load_split(data.validation, cache=data.cache) if data.validation and is_inline else None
    validate = build_validation(model, validation, tokenizer, config, device) if validation else None

    def write_prompts(path: Path, prompts: dict[str, Tensor], facts: dict[str, Any]) -> None:
        state = {name.removeprefix("prompts."): tensor for name, tensor in prompts.items()}
        save_prompts(model, path, {"run": config.name, "dataset": loader.dataset, **facts}, state=state)

    identity = run_identity(config, loader.digest, str(model.backbone_digest), total_steps)
    return Trainer(
        config=config,
        engine=TrainingEngine(model, model.trainable_parameters(), training, config.optim, micro, accumulation),
        loader=loader,
        inputs=inputs,
        size=_run_size(config, model, total_steps, device),
        run_folder=run_folder,
        identity=identity,
        store=CheckpointStore(run_folder, training, identity, write_prompts, mirror),
        stop=stop,
        max_corrupt=data.max_corrupt_fraction * loader.num_samples,
        validate=validate,
    )


def _run_size(config: RunConfig, model: DGL, total_steps: int, device: torch.device) -> RunSize:
    share = config.training.global_batch_size // distributed.world_size()

    @lru_cache
    def flops(caption_length: int) -> float:
        size = StepSize(share, share, config.model.num_frames, caption_length)
        return estimate_step(config.model, model.shape, size).model_flops

    known = (
        peak_tflops(torch.cuda.get_device_name(device), DTYPES[cast(Precision, config.training.precision)])
        if device.type == "cuda"
        else None
    )
    return RunSize(total_steps, config.training.global_batch_size, flops, config.training.peak_tflops or known)


def build_loader(
    config: RunConfig, index: SplitIndex | None, tokenizer: Tokenizer, image_size: int, micro: int
) -> TrainLoader | StreamLoader:
    """The micro-batches of this rank: of the index's split, or of `data.streaming` where there is no index."""
    data = config.data
    options: dict[str, Any] = {
        "num_frames": config.model.num_frames,
        "global_batch_size": config.training.global_batch_size,
        "micro_batch_size": micro,
        "seed": config.seed,
        "rank": distributed.rank(),
        "world_size": distributed.world_size(),
        "num_workers": data.num_workers,
        "train_frames": data.train_frames,
        "max_corrupt_fraction": data.max_corrupt_fraction,
        "prefetch": data.prefetch,
        "stall_timeout_s": data.stall_timeout_s,
    }
    if index is not None:
        return TrainLoader(index, tokenizer, image_size, last_batch=data.last_batch, **options)
    if data.streaming is None:
        raise ValueError("neither an index nor data.streaming")
    return StreamLoader(data.streaming, tokenizer, image_size, **options)


def choose_precision(wanted: str, run_folder: Path, device: torch.device) -> Precision:
    """The compute type of the run, the same on all ranks; `auto` is what the run began with, else the fastest here."""
    if wanted != "auto":
        return cast(Precision, wanted)
    precision: Any = None
    if distributed.is_main():
        recorded = run_folder / "config.yaml"
        precision = load_config(RunConfig, recorded).training.precision if recorded.exists() else fastest_precision(device)
        say(f"precision auto: {precision}")
    return cast(Precision, distributed.broadcast_object(precision))


def _lock_folder(run_folder: Path) -> int:
    """Create the run folder and refuse a second run in it; returns the lock's file descriptor."""
    try:
        run_folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(run_folder / ".lock", os.O_CREAT | os.O_RDWR, 0o666)
    except OSError as error:
        raise DglError(f"cannot write {run_folder}: {error.strerror}; choose another output") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise DglError(f"another run is writing to {run_folder}; wait for it or choose another name") from error
    return lock


def _open_mirror(config: RunConfig, run_folder: Path) -> RunMirror | None:
    """The run's mirror on rank 0, after what it has and the run folder lacks was fetched. Collective: all ranks fail, or none."""
    mirror: RunMirror | None = None
    failure: DglError | None = None
    if config.training.mirror is not None and distributed.is_main():
        try:
            mirror = RunMirror(run_folder, config.training)
            mirror.fetch()
        except DglError as error:
            failure = error
    failure = cast("DglError | None", distributed.broadcast_object(failure))
    if failure is not None:
        raise failure.on_all_ranks()
    return mirror


def _announce(trainer: Trainer, model: DGL, micro: int, accumulation: int) -> None:
    if not distributed.is_main():
        return
    # ZeRO-3 leaves parameters empty between uses.
    sizes_by_name = {name: getattr(p, "ds_numel", p.numel()) for name, p in model.named_parameters()}
    trained = sum(sizes_by_name[name] for name, _ in model.trainable_parameters())
    frozen = sum(sizes_by_name.values()) - trained
    sizes = f"{distributed.world_size()} ranks, micro-batch {micro}, {accumulation} accumulation steps, {trainer.total_steps} steps"
    parameters = f"{trained:,} trained and {frozen:,} frozen parameters ({100 * trained / (trained + frozen):.2f}%)"
    model_name = f"DGL {trainer.config.model.latent_space} over {trainer.config.model.clip}"
    say(f"{trainer.config.name}: {model_name}, {parameters}, {sizes}, {trainer.inputs.device.type}")
