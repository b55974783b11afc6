"""The training loop."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dgl_scale import distributed
from dgl_scale.batch import VideoTextBatch
from dgl_scale.config import RunConfig
from dgl_scale.errors import DglError, Interrupted
from dgl_scale.run_folder import checkpoint_step, newest_complete, step_folder
from dgl_scale.telemetry import MetricsWriter, say
from dgl_scale.training.checkpoint import load_checkpoint
from dgl_scale.training.checkpoint_store import CheckpointStore
from dgl_scale.training.engine import TrainingEngine
from dgl_scale.training.guards import ExplosionGuard, check_synchronised
from dgl_scale.training.optimizer import learning_rate
from dgl_scale.training.progress import Progress, RunSize
from dgl_scale.training.step import Inputs, StepResult, to_device, train_step
from dgl_scale.training.stop import StopReason, StopRequest
from dgl_scale.training.watchdog import HangWatchdog


class Loader(Protocol):
    """Where the micro-batches of this rank come from."""

    @property
    def corrupt(self) -> Mapping[str, str]:
        """Key and error of each unreadable sample that this rank has met."""

    def steps(self, start_step: int, stop_step: int) -> Iterator[list[VideoTextBatch]]:
        """This rank's micro-batches of each step; DglError where they cannot be read."""


@dataclass(frozen=True)
class Trainer:
    """All that a run needs, built by the entry point.

    Attributes:
        identity: of `checkpoint.run_identity`.
        max_corrupt: unreadable samples of all ranks together above which the run stops.
        validate: metrics of the validation split by name; collective; None where there is no such split.
    """

    config: RunConfig
    engine: TrainingEngine
    loader: Loader
    inputs: Inputs
    size: RunSize
    run_folder: Path
    identity: dict[str, Any]
    store: CheckpointStore
    stop: StopRequest
    max_corrupt: float
    validate: Callable[[], dict[str, float]] | None = None

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.size.total_steps


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
        first = next(trainer.loader.steps(step, step + 1))[0]
        trainer.engine.load_trained_state(state, *to_device(trainer.inputs, first, trainer.engine.compute_dtype))
        _say(f"resumed {trainer.run_folder.name} at step {step} of {trainer.total_steps}")
    return step


def train(trainer: Trainer, start_step: int, watchdog: HangWatchdog) -> Path:
    """Train from `start_step`, as `resume` returned it, to the last step. Collective.

    Returns:
        the last checkpoint's folder.

    Raises:
        Interrupted: a stop was requested; a checkpoint was written on the way out.
        DglError: on all ranks: a loss that is not finite or explodes, ranks that differ, unreadable data, checkpoints
            that cannot be written.
    """
    if start_step >= trainer.total_steps:
        _say(f"{trainer.run_folder.name} is trained already: step {start_step} of {trainer.total_steps}")
        return step_folder(trainer.run_folder, start_step)
    training = trainer.config.training
    writer = MetricsWriter(trainer.run_folder, start_step, training.trackers) if distributed.is_main() else None
    progress = Progress(trainer.size, start_step, trainer.inputs.device, writer)
    try:
        _run_steps(trainer, start_step, progress, watchdog, writer)
    finally:
        trainer.store.close()
        if writer:
            writer.close()
    return step_folder(trainer.run_folder, trainer.total_steps)


