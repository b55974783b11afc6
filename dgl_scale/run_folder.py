"""The layout of a run folder: its files, its checkpoints, and which of them are complete.

runs/<name>/config.yaml  metrics.jsonl  tensorboard/  evaluation/  finished.json
runs/<name>/checkpoints/step-00001000/  latest  best
"""

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dgl_scale.errors import CheckpointError, DglError
from dgl_scale.files import file_sha256, read_json, write_json
from dgl_scale.storage.storage import Storage
from dgl_scale.storage.urls import Location, join

PROMPTS = "prompts.safetensors"
MANIFEST = "manifest.json"
FINISHED = "finished.json"
_STEP_FOLDER = re.compile(r"step-(\d{8})")


def checkpoints_folder(run_folder: Path) -> Path:
    """Where the checkpoints of a run are."""
    return run_folder / "checkpoints"


def step_folder(run_folder: Path, step: int) -> Path:
    """The checkpoint folder of an optimizer step."""
    return checkpoints_folder(run_folder) / f"step-{step:08d}"


def is_step_folder(name: str) -> bool:
    """Whether a checkpoint's folder is named so."""
    return _STEP_FOLDER.fullmatch(name) is not None


def checkpoint_step(checkpoint: Path) -> int:
    """The optimizer step in a checkpoint folder's name."""
    match = _STEP_FOLDER.fullmatch(checkpoint.name)
    if match is None:
        raise CheckpointError(f"{checkpoint} is not named step-<8 digits>")
    return int(match.group(1))


def write_manifest(checkpoint: Path) -> None:
    """Record size and SHA-256 of every file of a checkpoint, as its last file."""
    files = sorted(file for file in checkpoint.iterdir() if file.is_file())
    write_json(checkpoint / MANIFEST, {file.name: {"bytes": file.stat().st_size, "sha256": file_sha256(file)} for file in files})


def check_complete(checkpoint: Path) -> None:
    """Compare a checkpoint with its manifest.

    Raises:
        CheckpointError: a file is missing, cut or changed; names it.
    """
    try:
        manifest = read_json(checkpoint / MANIFEST)
    except DglError as error:
        raise CheckpointError(f"checkpoint {checkpoint} is not complete: {error}") from error
    for name, expected in manifest.items():
        file = checkpoint / name
        if not file.is_file():
            raise CheckpointError(f"checkpoint {checkpoint} lacks {name}; use another checkpoint of the run")
        if file.stat().st_size != expected["bytes"] or file_sha256(file) != expected["sha256"]:
            raise CheckpointError(f"{file} is damaged (its hash is not the one in {MANIFEST}); use another checkpoint of the run")


def list_checkpoints(run_folder: Path) -> list[Path]:
    """All checkpoint folders of a run, oldest first."""
    folder = checkpoints_folder(run_folder)
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and is_step_folder(path.name))


def newest_complete(run_folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that agrees with its manifest, and a line for each newer one that does not."""
    problems = []
    for checkpoint in reversed(list_checkpoints(run_folder)):
        try:
            check_complete(checkpoint)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        return checkpoint, problems
    return None, problems


def write_pointer(run_folder: Path, name: str, checkpoint: Path, **details: Any) -> None:
    """Point `latest` or `best` at a checkpoint, atomically."""
    write_json(checkpoints_folder(run_folder) / name, {"checkpoint": checkpoint.name, **details})


def read_pointer(run_folder: Path, name: str) -> dict[str, Any] | None:
    """The content of `latest` or `best`, or None where there is none."""
    path = checkpoints_folder(run_folder) / name
    return read_json(path) if path.exists() else None


def find_prompts(checkpoint: str) -> Path:
    """The prompts file that `--checkpoint` names: a run folder, a checkpoint folder or the file itself.

    A run folder means its best checkpoint where one was chosen, else the newest complete one.

    Raises:
        CheckpointError: nothing of that kind is there, or it is damaged.
    """
    path = Path(checkpoint).expanduser()
    if path.is_file():
        return path
    if not path.is_dir():
        raise CheckpointError(f"no checkpoint at {checkpoint}; give a run folder, a step folder or a {PROMPTS}")
    folder = path if (path / PROMPTS).exists() else _choose(path)
    check_complete(folder)
    return folder / PROMPTS


def _choose(run_folder: Path) -> Path:
    if best := read_pointer(run_folder, "best"):
        return checkpoints_folder(run_folder) / str(best["checkpoint"])
    newest, _ = newest_complete(run_folder)
    if newest is None:
        raise CheckpointError(f"{run_folder} holds no complete checkpoint; train first")
    return newest


def stale_checkpoints(run_folder: Path, keep: int, keep_every: int | None = None) -> Iterator[Path]:
    """The checkpoints beyond the newest `keep`, oldest first; the best one and those of multiples of `keep_every` excepted."""
    best = read_pointer(run_folder, "best")
    names = [checkpoint.name for checkpoint in list_checkpoints(run_folder)]
    for name in stale_names(names, keep, keep_every, None if best is None else str(best["checkpoint"])):
        yield checkpoints_folder(run_folder) / name


def stale_names(names: Sequence[str], keep: int, keep_every: int | None, best: str | None) -> list[str]:
    """Of checkpoint folders' names, oldest first, those that `stale_checkpoints` would yield."""
    return [name for name in names[:-keep] if name != best and (keep_every is None or checkpoint_step(Path(name)) % keep_every != 0)]


def remove_leftovers(run_folder: Path) -> None:
    """Remove what a killed process was writing or deleting. Only while no run writes to the folder."""
    for folder in (run_folder, checkpoints_folder(run_folder)):
        for path in folder.glob(".*.tmp"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def remove_checkpoint(checkpoint: Path) -> None:
    """Delete a checkpoint; whoever looks meanwhile sees it whole or not at all."""
    doomed = checkpoint.with_name(f".{checkpoint.name}.deleted.tmp")
    try:
        os.rename(checkpoint, doomed)
    except FileNotFoundError:
        return
    shutil.rmtree(doomed, ignore_errors=True)


def mark_finished(run_folder: Path, step: int) -> None:
    """Say that the run has reached its last step, for those who follow it."""
    write_json(run_folder / FINISHED, {"step": step, "reason": "trained to the last step"})


def unmark_finished(run_folder: Path) -> None:
    """Take `mark_finished` back: the run goes on."""
    (run_folder / FINISHED).unlink(missing_ok=True)


def is_finished(run_folder: Location) -> bool:
    """Whether a run is marked finished.

    Args:
        run_folder: a path, or an address.

    Raises:
        StorageError: the server of an address cannot be reached or refuses.
    """
    return Storage().size(join(run_folder, FINISHED)) is not None


def point_at_best(run_folder: Path, checkpoint: Path, value: float) -> None:
    """Point `best` at a checkpoint, unless it is gone or `best` has a higher mean of both directions' R@1 on the validation split."""
    best = read_pointer(run_folder, "best")
    if (best is not None and best["value"] >= value) or not checkpoint.is_dir():
        return
    write_pointer(run_folder, "best", checkpoint, metric="validation mean R@1", value=value)
    # A checkpoint that `best` points at is not deleted; one that was being deleted just now must not be pointed at.
    if not checkpoint.is_dir():
        pointer = checkpoints_folder(run_folder) / "best"
        if best is None:
            pointer.unlink(missing_ok=True)
        else:
            write_json(pointer, best)
