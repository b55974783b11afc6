"""The checkpoints of a run while it runs: written in the background, the best one noted, old ones removed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dgl_scale.config import TrainingConfig
from dgl_scale.run_folder import mark_finished, point_at_best, remove_checkpoint, stale_checkpoints
from dgl_scale.telemetry import say
from dgl_scale.training.checkpoint import WritePrompts, save_checkpoint
from dgl_scale.training.checkpoint_writer import CheckpointWriter
from dgl_scale.training.engine import TrainedState
from dgl_scale.training.mirror import RunMirror


class CheckpointStore:
    """Saves checkpoints on rank 0; on other ranks none of its methods does anything but `close`.

    Args:
        run_folder: of the run.
        identity: of `checkpoint.run_identity`.
        write_prompts: writes the prompts file of a checkpoint.
        mirror: gets a copy of each; None: none.
    """

    def __init__(
        self,
        run_folder: Path,
        training: TrainingConfig,
        identity: dict[str, Any],
        write_prompts: WritePrompts,
        mirror: RunMirror | None = None,
    ) -> None:
        self._run_folder = run_folder
        self._training = training
        self._identity = identity
        self._write_prompts = write_prompts
        self._mirror = mirror
        self._writer = CheckpointWriter(in_background=training.background_checkpoints)

    def save(self, state: TrainedState, metrics: dict[str, float], *, is_last: bool) -> None:
        """Write a checkpoint after the one before; returns when it has begun.

        Args:
            state: gathered, on the CPU, and not changed afterwards.
            metrics: of the validation split; empty where it was not evaluated.
            is_last: of the run, which is then marked finished.
        """
        self._writer.submit(self._job(state, metrics, is_last))

    def finish(self) -> str | None:
        """Wait until the last checkpoint is written; returns why it could not be, None if it is there."""
        return self._writer.finish()

    def fatal_failure(self) -> str | None:
        """Why the run must stop: several checkpoints on end could not be written."""
        return self._writer.fatal_failure()

    def close(self) -> None:
        """Finish what is being written."""
        self._writer.close()

    def _job(self, state: TrainedState, metrics: dict[str, float], is_last: bool) -> Callable[[], None]:
        def write() -> None:
            checkpoint = save_checkpoint(self._run_folder, state, self._identity, self._write_prompts, metrics)
            if metrics:
                point_at_best(self._run_folder, checkpoint, (metrics["text_to_video/R@1"] + metrics["video_to_text/R@1"]) / 2)
            for stale in list(stale_checkpoints(self._run_folder, self._training.keep_checkpoints, self._training.keep_every_steps)):
                remove_checkpoint(stale)
            if is_last:
                mark_finished(self._run_folder, state.step)
            summary = "".join(f", {name} {metrics[name]:.1f}" for name in ("text_to_video/R@1", "video_to_text/R@1") if name in metrics)
            say(f"checkpoint {checkpoint}{summary and ', validation' + summary[1:]}")
            if self._mirror is not None:
                self._mirror.send()

        return write
