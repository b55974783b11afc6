"""Why a video is no sample: the statuses of the ledger, and the exception that carries one."""

from enum import StrEnum

_MAX_MESSAGE_CHARS = 300


class Status(StrEnum):
    """The `status` of a row of a shard's Parquet. Only `ok` rows have a sample in the tar."""

    OK = "ok"
    MISSING = "missing"
    """No file under the annotated path."""
    BAD_PATH = "bad_path"
    """The annotated path leads out of the videos folder, or is a URL of a kind that is not read."""
    UNREACHABLE = "unreachable"
    """A remote file did not arrive whole, however often it was asked for."""
    NO_CAPTION = "no_caption"
    """No caption, or only empty ones."""
    BAD_CAPTION = "bad_caption"
    """A caption is no text."""
    BAD_SEGMENT = "bad_segment"
    """Start or end is no number, negative, or in the wrong order."""
    UNREADABLE = "unreadable"
    """No decoder can read the file, or it has no video stream."""
    TRUNCATED = "truncated"
    """The file ends before the video that its container declares."""
    EMPTY = "empty"
    """Zero bytes, zero frames, or no frame in the annotated segment."""
    TIMEOUT = "timeout"
    """Decoding took longer than `decoder.timeout_s`."""
    CRASHED = "crashed"
    """The decoder killed its process."""
    TOO_LARGE = "too_large"
    """Decoding needs more than `decoder.memory_limit_gib`, or gives too many frames for a sample."""


class SampleFailure(Exception):
    """A video cannot become a sample; it becomes a row with this status and message.

    Attributes:
        status: any but `ok`.
        message: one line, the same on every machine (no absolute paths, no process ids).
    """

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = one_line(message)


def one_line(text: str) -> str:
    """`text` without line breaks, at most 300 characters."""
    line = " ".join(text.split())
    return line if len(line) <= _MAX_MESSAGE_CHARS else line[: _MAX_MESSAGE_CHARS - 1] + "…"
