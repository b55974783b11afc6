"""Encoded features on disk, each under the digest of all that decides them; read back only if every bit is right.

FOLDER/ab/ab34….safetensors     tensors and annotations of one half (frames or captions) of one unit, see `feature_keys`

A store may be shared by evaluations that run at the same time, on several machines too: files appear whole, and
equal names mean equal content.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from dgl_scale.errors import DglError
from dgl_scale.files import atomic_file
from dgl_scale.telemetry import say

_SUFFIX = ".safetensors"
_HEADER_BYTES = 8


@dataclass(frozen=True)
class Entry:
    """What the store holds under a key.

    Attributes:
        tensors: by name.
        notes: JSON values that belong to them.
    """

    tensors: dict[str, Tensor]
    notes: dict[str, Any]


class FeatureStore:
    """A folder of entries.

    Args:
        folder: is made when something is written.
        limit_bytes: what `trim` leaves at most.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._is_writable = True

    def read(self, key: str) -> Entry | None:
        """The entry of a key; None where there is none, or a damaged one, which is removed and named in a line."""
        path = self._path(key)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        entry = _decode(key, content)
        if entry is None:
            say(f"features {path} are damaged; they are encoded again")
            _remove(path)
            return None
        # Least recently used goes first; a store on a read-only disk has no trimming to serve.
        with contextlib.suppress(OSError):
            os.utime(path)
        return entry

    def write(self, key: str, entry: Entry) -> None:
        """Keep an entry. A store that cannot be written says so once and keeps nothing more: results do not depend on it."""
        if not self._is_writable:
            return
        try:
            with atomic_file(self._path(key)) as stream:
                stream.write(_encode(key, entry))
        except DglError as error:
            self._is_writable = False
            say(f"features are not kept: {error}")

    def trim(self) -> int:
        """Remove what was used least recently until the limit is met; returns the bytes removed."""
        files = sorted(self._files())
        excess = sum(size for _, size, _ in files) - self._limit_bytes
        removed = 0
        for _, size, path in files:
            if removed >= excess:
                break
            _remove(path)
            removed += size
        return removed

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}{_SUFFIX}"

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """Time of last use, size and path of every file, those that a killed writer left too."""
        for path in self._folder.glob("[0-9a-f][0-9a-f]/*"):
            # Another evaluation may be trimming too.
            with contextlib.suppress(OSError):
                found = path.stat()
                yield found.st_mtime, found.st_size, path


def _encode(key: str, entry: Entry) -> bytes:
    notes = json.dumps(entry.notes, sort_keys=True, ensure_ascii=False)
    tensors = {name: tensor.contiguous() for name, tensor in entry.tensors.items()}
    return save(tensors, {"notes": notes, "sha256": _digest(key, tensors, notes)})


def _decode(key: str, content: bytes) -> Entry | None:
    """None unless the content is what `_encode` wrote under this key, to the bit."""
    try:
        tensors = load(content)
        length = int.from_bytes(content[:_HEADER_BYTES], "little")
        metadata = json.loads(content[_HEADER_BYTES : _HEADER_BYTES + length])["__metadata__"]
        if metadata["sha256"] == _digest(key, tensors, metadata["notes"]):
            return Entry(tensors, json.loads(metadata["notes"]))
    except (SafetensorError, KeyError, TypeError, ValueError):
        pass
    return None


def _digest(key: str, tensors: Mapping[str, Tensor], notes: str) -> str:
    digest = hashlib.sha256(json.dumps([key, notes]).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
