"""Scratch files without a name: not even a killed process leaves one behind."""

import tempfile
from typing import BinaryIO, cast

from dgl_scale.errors import DglError


def scratch_file(folder: str | None) -> BinaryIO:
    """A new file to write and read; its space is free again when it is closed or its process ends.

    Args:
        folder: on whose disk it lies; None: the system's temporary folder.

    Raises:
        DglError: nothing can be written there.
    """
    try:
        return cast(BinaryIO, tempfile.TemporaryFile(dir=folder))
    except OSError as error:
        raise scratch_error(error) from error


def scratch_error(error: OSError) -> DglError:
    """What a user is told of a scratch folder that is full or missing."""
    return DglError(f"cannot use the scratch folder: {error.strerror or error}; set storage.scratch to a folder with space")
