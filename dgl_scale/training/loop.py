"""The training loop."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dgl_scale import distributed
from dgl_scale.batch import VideoTextBatch, normalise_frames
from dgl_scale.config import RunConfig
from dgl_scale.errors import DglError, Interrupted
from dgl_scale.run_folder import checkpoint_step, newest_complete, read_pointer, step_folder, write_pointer
from dgl_scale.telemetry import MetricsWriter, say
from dgl_scale.training.checkpoint import WritePrompts, load_checkpoint, remove_stale, save_checkpoint
from dgl_scale.training.engine import TrainingEngine
from dgl_scale.training.loss import feature_gradients, global_contrastive_loss, surrogate_loss
from dgl_scale.training.optimizer import learning_rate
from dgl_scale.training.stop import StopRequest

Batches = Callable[[int, int], Iterable[list[VideoTextBatch]]]
"""`(start_step, stop_step)` to this rank's micro-batches of each step."""


@dataclass(frozen=True)
class Trainer:
    """All that a run needs, built by the entry point.

    Attributes:
        identity: of `checkpoint.run_identity`.
        image_mean, image_std: the CLIP's, of the 0-1 range.
        logit_scale: the factor itself; frozen.
        validate: metrics of the validation split by name; collective; None where there is no such split.
    """

    config: RunConfig
    engine: TrainingEngine
    batches: Batches
    total_steps: int
    run_folder: Path
    device: torch.device
    identity: dict[str, Any]
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    logit_scale: float
    write_prompts: WritePrompts
    validate: Callable[[], dict[str, float]] | None = None
    stop: StopRequest = field(default_factory=StopRequest)


@dataclass(frozen=True)
class StepResult:
    """What a step measured: the global batch's loss, R@1 in percent, gradient norm before clipping."""

    loss: float
    recall_at_1: float
    grad_norm: float | None


def train(trainer: Trainer, start_step: int) -> Path:
    """Train from `start_step`, as `resume` returned it, to the last step.

    Returns:
        the last checkpoint's folder.

    Raises:
        Interrupted: a stop was requested; a checkpoint was written on the way out.
        DglError: a non-finite loss, an unwritable disk, unreadable data.
    """
    if start_step >= trainer.total_steps:
        _say(f"{trainer.run_folder.name} is trained already: step {start_step} of {trainer.total_steps}")
        return step_folder(trainer.run_folder, start_step)
    writer = MetricsWriter(trainer.run_folder, start_step) if distributed.is_main() else None
    try:
        return _run_steps(trainer, start_step, writer)
    finally:
        if writer:
            writer.close()


def resume(trainer: Trainer) -> int:
    """Load the newest complete checkpoint, if the config allows; returns the step to go on at."""
    checkpoint, problems = newest_complete(trainer.run_folder)
    for problem in problems:
        _say(f"skipped: {problem}")
    if checkpoint is None:
        return 0
    if trainer.config.training.resume == "never":
        raise DglError(f"{trainer.run_folder} holds checkpoints and resume is never; choose another name or resume: auto")
    state = load_checkpoint(checkpoint, trainer.identity)
    step = checkpoint_step(checkpoint)
    if step < trainer.total_steps:
        frames, tokens = _to_device(trainer, next(iter(trainer.batches(step, step + 1)))[0])
        trainer.engine.load_trained_state(state, frames, tokens)
        _say(f"resumed {trainer.run_folder.name} at step {step} of {trainer.total_steps}")
    return step


def _run_steps(trainer: Trainer, start_step: int, writer: MetricsWriter | None) -> Path:
    training = trainer.config.training
    progress = _Progress(trainer, start_step)
    step = start_step
    checkpoint = step_folder(trainer.run_folder, start_step)
    for micro_batches in progress.waiting(trainer.batches(start_step, trainer.total_steps)):
        lr = learning_rate(step, trainer.total_steps, trainer.config.optim)
        result = train_step(trainer, micro_batches, lr)
        step += 1
        is_last = step == trainer.total_steps
        if step % training.log_every_steps == 0 or is_last:
            progress.log(step, result, lr, writer)
        stopping = distributed.any_rank(trainer.stop.reason is not None, trainer.device)
        if step % training.checkpoint_every_steps == 0 or is_last or stopping:
            with progress.not_counted():
                checkpoint = _checkpoint(trainer, step, writer, skip_validation=stopping and not is_last)
        if stopping and not is_last:
            raise Interrupted(
                f"stopped by {trainer.stop.reason or 'another rank'} at step {step} of {trainer.total_steps}; run the same command to go on"
            )
    return checkpoint


