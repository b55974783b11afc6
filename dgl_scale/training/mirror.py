"""A copy of a run's complete checkpoints in object storage, from which another machine goes on.

ADDRESS/<name>/config.yaml  metrics.jsonl  finished.json
ADDRESS/<name>/checkpoints/step-00001000/  latest  best

The layout is a run folder's. A checkpoint's manifest is sent last and removed first, so a checkpoint is complete or absent there too.
"""

import re
import shutil
from pathlib import Path
from typing import Any

from dgl_scale.config import TrainingConfig
from dgl_scale.errors import CheckpointError, ConfigError, DataError
from dgl_scale.files import atomic_file, atomic_folder, path_inside, read_json, write_json
from dgl_scale.run_folder import (
    FINISHED,
    MANIFEST,
    check_complete,
    checkpoint_step,
    checkpoints_folder,
    is_step_folder,
    list_checkpoints,
    newest_complete,
    read_pointer,
    remove_checkpoint,
    stale_names,
)
from dgl_scale.storage.clients import NotThereError
from dgl_scale.storage.storage import Storage
from dgl_scale.storage.urls import Location, join, public_url
from dgl_scale.telemetry import say

_BUCKET = re.compile(r"(s3|gs)://[^/]")
_RECORD = ("config.yaml", "metrics.jsonl")


class RunMirror:
    """The copy of one run. Used on rank 0 only.

    Args:
        run_folder: the run's own folder on this machine.
        training: `mirror` is the address of the folder of run folders; also what is kept.

    Raises:
        ConfigError: an address to which nothing can be written.
        StorageError: the bucket is not there, or the server cannot be reached or refuses.
    """

    def __init__(self, run_folder: Path, training: TrainingConfig) -> None:
        address = str(training.mirror)
        if not _BUCKET.match(address):
            raise ConfigError(
                f"training.mirror is {public_url(address)!r}; give an address in object storage, s3://BUCKET/… or gs://BUCKET/…"
            )
        self._training = training
        self._run_folder = run_folder
        self._address = join(address, run_folder.name)
        self._storage = Storage()
        self._storage.check_readable(address)
        # Checkpoints that are known to be there as they are here.
        self._sent: set[str] = set()

    def fetch(self) -> None:
        """Bring the newest complete checkpoint here, with the best one and the record, if none here is as new.

        Raises:
            StorageError: the server cannot be reached or refuses.
            DglError: this disk cannot be written.
        """
        here, _ = newest_complete(self._run_folder)
        newest = -1 if here is None else checkpoint_step(here)
        newer = [name for name in self._names() if checkpoint_step(Path(name)) > newest]
        fetched = next((name for name in reversed(newer) if self._fetch_checkpoint(name)), None)
        if fetched is None:
            return
        best = self._read_json(self._there("best"))
        if isinstance(best, dict) and self._fetch_checkpoint(str(best.get("checkpoint"))):
            write_json(checkpoints_folder(self._run_folder) / "best", best)
        for name in _RECORD:
            self._fetch_record(name)
        say(f"{fetched} comes from {public_url(self._address)}")

    def send(self) -> None:
        """Bring the copy up to the run folder, and remove from it what the run's rules do not keep.

        Raises:
            StorageError: the server cannot be reached or refuses; what is there is whole all the same.
        """
        here = [checkpoint.name for checkpoint in list_checkpoints(self._run_folder)]
        for name in here:
            if name not in self._sent:
                self._send_checkpoint(name)
                self._sent.add(name)
        for pointer in ("latest", "best"):
            if (path := checkpoints_folder(self._run_folder) / pointer).exists():
                self._storage.send(path, str(self._there(pointer)))
        for name in _RECORD:
            self.send_record(name)
        names = sorted({*here, *self._names()})
        best = read_pointer(self._run_folder, "best")
        kept = None if best is None else str(best["checkpoint"])
        for name in stale_names(names, self._training.keep_checkpoints, self._training.keep_every_steps, kept):
            self._remove_checkpoint(name)
        if not self.send_record(FINISHED):
            self._storage.remove(join(self._address, FINISHED))

    def send_record(self, name: str) -> bool:
        """Send a file of the run folder; returns whether there is one."""
        if not (self._run_folder / name).exists():
            return False
        self._storage.send(self._run_folder / name, str(join(self._address, name)))
        return True

    def _there(self, *names: str) -> Location:
        return join(self._address, "checkpoints", *names)

    def _names(self) -> list[str]:
        return [name for name in self._storage.names(self._there()) if is_step_folder(name)]

    def _read_json(self, location: Location) -> Any:
        try:
            return self._storage.read_json(location)
        except (NotThereError, DataError):
            return None

    def _send_checkpoint(self, name: str) -> None:
        folder = checkpoints_folder(self._run_folder) / name
        try:
            check_complete(folder)
        except CheckpointError as error:
            say(f"not sent: {error}")
            return
        manifest = read_json(folder / MANIFEST)
        if self._read_json(self._there(name, MANIFEST)) == manifest:
            return
        # Written anew after the one before was found damaged.
        self._storage.remove(self._there(name, MANIFEST))
        for file in (*manifest, MANIFEST):
            self._storage.send(folder / file, str(self._there(name, file)))

    def _fetch_checkpoint(self, name: str) -> bool:
        """Whether the checkpoint is here now; one that is not complete there is left."""
        manifest = self._read_json(self._there(name, MANIFEST)) if is_step_folder(name) else None
        if not isinstance(manifest, dict):
            return False
        target = checkpoints_folder(self._run_folder) / name
        try:
            check_complete(target)
            return True
        except CheckpointError:
            remove_checkpoint(target)
        try:
            with atomic_folder(target) as folder:
                for file in manifest:
                    self._fetch_file(self._there(name, file), path_inside(folder, file))
                write_json(folder / MANIFEST, manifest)
                check_complete(folder)
        except (NotThereError, CheckpointError, DataError) as error:
            say(f"skipped: {public_url(self._there(name))} is not complete: {error}")
            return False
        return True

    def _fetch_record(self, name: str) -> None:
        try:
            self._fetch_file(join(self._address, name), self._run_folder / name)
        except NotThereError:
            return

    def _fetch_file(self, source: Location, target: Path) -> None:
        with self._storage.local_copy(source) as copy, atomic_file(target) as stream, open(copy, "rb") as fetched:
            shutil.copyfileobj(fetched, stream)

    def _remove_checkpoint(self, name: str) -> None:
        files = self._storage.names(self._there(name))
        for file in sorted(files, key=lambda file: file != MANIFEST):
            self._storage.remove(self._there(name, file))
        self._sent.discard(name)
