"""The sample format of a shard: names of tar members, metadata, encoding, checks.

A sample is `<key>.000.jpg`, `<key>.001.jpg`, …, `<key>.json`, contiguous in its tar. Shared with
`shard_tools`; imports nothing heavier than the standard library.
"""

import io
import json
import re
import tarfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, cast

from dgl_scale.errors import DataError

_SAFE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_OCTAL = re.compile(rb"[0-7]+")
MAX_FRAMES = 100_000


@dataclass(frozen=True)
class SampleMetadata:
    """The `<key>.json` of a sample.

    Attributes:
        start: where the segment of the source begins, in seconds.
        end: where it ends; null for the end of the source.
        duration: length of the segment, in seconds.
        fps: frame rate of the source.
        frame_times: of each stored frame, in seconds from the start of the source.
        width: of the stored frames, in pixels.
        height: likewise.
        source: the path or URL as annotated, never with credentials.
        extra: whatever else the annotation says of the video (JSON values).
    """

    video_id: str
    captions: list[str]
    split: str
    start: float
    end: float | None
    duration: float
    fps: float
    frame_times: list[float]
    width: int
    height: int
    source: str
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """A video of a shard: JPEG bytes of its frames, in order, and its metadata."""

    key: str
    frames: list[bytes]
    metadata: SampleMetadata


def check_key(key: str) -> None:
    """Refuse a key that a tar reader would cut or misplace.

    WebDataset ends a key at the first dot of the file name and treats slashes as folders.

    Raises:
        DataError: a character other than ASCII letters, digits, `_` and `-`, or an empty key.
    """
    if not _SAFE_KEY.fullmatch(key):
        raise DataError(f"sample key {key!r} may hold only ASCII letters, digits, '_' and '-'")


def encode_members(sample: Sample) -> list[tuple[str, bytes]]:
    """(name, content) of each tar member of a sample, in the order they must be written."""
    check_key(sample.key)
    if len(sample.frames) > MAX_FRAMES:
        raise DataError(f"sample {sample.key} has {len(sample.frames)} frames, more than {MAX_FRAMES}")
    digits = max(3, len(str(len(sample.frames) - 1)))
    members = [(f"{sample.key}.{i:0{digits}d}.jpg", frame) for i, frame in enumerate(sample.frames)]
    text = json.dumps(asdict(sample.metadata), ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return [*members, (f"{sample.key}.json", text.encode("utf-8"))]


def decode_members(members: Iterable[tuple[str, bytes]]) -> Sample:
    """The sample made of these tar members.

    Raises:
        DataError: members of two keys, no metadata, no frames, or metadata that is not as stated.
    """
    frames: list[bytes] = []
    metadata: bytes | None = None
    keys = set()
    for name, content in members:
        key, _, suffix = name.partition(".")
        keys.add(key)
        if suffix == "json":
            metadata = content
        elif suffix.endswith(".jpg"):
            frames.append(content)
    if len(keys) != 1:
        raise DataError(f"expected the members of one sample, got {sorted(keys)[:3]}")
    key = keys.pop()
    if metadata is None or not frames:
        raise DataError(f"sample {key} has no {'frames' if metadata else 'metadata'}; its shard is damaged, build it again")
    return Sample(key, frames, decode_metadata(key, bytes(metadata)))


def decode_metadata(key: str, content: bytes) -> SampleMetadata:
    """The content of `<key>.json`.

    Raises:
        DataError: it is not as stated.
    """
    try:
        return SampleMetadata(**json.loads(content))
    except (TypeError, ValueError) as error:
        raise DataError(f"metadata of sample {key} is not as expected: {error}") from error


def decode_tar_range(content: bytes | memoryview) -> Sample:
    """The sample in a contiguous byte range of a tar file (headers and contents, no end mark).

    Of a memoryview the frames are views too, as valid as it is; copying them would take as long as hashing them.

    Raises:
        DataError: the bytes are not whole tar members of one sample.
    """
    members = _plain_members(content)
    if members is not None:
        return decode_members(members)
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
            return decode_members([(m.name, _read_member(tar, m)) for m in tar])
    except tarfile.TarError as error:
        raise DataError(f"damaged tar data: {error}") from error


def _plain_members(content: bytes | memoryview) -> list[tuple[str, bytes]] | None:
    """The members, if all are plain files with short names, as our writer makes them; else None.

    Eight times as fast as tarfile, whose headers would cost more than decoding the chosen frames.
    """
    members = []
    start = 0
    while start < len(content):
        header = bytes(content[start : start + tarfile.BLOCKSIZE])
        name, _, _ = header[:100].partition(b"\0")
        size_text, kind, prefix = header[124:136].rstrip(b"\0 "), header[156:157], header[345:346]
        if kind not in (tarfile.REGTYPE, tarfile.AREGTYPE) or prefix != b"\0" or not name.isascii() or not _OCTAL.fullmatch(size_text):
            return None
        data = start + tarfile.BLOCKSIZE
        end = data + int(size_text, 8)
        start = data + -(-(end - data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        if start > len(content):
            return None
        members.append((name.decode("ascii"), cast(bytes, content[data:end])))
    return members


def _read_member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = tar.extractfile(member)
    content = stream.read() if stream is not None else b""
    if len(content) != member.size:
        raise DataError(f"member {member.name} is cut short: {len(content)} of {member.size} bytes")
    return content