def _run_steps(trainer: Trainer, start_step: int, progress: Progress, watchdog: HangWatchdog, writer: MetricsWriter | None) -> None:
    training, total_steps = trainer.config.training, trainer.total_steps
    explosion = ExplosionGuard(training.max_loss_factor, training.global_batch_size)
    batches = trainer.loader.steps(start_step, total_steps)
    step = start_step
    while True:
        watchdog.beat(f"reading the batch of step {step + 1}")
        micro_batches, failure = progress.fetch(batches)
        watchdog.beat(f"waiting for the other ranks after step {step}")
        stop, failed = _agree(trainer, failure)
        is_last = step == total_steps
        if step > start_step and (is_last or stop or failed or step % training.checkpoint_every_steps == 0):
            watchdog.beat(f"the checkpoint of step {step}")
            _save(trainer, step, progress, writer, is_urgent=bool(stop or failed) and not is_last, must_succeed=is_last or bool(stop))
        if is_last:
            return
        if stop:
            raise _interrupted(stop, step, total_steps)
        if failed:
            _raise_failure(failure or trainer.store.fatal_failure())

        watchdog.beat(f"step {step + 1}")
        lr = learning_rate(step, total_steps, trainer.config.optim)
        is_logged = (step + 1) % training.log_every_steps == 0 or step + 1 == total_steps
        result = train_step(trainer.engine, trainer.inputs, micro_batches, lr, progress.timer, with_part_norms=is_logged)
        step += 1

        explosion.check(result.loss, step)
        if is_logged:
            recorded = progress.log(step, _values(result, lr), len(trainer.loader.corrupt))
            _check_corrupt(trainer, recorded["samples_skipped"])
        if training.check_ranks_every_steps is not None and step % training.check_ranks_every_steps == 0:
            check_synchronised(trainer.engine.parameters, step)


def _agree(trainer: Trainer, failure: str | None) -> tuple[StopReason, bool]:
    """Whether any rank was asked to stop, and whether any rank cannot go on; the same answer on all. Collective."""
    is_failed = failure is not None or trainer.store.fatal_failure() is not None
    stop, failed = distributed.agree([trainer.stop.reason, is_failed])
    return StopReason(stop), bool(failed)


def _raise_failure(failure: str | None) -> None:
    """Raise what failed on any rank, on all of them. Collective."""
    failures = distributed.gather_objects(failure)
    message = "; ".join(f"rank {rank}: {text}" if len(failures) > 1 else text for rank, text in enumerate(failures) if text)
    raise DglError(message).on_all_ranks()


def _interrupted(stop: StopReason, step: int, total_steps: int) -> Interrupted:
    return Interrupted(f"stopped by {stop.words} at step {step} of {total_steps}; run the same command to go on").on_all_ranks()


def _save(trainer: Trainer, step: int, progress: Progress, writer: MetricsWriter | None, *, is_urgent: bool, must_succeed: bool) -> None:
    """Validate unless it is urgent, gather the trained state, and hand it to the store. Collective."""
    metrics = {}
    if trainer.validate and not is_urgent:
        with progress.paused("validation"):
            metrics = trainer.validate()
    with progress.paused("checkpoint"):
        state = trainer.engine.trained_state()
        if writer and metrics:
            writer.record(step, {f"validation/{name}": value for name, value in metrics.items()})
        if writer:
            trainer.store.save(state, metrics, is_last=step == trainer.total_steps)
        if not must_succeed:
            return
        # The other ranks must not leave with success when rank 0 could not write.
        failure = distributed.broadcast_object(trainer.store.finish() if writer else None)
    if failure:
        raise DglError(str(failure)).on_all_ranks()


def _values(result: StepResult, lr: float) -> dict[str, float]:
    values = {"loss": result.loss, "in_batch_R@1": float(result.recall_at_1), "lr": lr}
    if result.grad_norm is not None:
        values["grad_norm"] = result.grad_norm
    return values | {f"grad_norm/{part}": norm for part, norm in result.part_norms.items()}


def _check_corrupt(trainer: Trainer, skipped: float) -> None:
    """Stop when all ranks together have met too many unreadable samples; `skipped` counts one once a rank. Collective."""
    if skipped <= trainer.max_corrupt:
        return
    keys = set().union(*distributed.gather_objects(list(trainer.loader.corrupt)))
    if len(keys) <= trainer.max_corrupt:
        return
    raise DglError(
        f"{len(keys)} unreadable samples over all ranks, more than data.max_corrupt_fraction "
        f"{trainer.config.data.max_corrupt_fraction} allows; the log names them, build their shards again"
    ).on_all_ranks()


def _say(message: str) -> None:
    if distributed.is_main():
        say(message)
