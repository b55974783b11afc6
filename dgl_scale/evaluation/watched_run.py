"""A training run seen from outside: what is complete in its folder, on this disk, a shared one or in object storage."""

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dgl_scale.errors import CheckpointError, DglError
from dgl_scale.files import file_sha256
from dgl_scale.run_folder import MANIFEST, PROMPTS, is_finished
from dgl_scale.storage.storage import Storage
from dgl_scale.storage.urls import Location, is_url, join, public_url, scheme_of

_STEP_FOLDER = re.compile(r"step-(\d{8})")


@dataclass(frozen=True)
class WatchedCheckpoint:
    """A complete checkpoint.

    Attributes:
        name: of its folder, such as `step-00001000`.
        step: optimizer steps.
        prompts_sha256: of its prompts file, by its manifest.
    """

    name: str
    step: int
    prompts_sha256: str


class NotWholeError(CheckpointError):
    """A checkpoint is gone, or not (yet) what its manifest says."""


class WatchedRun:
    """What a run folder holds at the moment.

    Args:
        address: a folder, or its address (`s3://…`, `gs://…`).
    """

    def __init__(self, address: str) -> None:
        self._storage = Storage()
        self._run: Location = address if is_url(address) else Path(address).expanduser().resolve()
        self._known: dict[str, WatchedCheckpoint] = {}

    def __str__(self) -> str:
        return public_url(self._run)

    @property
    def local_folder(self) -> Path | None:
        """The run folder, if it is one and no address."""
        return self._run if isinstance(self._run, Path) else None

    @property
    def bucket_address(self) -> str | None:
        """The address, if it is in object storage, which can be written to."""
        return str(self._run) if scheme_of(self._run) in {"s3", "gs"} else None

    def exists(self) -> bool:
        """Whether there is such a folder; in object storage, whether anything is in it."""
        return self._run.is_dir() if isinstance(self._run, Path) else bool(self._storage.names(self._run))

    def is_finished(self) -> bool:
        """Whether the run is marked finished."""
        return is_finished(self._run)

    def best(self) -> dict[str, Any] | None:
        """What the run's `best` says, or None where there is none."""
        content: dict[str, Any] | None = self._storage.read_json_if_there(join(self._run, "checkpoints", "best"))
        return content

    def checkpoints(self) -> list[WatchedCheckpoint]:
        """The complete ones, oldest first; a manifest is a checkpoint's last file."""
        names = [name for name in self._storage.names(join(self._run, "checkpoints")) if _STEP_FOLDER.fullmatch(name)]
        # One that was removed and written anew is read anew.
        self._known = {name: checkpoint for name in names if (checkpoint := self._known.get(name) or self._read(name)) is not None}
        return sorted(self._known.values(), key=lambda checkpoint: checkpoint.step)

    @contextmanager
    def prompts(self, checkpoint: WatchedCheckpoint) -> Iterator[Path]:
        """A private copy of a checkpoint's prompts while the block runs, so that the run may delete its own meanwhile.

        Raises:
            NotWholeError: the file is gone, damaged, or still on its way.
        """
        with tempfile.TemporaryDirectory(prefix="dgl-watch-") as folder:
            copy = Path(folder) / PROMPTS
            try:
                with self._storage.local_copy(join(self._run, "checkpoints", checkpoint.name, PROMPTS)) as path:
                    shutil.copyfile(path, copy)
            except (OSError, DglError) as error:
                raise NotWholeError(f"{self.address(checkpoint)} cannot be read: {getattr(error, 'strerror', None) or error}") from error
            if file_sha256(copy) != checkpoint.prompts_sha256:
                raise NotWholeError(f"{self.address(checkpoint)} is not what its {MANIFEST} says: damaged, or still being copied")
            yield copy

    def address(self, checkpoint: WatchedCheckpoint) -> str:
        """The prompts file of a checkpoint, fit to be shown."""
        return public_url(join(self._run, "checkpoints", checkpoint.name, PROMPTS))

    def _read(self, name: str) -> WatchedCheckpoint | None:
        try:
            manifest = self._storage.read_json(join(self._run, "checkpoints", name, MANIFEST))
            return WatchedCheckpoint(name, int(name.removeprefix("step-")), str(manifest[PROMPTS]["sha256"]))
        except (DglError, KeyError, TypeError):
            # Being written, being deleted, or no checkpoint with prompts.
            return None