def train_step(trainer: Trainer, micro_batches: list[VideoTextBatch], lr: float) -> StepResult:
    """One optimizer step with the exact gradient of the global batch.

    With several micro-batches the features are first computed without a graph; the loss over all of
    them gives each feature's gradient, which a second forward carries into the prompts. That costs one
    more forward and makes accumulation exact, which averaging contrastive losses is not.
    """
    engine = trainer.engine
    if len(micro_batches) == 1:
        video, text = engine.forward(*_to_device(trainer, micro_batches[0]))
        result = global_contrastive_loss(text, video, trainer.logit_scale)
        _check_finite(trainer, float(result.loss.detach()), micro_batches)
        engine.backward(result.loss)
        return StepResult(float(result.loss.detach()), result.recall_at_1, engine.step(lr, is_boundary=True))
    inputs = [_to_device(trainer, batch) for batch in micro_batches]
    with torch.no_grad():
        features = [engine.forward(*pair) for pair in inputs]
    result, text_gradient, video_gradient = feature_gradients(
        torch.cat([t for _, t in features]), torch.cat([v for v, _ in features]), trainer.logit_scale
    )
    _check_finite(trainer, float(result.loss), micro_batches)
    grad_norm = None
    size = micro_batches[0].frames.shape[0]
    for i, pair in enumerate(inputs):
        part = slice(i * size, (i + 1) * size)
        engine.backward(surrogate_loss(engine.forward(*pair), (video_gradient[part], text_gradient[part])))
        grad_norm = engine.step(lr, is_boundary=i == len(inputs) - 1)
    return StepResult(float(result.loss), result.recall_at_1, grad_norm)


def _to_device(trainer: Trainer, batch: VideoTextBatch) -> tuple[Tensor, Tensor]:
    frames = batch.frames.to(trainer.device, non_blocking=True)
    tokens = batch.tokens.to(trainer.device, non_blocking=True)
    return normalise_frames(frames, trainer.image_mean, trainer.image_std, trainer.engine.compute_dtype), tokens


def _check_finite(trainer: Trainer, loss: float, micro_batches: list[VideoTextBatch]) -> None:
    if loss == loss and abs(loss) != float("inf"):
        return
    keys = [key for batch in micro_batches for key in batch.keys]
    raise DglError(
        f"loss is {loss} on rank {distributed.rank()} at step {trainer.engine.steps + 1}; samples {', '.join(keys[:8])}"
        f"{' …' if len(keys) > 8 else ''}; lower optim.lr, or look at these samples"
    )


def _checkpoint(trainer: Trainer, step: int, writer: MetricsWriter | None, *, skip_validation: bool) -> Path:
    metrics = trainer.validate() if trainer.validate and not skip_validation else {}
    state = trainer.engine.trained_state()
    checkpoint = step_folder(trainer.run_folder, step)
    failure: str | None = None
    if writer:
        try:
            save_checkpoint(trainer.run_folder, state, trainer.identity, trainer.write_prompts, metrics)
            if metrics:
                writer.record(step, {f"validation/{name}": value for name, value in metrics.items()})
                _note_best(trainer.run_folder, checkpoint, metrics)
            remove_stale(trainer.run_folder, trainer.config.training.keep_checkpoints)
        except DglError as error:
            failure = str(error)
    # The other ranks must not go on when rank 0 could not write.
    if reason := distributed.broadcast_object(failure):
        raise DglError(str(reason))
    summary = "".join(f", {name} {metrics[name]:.1f}" for name in ("text_to_video/R@1", "video_to_text/R@1") if name in metrics)
    _say(f"checkpoint {checkpoint}{summary and ', validation' + summary[1:]}")
    return checkpoint


def _note_best(run_folder: Path, checkpoint: Path, metrics: dict[str, float]) -> None:
    """Point `best` at the checkpoint with the highest mean of both directions' R@1 on the validation split."""
    value = (metrics["text_to_video/R@1"] + metrics["video_to_text/R@1"]) / 2
    best = read_pointer(run_folder, "best")
    if best is None or value > best["value"]:
        write_pointer(run_folder, "best", checkpoint, metric="validation mean R@1", value=value)


class _Progress:
    """Times data and work, and writes the log."""

    def __init__(self, trainer: Trainer, start_step: int) -> None:
        self._trainer = trainer
        self._last_step, self._last_time = start_step, time.perf_counter()
        self._data_s = 0.0

    def waiting(self, batches: Iterable[list[VideoTextBatch]]) -> Iterable[list[VideoTextBatch]]:
        """The batches, with the time spent waiting for them added up."""
        iterator = iter(batches)
        while True:
            begin = time.perf_counter()
            try:
                micro_batches = next(iterator)
            except StopIteration:
                return
            self._data_s += time.perf_counter() - begin
            yield micro_batches

    @contextmanager
    def not_counted(self) -> Iterator[None]:
        """Leave the time of the block out of the steps' time."""
        begin = time.perf_counter()
        yield
        self._last_time += time.perf_counter() - begin

    def log(self, step: int, result: StepResult, lr: float, writer: MetricsWriter | None) -> None:
        """Record a step and say it in one line."""
        if writer is None:
            return
        now = time.perf_counter()
        steps = step - self._last_step
        step_s = (now - self._last_time) / steps
        data_s = self._data_s / steps
        self._last_step, self._last_time, self._data_s = step, now, 0.0
        values = {"loss": result.loss, "in_batch_R@1": result.recall_at_1, "lr": lr, "step_s": step_s, "data_s": data_s}
        if result.grad_norm is not None:
            values["grad_norm"] = result.grad_norm
        values["videos_per_s"] = self._trainer.config.training.global_batch_size / step_s
        writer.record(step, values)
        total = self._trainer.total_steps
        _say(
            f"step {step}/{total}  loss {result.loss:.3f}  in-batch R@1 {result.recall_at_1:.1f}  lr {lr:.2e}"
            f"  {step_s:.2f} s/step (data {data_s:.2f})  {_minutes((total - step) * step_s)} left"
        )


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"


def _say(message: str) -> None:
    if distributed.is_main():
        say(message)
