"""Follows a training run: each complete checkpoint is evaluated once, by whoever of several watchers comes first."""

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import Any

from dgl_scale.config import RunConfig
from dgl_scale.errors import DataError, DglError
from dgl_scale.evaluation.encoding import Progress
from dgl_scale.evaluation.remote_claims import RemoteClaims
from dgl_scale.evaluation.remote_evaluations import RemoteEvaluations
from dgl_scale.evaluation.results import Checkpoint
from dgl_scale.evaluation.run import Evaluator
from dgl_scale.evaluation.watch_summary import mean_recall, note_best, write_curves
from dgl_scale.evaluation.watched_run import NotWholeError, WatchedCheckpoint, WatchedRun
from dgl_scale.files import LockedError, exclusive_lock
from dgl_scale.run_folder import point_at_best, step_folder
from dgl_scale.storage.clients import StorageError
from dgl_scale.storage.urls import join
from dgl_scale.telemetry import say

# Stands for any step, to see where evaluations of steps go.
_STEP = "step-00000000"

Announce = Callable[[dict[str, Any]], None]
"""Called with the content of each results.json."""


def watch(config: RunConfig, run: str, device: str, *, command: list[str], progress: Progress, announce: Announce) -> int:
    """Evaluate the checkpoints of a run as they come, until the run is marked finished and all are evaluated.

    Several watchers share the work. With one `output`, a checkpoint is claimed by the lock of its results' folder, which the
    system frees when its holder dies; of a run in object storage also there.

    Args:
        run: folder or address of the run; it may be about to appear.
        device: as of `Evaluator`.

    Returns:
        how many checkpoints this watcher evaluated.

    Raises:
        DglError: the folder is not there for longer than `evaluation.watch_patience_s`; a checkpoint does not fit the
            config; or, at the end, checkpoints were left out.
    """
    with closing(Evaluator(config, device, frozen=False, command=command, progress=progress)) as evaluator:
        return _Watch(config, WatchedRun(run), evaluator, announce).follow()


