"""Whole files of remote splits on this machine's disk, shared by all its processes.

A file has its final name only when it is whole. Its name is that of its content, so it is never out of date. Who reads
a file holds a shared lock on it, who fills one an exclusive lock, and only what can be locked exclusively is evicted;
locks end with their process, so a killed one leaves nothing that others wait for.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

from dgl_scale.config import CacheConfig
from dgl_scale.errors import DglError

_UNFINISHED = ".part"
_LOCK = ".lock"
_DIGEST_BYTES = hashlib.sha256().digest_size


class DiskCache:
    """Files of at most `max_gib` in all; the least recently used that nobody is reading make room.

    Files that are being read at the moment stay, even if they are more than that.
    """

    def __init__(self, config: CacheConfig) -> None:
        self._folder = Path(config.folder).expanduser()
        self._max_bytes = int(config.max_gib * 2**30)

    def open(self, name: str, size: int, fill: Callable[[BinaryIO], object]) -> int:
        """A descriptor of a file, which stays in the cache until it is closed; filled first if it is not there.

        Waits while another process fills the same file.

        Args:
            size: in bytes; a file of another size is filled again.
            fill: writes the `size` bytes; what it raises is passed on, and the file does not appear.

        Raises:
            DglError: the folder cannot be written, its disk is full, or the file is larger than the cache.
        """
        if size > self._max_bytes:
            raise DglError(
                f"data.cache.max_gib {self._max_bytes / 2**30:g} is less than one shard ({size / 2**30:.2f} GiB); "
                "raise it, or set data.cache to null to read single samples"
            )
        try:
            while (descriptor := self._open_whole(name, size)) is None:
                self._fill(name, size, fill)
        except OSError as error:
            raise self._error(error) from error
        return descriptor

    def discard(self, name: str, descriptor: int) -> None:
        """Remove a file that turned out to be damaged, unless it was replaced since; closes the descriptor."""
        path = self._folder / name
        if _is_at(path, descriptor):
            path.unlink(missing_ok=True)
        os.close(descriptor)

    def recall(self, name: str) -> bytes | None:
        """What `remember` keeps under a name; None if it is not there, or damaged."""
        path = self._folder / name
        try:
            content = path.read_bytes()
        except OSError:
            return None
        digest, content = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if hashlib.sha256(content).digest() == digest:
            return content
        path.unlink(missing_ok=True)
        return None

    def remember(self, name: str, content: bytes) -> None:
        """Keep something small under a name that stands for this content and no other.

        Raises:
            DglError: as `open`.
        """
        digest = hashlib.sha256(content).digest()
        os.close(self.open(name, len(content) + _DIGEST_BYTES, lambda stream: stream.write(digest + content)))

    def _open_whole(self, name: str, size: int) -> int | None:
        path = self._folder / name
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        if os.fstat(descriptor).st_size != size or not _is_at(path, descriptor):
            self.discard(name, descriptor)
            return None
        with contextlib.suppress(PermissionError):  # another user's file; then it ages
            os.utime(descriptor)
        return descriptor

    def _fill(self, name: str, size: int, fill: Callable[[BinaryIO], object]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        path, part = self._folder / name, self._folder / f"{name}{_UNFINISHED}"
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        with os.fdopen(descriptor, "r+b") as stream:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if not _is_at(part, descriptor):
                return  # whoever had the lock has finished or given up
            if path.exists():
                part.unlink()
                return
            try:
                self._reserve(descriptor, size)
                fill(cast(BinaryIO, _Reserved(stream, self._error)))
                stream.flush()
                # Not synced: what a power failure leaves is found by its hash and fetched again.
                os.replace(part, path)
            except BaseException:
                part.unlink(missing_ok=True)
                raise

    def _reserve(self, descriptor: int, size: int) -> None:
        """Make room, and take it, so that processes that fill at the same time do not count on the same space."""
        with self._only_one():
            files = self._least_recent_first()
            total = sum(found.st_size for _, found in files) + size
            while files and total > self._max_bytes:
                total -= _evict(*files.pop(0))
            while True:
                try:
                    os.ftruncate(descriptor, 0)
                    os.posix_fallocate(descriptor, 0, size)
                    return
                except OSError as error:
                    if error.errno != errno.ENOSPC or not files:
                        raise
                    _evict(*files.pop(0))

    def _least_recent_first(self) -> list[tuple[str, os.stat_result]]:
        files = []
        for entry in os.scandir(self._folder):
            with contextlib.suppress(FileNotFoundError):
                if entry.name != _LOCK:
                    files.append((entry.path, entry.stat()))
        return sorted(files, key=lambda file: file[1].st_mtime_ns)

    @contextlib.contextmanager
    def _only_one(self) -> Iterator[None]:
        descriptor = os.open(self._folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _error(self, error: OSError) -> DglError:
        hint = "free some space, lower data.cache.max_gib" if error.errno == errno.ENOSPC else "free it"
        return DglError(f"cannot use data.cache.folder {self._folder}: {error.strerror or error}; {hint}, or choose another folder")


class _Reserved:
    """A stream whose OSErrors are told as the cache's own, not as those of a transfer."""

    def __init__(self, stream: BinaryIO, explain: Callable[[OSError], DglError]) -> None:
        self._stream = stream
        self._explain = explain

    def seek(self, offset: int) -> int:
        return self._stream.seek(offset)

    def write(self, content: bytes) -> int:
        try:
            return self._stream.write(content)
        except OSError as error:
            raise self._explain(error) from error


def _is_at(path: Path | str, descriptor: int) -> bool:
    """Whether an open file still has its name."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _evict(path: str, found: os.stat_result) -> int:
    """Remove a file that nobody holds; returns the bytes won."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError):
        return 0
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_at(path, descriptor):
            return 0
        os.unlink(path)
        return found.st_size
    except (BlockingIOError, FileNotFoundError, PermissionError):
        return 0
    finally:
        os.close(descriptor)
