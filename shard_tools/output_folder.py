"""The folder of a build while it is being built: one builder at a time, and nothing half-written in it."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from dgl_scale.errors import DglError
from dgl_scale.storage.urls import Location, is_url


@contextlib.contextmanager
def only_builder(output: Location) -> Iterator[None]:
    """Hold the output folder, and leave no temporary file of a killed worker in it.

    In object storage there is nothing to leave, objects being whole or absent, and no lock: two builds of one
    config write the same bytes, and one of another config is refused.

    Raises:
        DglError: the folder cannot be made, or another build holds it.
    """
    if is_url(output):
        yield
        return
    output = Path(output)
    try:
        output.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(output, os.O_RDONLY)
    except OSError as error:
        raise DglError(f"cannot write {output}: {error.strerror or error}; choose another output folder") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove_temporary(output)
        try:
            yield
        finally:
            _remove_temporary(output)
    except BlockingIOError as error:
        raise DglError(f"another build is writing to {output}; wait for it or choose another output") from error
    finally:
        os.close(descriptor)


def _remove_temporary(output: Path) -> None:
    for pattern in (".*.json.*.tmp", "*/.*.json.*.tmp", "*/.*.tar.*.tmp", "*/.*.parquet.*.tmp"):
        for path in output.glob(pattern):
            path.unlink(missing_ok=True)