class _Watch:
    def __init__(self, config: RunConfig, run: WatchedRun, evaluator: Evaluator, announce: Announce) -> None:
        self._evaluation = config.evaluation
        self._run = run
        self._evaluator = evaluator
        self._announce = announce
        example = evaluator.folder(_STEP)
        self._folder = example.parent
        self._copy: RemoteEvaluations | None = None
        self._claims: RemoteClaims | None = None
        if (address := run.bucket_address) is not None:
            suffix = example.name.removeprefix(_STEP)
            self._copy = RemoteEvaluations(address, self._folder, suffix=suffix, split=self._evaluation.split)
            self._claims = RemoteClaims(join(address, "evaluation", "claims"), self._evaluation.watch_claim_s)
        self._not_copied: str | None = None
        self._last_seen = time.monotonic()
        self._evaluated = 0
        # Checkpoints that could not be evaluated, and why; those that may yet become whole are tried again.
        self._failed: dict[WatchedCheckpoint, str] = {}
        self._broken: dict[WatchedCheckpoint, str] = {}

    def follow(self) -> int:
        say(f"watching {self._run}, split {self._evaluation.split}")
        while True:
            # Asked first: what is there when it is finished is all.
            finished = self._run.is_finished()
            self._sync()
            pending = self._pending()
            self._check_presence()
            if any(self._try(checkpoint) for checkpoint in pending):
                continue
            if finished and all(checkpoint in self._broken for checkpoint in pending):
                break
            time.sleep(self._evaluation.watch_seconds)
        if self._not_copied is not None:
            raise DglError(f"the evaluations are in {self._folder} but not all are at {self._run}: {self._not_copied}")
        if left_out := [*self._failed.values(), *self._broken.values()]:
            raise DglError(f"{len(left_out)} checkpoints of {self._run} could not be evaluated; the first: {left_out[0]}")
        say(f"{self._run} is finished; checkpoints evaluated here: {self._evaluated}")
        return self._evaluated

    def _pending(self) -> list[WatchedCheckpoint]:
        found = self._run.checkpoints()
        self._broken = {checkpoint: reason for checkpoint, reason in self._broken.items() if checkpoint in found}
        left = [one for one in found if one not in self._failed and not self._evaluator.has_results(one.name, one.prompts_sha256)]
        return left if self._evaluation.watch_order == "oldest" else left[::-1]

    def _check_presence(self) -> None:
        if self._run.exists():
            self._last_seen = time.monotonic()
        elif time.monotonic() - self._last_seen >= self._evaluation.watch_patience_s:
            raise DglError(
                f"no run folder {self._run} for {self._evaluation.watch_patience_s:g} s (evaluation.watch_patience_s); "
                "check its path, and that its disk is there"
            )

    def _try(self, checkpoint: WatchedCheckpoint) -> bool:
        """Whether the checkpoint was evaluated here and now."""
        try:
            with self._evaluator.claim(checkpoint.name), self._claim_there(checkpoint), self._run.prompts(checkpoint) as prompts:
                # Another watcher may just have finished it.
                if self._evaluator.has_results(checkpoint.name, checkpoint.prompts_sha256) or self._bring(checkpoint):
                    return False
                self._evaluate(checkpoint, prompts)
        except LockedError:
            return False
        except NotWholeError as error:
            if checkpoint not in self._broken:
                say(f"{checkpoint.name} is skipped: {error}")
            self._broken[checkpoint] = str(error)
            return False
        except DataError as error:
            self._failed[checkpoint] = f"{checkpoint.name}: {error}"
            say(f"{checkpoint.name} is left out: {error}")
            return False
        self._evaluated += 1
        return True

    def _evaluate(self, checkpoint: WatchedCheckpoint, prompts: Path) -> None:
        address = self._run.address(checkpoint)
        named = Checkpoint(checkpoint.name, prompts, checkpoint.step, "one of all checkpoints of a watched run", address=address)
        folder, results = self._evaluator.evaluate(named)
        with exclusive_lock(folder.parent / ".summary.lock", wait=True):
            write_curves(folder.parent, self._evaluation.split)
            if self._evaluation.split == "validation":
                note_best(folder, results, prompts)
                self._protect(checkpoint, results)
        self._sync(folder.name)
        self._announce(results)

    def _claim_there(self, checkpoint: WatchedCheckpoint) -> AbstractContextManager[None]:
        """A block in which no watcher on another machine evaluates the checkpoint; LockedError where one does."""
        return nullcontext() if self._claims is None else self._claims.claim(self._evaluator.folder(checkpoint.name).name)

    def _bring(self, checkpoint: WatchedCheckpoint) -> bool:
        """Whether the checkpoint's evaluation was at the address of the run, and is here now."""
        if self._copy is None:
            return False
        name = self._evaluator.folder(checkpoint.name).name
        try:
            results = self._copy.results(name)
            if results is None or not self._evaluator.is_of(results, checkpoint.prompts_sha256):
                return False
            self._copy.bring(name)
        except (StorageError, DataError):
            # At worst it is evaluated twice.
            return False
        return True

    def _sync(self, fresh: str | None = None) -> None:
        """Exchange evaluations with the address of the run; `fresh` is the name of one just made. What fails is tried again."""
        if self._copy is None:
            return
        try:
            with exclusive_lock(self._folder / ".summary.lock", wait=True):
                if fresh is not None:
                    self._copy.renew(fresh)
                self._copy.sync()
        except (StorageError, DataError) as error:
            if str(error) != self._not_copied:
                say(f"the evaluations are not all at {self._run}: {error}")
            self._not_copied = str(error)
        else:
            self._not_copied = None

    def _protect(self, checkpoint: WatchedCheckpoint, results: Mapping[str, Any]) -> None:
        """Point the run's own `best` at the checkpoint if it is, so that the run keeps it."""
        if (run_folder := self._run.local_folder) is not None:
            point_at_best(run_folder, step_folder(run_folder, checkpoint.step), mean_recall(results))
