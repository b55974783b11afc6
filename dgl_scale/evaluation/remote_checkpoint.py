"""A checkpoint in object storage as `--checkpoint` names it, such as `training.mirror` keeps."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from dgl_scale.errors import CheckpointError
from dgl_scale.evaluation.results import Checkpoint, chosen_by
from dgl_scale.evaluation.watched_run import WatchedRun
from dgl_scale.storage.urls import public_url

_STEP = re.compile(r"(?P<run>.+)/checkpoints/(?P<name>step-\d{8})(/prompts\.safetensors)?")


@contextmanager
def remote_checkpoint(address: str) -> Iterator[Checkpoint]:
    """The checkpoint at the address of a run, of a step of it, or of that step's prompts; a private copy while the block runs.

    A run means its best checkpoint where one was chosen, else the newest complete one.

    Raises:
        CheckpointError: nothing of that kind is there, or it is damaged.
        StorageError: the server cannot be reached or refuses.
    """
    step = _STEP.fullmatch(address.rstrip("/"))
    run = WatchedRun(step["run"] if step else address)
    best = None if step else run.best()
    name = step["name"] if step else best and best["checkpoint"]
    fitting = [checkpoint for checkpoint in run.checkpoints() if name in (None, checkpoint.name)]
    if not fitting:
        raise CheckpointError(f"no complete checkpoint at {public_url(address)}; give the address of a run or of a step folder")
    found = fitting[-1]
    selection = "given by name" if step else chosen_by(best)
    with run.prompts(found) as prompts:
        yield Checkpoint(found.name, prompts, found.step, selection, chosen_by_validation=best is not None, address=run.address(found))
