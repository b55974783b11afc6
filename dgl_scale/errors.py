"""Errors that a user can cause and mend. Each message is one line: what, which value, what to do."""

from enum import IntEnum
from typing import Self


class ExitCode(IntEnum):
    """Exit status of every command."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    INTERRUPTED = 75
    """EX_TEMPFAIL: a checkpoint was written; start the same command again to go on."""


class DglError(Exception):
    """Base of all errors whose message is meant for the user; commands end with `exit_code`.

    Attributes:
        is_on_all_ranks: all ranks raise it together, so one of them says it.
    """

    exit_code = ExitCode.FAILED
    is_on_all_ranks = False

    def on_all_ranks(self) -> Self:
        """This error, marked as one that all ranks raise together."""
        self.is_on_all_ranks = True
        return self


class ConfigError(DglError):
    """A config file, an override or an argument is wrong."""

    exit_code = ExitCode.USAGE


class DataError(DglError):
    """Videos, annotations or shards cannot be used."""


class CheckpointError(DglError):
    """A checkpoint, prompts file or weights file is damaged or belongs to another model."""


class Interrupted(DglError):
    """The run was asked to stop and can be resumed."""

    exit_code = ExitCode.INTERRUPTED
