"""Files and folders that are whole or absent, and names that stay inside their folder."""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from dgl_scale.errors import DataError, DglError

_HASH_BLOCK_BYTES = 1 << 20


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Write a binary file that appears under `path` only when whole and on disk.

    The bytes go to a temporary name in the same folder; on success it is synced and renamed over
    `path`, on any exception it is removed. An OSError (disk full, read-only) becomes one line.

    Raises:
        DglError: the folder cannot be written or the disk is full.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        with os.fdopen(descriptor, "wb") as stream:
            # mkstemp makes private files; shards and results are for the group, as the umask says.
            os.fchmod(stream.fileno(), 0o666 & ~_umask())
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
        temporary = None
        sync_folder(path.parent)
    except OSError as error:
        raise DglError(f"cannot write {path}: {error.strerror or error}; free some space or choose another folder") from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)


class LockedError(DglError):
    """Another process holds the lock."""


@contextmanager
def exclusive_lock(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold a lock file while the block runs, as its only holder on all machines that share its disk.

    The system frees the lock of a process that dies. The file is removed at the end.

    Args:
        path: of the lock file.
        wait: until it is free.

    Raises:
        LockedError: another process holds it, and `wait` is False.
        DglError: it cannot be made there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _lock(path, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError as error:
        raise LockedError(f"{path} is held by another process") from error
    except OSError as error:
        raise DglError(f"cannot lock {path}: {error.strerror or error}; choose a folder on a disk with file locks") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _lock(path: Path, operation: int) -> int:
    while True:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, operation)
            # The holder before may have removed the file that this process had opened: then that lock is worth nothing.
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_file(path) as stream:
        stream.write(text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, keys in the given order, two spaces, trailing newline.

    Raises:
        ValueError: `value` holds a NaN or infinity, which JSON does not have.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DataError: the file is missing, unreadable or not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON: {error}") from error


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Fill a folder that appears under `path` only when whole.

    Yields a temporary folder beside it. On success every file in it is synced and it is renamed; on
    any exception it is removed. An existing `path` is an error: complete folders are never replaced.

    Raises:
        DglError: `path` exists, or it cannot be written.
    """
    path = Path(path)
    if path.exists():
        raise DglError(f"{path} exists already and is never overwritten; remove it or choose another name")
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
        os.chmod(temporary, 0o777 & ~_umask())
        yield temporary
        for file in sorted(temporary.rglob("*")):
            if file.is_file():
                with open(file, "rb") as stream:
                    os.fsync(stream.fileno())
        sync_folder(temporary)
        os.rename(temporary, path)
        temporary = None
        sync_folder(path.parent)
    except OSError as error:
        raise DglError(f"cannot write {path}: {error.strerror or error}; free some space or choose another folder") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """Fill a folder that takes the place of that at `path` when whole, if there is one. Nobody else may be writing it.

    Raises:
        DglError: it cannot be written; the one before is then still there.
    """
    fresh, old = (path.with_name(f".{path.name}{suffix}") for suffix in (".new", ".old"))
    for left in (fresh, old):
        shutil.rmtree(left, ignore_errors=True)
    with atomic_folder(fresh) as temporary:
        yield temporary
    if path.exists():
        os.rename(path, old)
    os.rename(fresh, path)
    shutil.rmtree(old, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(_HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def json_sha256(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form (sorted keys, no spaces)."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()).hexdigest()


def path_inside(folder: Path, name: str) -> Path:
    """The path of `name` below `folder`.

    Raises:
        DataError: `name` is absolute or leads out of `folder` (`..`, or a link that points outside).
    """
    root = Path(folder).resolve()
    path = (root / name).resolve()
    if os.path.isabs(name) or not path.is_relative_to(root):
        raise DataError(f"path {name!r} leads out of {folder}; paths must stay inside their folder")
    return path


def _umask() -> int:
    # The only portable way to read the umask is to set it.
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
