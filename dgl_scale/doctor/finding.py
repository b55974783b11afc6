"""What a check found, and what to do about it."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """A line of the table.

    Attributes:
        subject: what was looked at.
        status: `fail` keeps a run from working, `warn` may.
        found: what is there, with its figures.
        advice: what to do; empty where all is well.
    """

    subject: str
    status: Status
    found: str
    advice: str = ""
