"""The evaluations of a watched run beside its checkpoints in object storage, where other machines find them.

ADDRESS/evaluation/step-00001000-validation/results.json  ranks.parquet  attention/
ADDRESS/evaluation/curves-validation/metrics.jsonl  best.json  best-step-00001000.safetensors

The layout is that on a disk, but for TensorBoard's files, which stay on the disk. An evaluation's results.json is sent last and
removed first, so an evaluation is complete or absent there too.
"""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dgl_scale.evaluation.results import RESULTS
from dgl_scale.evaluation.watch_summary import BEST, BEST_PROMPTS, curves_folder, is_better, keep_best, write_curves
from dgl_scale.files import LockedError, exclusive_lock, path_inside, read_json, replaced_folder
from dgl_scale.storage.storage import Storage
from dgl_scale.storage.urls import join

_TENSORBOARD = "tensorboard"
_CURVES = "metrics.jsonl"


class RemoteEvaluations:
    """The copy of one split's evaluations. A watcher calls `sync` again and again.

    Args:
        run: address of the run.
        folder: `evaluation/` of the run on this machine.
        suffix: what the names of the evaluations' folders end in, after the step.
        split: of the curves.
    """

    def __init__(self, run: str, folder: Path, *, suffix: str, split: str) -> None:
        self._storage = Storage()
        self._there = join(run, "evaluation")
        self._folder = folder
        self._split = split
        self._pattern = re.compile(rf"step-\d{{8}}{re.escape(suffix)}")
        # Evaluations that are known to be complete on both sides.
        self._same: set[str] = set()
        self._is_summary_due = False

    def renew(self, name: str) -> None:
        """The evaluation `name` was made anew here: the next `sync` sends it."""
        self._storage.remove(join(self._there, name, RESULTS))
        self._same.discard(name)

    def results(self, name: str) -> Any:
        """The content of the results.json of the evaluation `name` there; None if it is not complete."""
        return self._storage.read_json_if_there(join(self._there, name, RESULTS))

    def bring(self, name: str) -> None:
        """Bring the evaluation `name`, complete there, here in place of one that is here. Nobody else may be making it here."""
        with replaced_folder(self._folder / name) as temporary:
            for relative in self._files_there(name):
                target = path_inside(temporary, relative)
                target.parent.mkdir(parents=True, exist_ok=True)
                with self._storage.local_copy(join(self._there, name, relative)) as source:
                    shutil.copyfile(source, target)
        self._is_summary_due = True

    def sync(self) -> None:
        """Bring here what other machines have evaluated, and send what they have not. What is on both sides stays as it is.

        Nobody else may be writing the curves or the best one of `folder`.

        Raises:
            StorageError: the server cannot be reached or refuses; what is there is whole all the same.
            DglError: a file cannot be read or written here.
        """
        there = [name for name in self._storage.names(self._there) if self._pattern.fullmatch(name)]
        here = [path.name for path in self._folder.glob("step-*") if self._pattern.fullmatch(path.name)]
        names = sorted({*there, *here} - self._same)
        for name in names:
            if name in here:
                self._send(name)
            elif not self._fetch(name):
                continue
            self._same.add(name)
        if not self._is_summary_due:
            return
        write_curves(self._folder, self._split)
        curves = curves_folder(self._folder, self._split)
        if (curves / _CURVES).exists():
            self._storage.send(curves / _CURVES, str(join(self._there, curves.name, _CURVES)))
        self._sync_best()
        self._is_summary_due = False

    def _fetch(self, name: str) -> bool:
        """Whether the evaluation is on both sides now; not if it is not complete there, or somebody makes it here."""
        if not self._is_complete_there(name):
            return False
        try:
            with exclusive_lock(self._folder / f".{name}.lock"):
                self.bring(name)
        except LockedError:
            return False
        return True

    def _send(self, name: str) -> None:
        # The summary too may be what was not sent before.
        self._is_summary_due = True
        if self._is_complete_there(name):
            return
        folder = self._folder / name
        files = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
        for path in [path for path in files if path.parts[0] not in (RESULTS, _TENSORBOARD)] + [Path(RESULTS)]:
            self._storage.send(folder / path, str(join(self._there, name, *path.parts)))

    def _is_complete_there(self, name: str) -> bool:
        return self._storage.size(join(self._there, name, RESULTS)) is not None

    def _sync_best(self) -> None:
        """The better one of both sides, to the other side."""
        path, address = self._folder / BEST, join(self._there, BEST)
        here = read_json(path) if path.exists() else None
        there = self._storage.read_json_if_there(address)
        if there is not None and (here is None or is_better(there, here)):
            with self._storage.local_copy(join(self._there, str(there["prompts"]))) as prompts:
                keep_best(self._folder, there, prompts)
        elif here is not None and here != there:
            self._storage.send(self._folder / here["prompts"], str(join(self._there, here["prompts"])))
            self._storage.send(path, str(address))
            for name in self._storage.names(self._there):
                if BEST_PROMPTS.fullmatch(name) and name != here["prompts"]:
                    self._storage.remove(join(self._there, name))

    def _files_there(self, *names: str) -> Iterator[str]:
        """The files below a folder, by their paths in it."""
        for name in self._storage.names(join(self._there, *names)):
            if self._storage.size(join(self._there, *names, name)) is not None:
                yield name
            else:
                yield from (f"{name}/{below}" for below in self._files_there(*names, name))
