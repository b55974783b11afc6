"""Where builds read and write: local folders, object storage (s3://, gs://) and web servers.

Local files are used in place. Whatever is remote passes through one scratch file that has no name, so that
not even a killed process leaves one: fetched and checked before anything reads it, or written whole and
then sent and checked. A transfer that was cut, slow or corrupt is repeated after a pause.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import quote

from dgl_scale.errors import DataError, DglError
from dgl_scale.files import atomic_file, read_json, write_json
from dgl_scale.storage.clients import CorruptError, NotThereError, StorageError, TooLargeError, explain, file_system, upload
from dgl_scale.storage.scratch import scratch_error, scratch_file
from dgl_scale.storage.urls import Location, is_url, public_url, scheme_of, scrub
from dgl_scale.storage_config import StorageConfig

_BLOCK_BYTES = 16 << 20
_PART_BYTES = 64 << 20
_SLOWEST_UPLOAD_BYTES_PER_S = 100_000
_FIRST_PAUSE_S = 0.2
_MAX_PAUSE_S = 15.0
_NO_BUCKET = "specified bucket"
_T = TypeVar("_T")


class Storage:
    """Reads and writes whole files anywhere. Holds no connection, so it goes to other processes as it is.

    Args:
        config: scratch folder, limits and patience.
    """

    def __init__(self, config: StorageConfig | None = None) -> None:
        self._config = config or StorageConfig()

    @contextlib.contextmanager
    def local_copy(self, location: Location, max_bytes: int | None = None) -> Iterator[Path]:
        """A path under which the file can be read while the block runs: its own, or that of a checked copy.

        Raises:
            NotThereError: a URL at which there is no file.
            StorageError: the server cannot be reached or refuses, or the bytes never arrived whole.
            TooLargeError: more than `max_bytes`.
        """
        if not is_url(location):
            yield Path(location)
            return
        with self._scratch_file() as (stream, path):
            self._fetch(str(location), stream, max_bytes)
            yield path

    def fetch(self, url: str, stream: BinaryIO, *, size: int, sha256: str, progress: Callable[[], None]) -> None:
        """Fill `stream`, from its beginning, with a remote file whose size and SHA-256 are known.

        Args:
            progress: called whenever bytes have arrived.

        Raises:
            NotThereError, StorageError: as `local_copy`.
            DataError: the server keeps sending a file of other bytes.
        """
        received: list[str] = []

        def fetch(system: Any, path: str) -> None:
            stream.seek(0)
            target = _Target(stream, size, hashlib.sha256(), progress)
            try:
                _fetch_once(system, path, target)
                found = target.digest.hexdigest()
            except TooLargeError:
                found = "more"
            if found == sha256:
                return
            if found in received:
                raise DataError(f"{public_url(url)} is not the file of {size:,} bytes that its index lists; were only some files replaced?")
            received.append(found)
            raise CorruptError("the bytes arrived corrupt")

        self._repeat(url, fetch)

    def read_range(self, url: str, start: int, size: int) -> bytes:
        """A part of a remote file; not checked but for its length.

        Raises:
            NotThereError, StorageError: as `local_copy`; also where a web server sends no parts of files.
        """

        def read(system: Any, path: str) -> bytes:
            content: bytes = system.cat_file(_quoted(path), start=start, end=start + size)
            if len(content) > size:
                raise StorageError(f"{public_url(url)}: the server sends no parts of files; set data.cache to fetch them whole")
            if len(content) < size:
                raise CorruptError("the bytes arrived cut short")
            return content

        return self._repeat(url, read)

    @contextlib.contextmanager
    def output_file(self, location: Location) -> Iterator[BinaryIO]:
        """Write a binary file that appears under its name only when whole; on any exception it does not appear.

        Raises:
            DglError: it cannot be written.
        """
        if not is_url(location):
            with atomic_file(Path(location)) as stream:
                yield stream
            return
        with self._scratch_file() as (stream, path):
            yield stream
            stream.flush()
            self.send(path, str(location))

    def read_json(self, location: Location) -> Any:
        """Read a JSON file.

        Raises:
            DataError: missing, unreadable or not JSON.
        """
        if not is_url(location):
            return read_json(Path(location))
        try:
            with self.local_copy(location) as path:
                return json.loads(path.read_bytes())
        except ValueError as error:
            raise DataError(f"{public_url(location)} is not valid JSON: {error}") from None

    def read_json_if_there(self, location: Location) -> Any:
        """As `read_json`; None if there is no such file."""
        return None if self.size(location) is None else self.read_json(location)

    def write_json(self, location: Location, value: Any) -> None:
        """Write JSON as `dgl_scale.files.write_json` does."""
        if not is_url(location):
            write_json(Path(location), value)
            return
        with self.output_file(location) as stream:
            stream.write((json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())

    def create(self, url: str, content: bytes) -> bool:
        """Store a small remote file unless there is one already, of which the server alone decides.

        Returns:
            whether it is a new one; False too where the server had stored it, but its answer was lost.

        Raises:
            StorageError: the server cannot be reached or refuses.
        """

        def create(system: Any, path: str) -> bool:
            try:
                upload(system, system._pipe_file, path, content, mode="create", limit_s=self._upload_limit_s(len(content)))
            except FileExistsError:
                return False
            return True

        return self._repeat(url, create)

    def size(self, location: Location) -> int | None:
        """Bytes of a file; None if there is none.

        Raises:
            StorageError: the server cannot be reached or refuses.
        """
        if not is_url(location):
            path = Path(location)
            return path.stat().st_size if path.is_file() else None
        try:
            found = self._repeat(str(location), lambda system, path: system.info(path))
        except NotThereError:
            return None
        return int(found["size"]) if found["type"] == "file" else None

    def names(self, location: Location) -> list[str]:
        """Names of the files and folders in a folder, sorted; none if it does not exist.

        Raises:
            StorageError: the server cannot be reached or refuses.
        """
        if not is_url(location):
            return sorted(os.listdir(location)) if Path(location).is_dir() else []
        try:
            found = self._repeat(str(location), lambda system, path: system.ls(path, detail=False, refresh=True))
        except NotThereError:
            return []
        return sorted(name.rstrip("/").rpartition("/")[2] for name in found)

    def remove(self, location: Location) -> None:
        """Remove a file, if it is there.

        Raises:
            StorageError: it cannot be removed.
        """
        if not is_url(location):
            Path(location).unlink(missing_ok=True)
            return
        with contextlib.suppress(NotThereError):
            self._repeat(str(location), lambda system, path: system.rm_file(path))

    def check_readable(self, location: Location) -> None:
        """Fail at once where every read would: unknown bucket, wrong credentials, no server.

        Web servers list no folders, so nothing is asked of them.

        Raises:
            StorageError: as said.
        """
        if not is_url(location) or scheme_of(location) in {"http", "https"}:
            return
        bucket = f"{scheme_of(location)}://{str(location).partition('://')[2].partition('/')[0]}"
        try:
            self._repeat(bucket, lambda system, path: system.info(path))
        except NotThereError:
            raise StorageError(f"{bucket}: no such bucket; create it or name another") from None

    @contextlib.contextmanager
    def _scratch_file(self) -> Iterator[tuple[BinaryIO, Path]]:
        try:
            with scratch_file(self._config.scratch) as stream:
                # Other processes of this user reach the nameless file through this one's descriptor.
                yield stream, Path(f"/proc/{os.getpid()}/fd/{stream.fileno()}")
        except OSError as error:
            # On a full disk closing fails too, for what is still in the buffer.
            raise scratch_error(error) from error

    def _fetch(self, url: str, stream: BinaryIO, max_bytes: int | None) -> None:
        digests: list[str] = []

        def fetch(system: Any, path: str) -> None:
            stream.seek(0)
            stream.truncate()
            target = _Target(stream, max_bytes, hashlib.md5(usedforsecurity=False))
            expected = _fetch_once(system, path, target)
            stream.flush()
            md5 = target.digest.hexdigest()
            # Without a digest to compare with, and without TLS, the same bytes twice are the proof. An object
            # store's ETag may look like an MD5 and be none (encryption with a managed key).
            if md5 not in (expected, *digests[-1:]) and not (expected is None and url.startswith("https://")):
                digests.append(md5)
                raise CorruptError("the bytes arrived corrupt")

        self._repeat(url, fetch)

    def send(self, source: Path, url: str) -> None:
        """Store a copy of a local file under a URL, and check it. It appears only whole.

        Raises:
            StorageError: the server cannot be reached or refuses, or never had the bytes right.
            DataError: the local file cannot be read.
        """
        try:
            size, digests = _object_digests(source)
        except OSError as error:
            raise DataError(f"cannot read {source}: {error.strerror or error}") from error

        def send(system: Any, path: str) -> None:
            try:
                upload(system, system._put_file, str(source), path, chunksize=_PART_BYTES, limit_s=self._upload_limit_s(size))
                found = system.info(path, refresh=True)
            except FileNotFoundError as error:
                if _NO_BUCKET in str(error):
                    raise
                # The name of an upload in parts was damaged on its way, or that of the object.
                raise CorruptError("the bytes were stored corrupt") from None
            if found["size"] == size and _etag(found) in digests:
                return
            sha256, received = hashlib.sha256(), hashlib.sha256()
            with open(source, "rb") as stream:
                while block := stream.read(_BLOCK_BYTES):
                    sha256.update(block)
            for start in range(0, size, _BLOCK_BYTES):
                received.update(system.cat_file(path, start=start, end=min(start + _BLOCK_BYTES, size)))
            if found["size"] != size or received.digest() != sha256.digest():
                raise CorruptError("the bytes were stored corrupt")

        self._repeat(url, send)

    def _upload_limit_s(self, size: int) -> float:
        # How fast it goes is not seen from here, so a network is bad only if it is far slower than any that is of use.
        return self._config.timeout_s + size / _SLOWEST_UPLOAD_BYTES_PER_S

    def _repeat(self, url: str, work: Callable[[Any, str], _T]) -> _T:
        """`work(file system, path)`, again after a pause while it fails in a way that may pass.

        Raises:
            NotThereError, StorageError, TooLargeError: at once, or after the last attempt.
        """
        for attempt in range(1, self._config.attempts + 1):
            try:
                return work(file_system(scheme_of(url), self._config.timeout_s), url)
            except (TooLargeError, DglError):
                raise
            except FileNotFoundError as error:
                bucket = _NO_BUCKET in str(error)
                what = f"{scrub(str(error))}; create it or name another" if bucket else "no such file"
                # `from None`: an exception of the client may quote the address with its credentials.
                raise (StorageError if bucket else NotThereError)(f"{public_url(url)}: {what}") from None
            except Exception as error:
                reason, final = explain(error)
                if final or attempt == self._config.attempts:
                    tries = "" if final else f" ({attempt} attempts)"
                    raise StorageError(f"{public_url(url)}: {reason}{tries}") from None
            time.sleep(min(_FIRST_PAUSE_S * 2 ** (attempt - 1), _MAX_PAUSE_S) * random.uniform(0.5, 1.0))
        raise AssertionError("unreachable")


class _Target:
    """A file that is written once from its beginning, hashed, and bounded."""

    def __init__(self, stream: BinaryIO, max_bytes: int | None, digest: Any, progress: Callable[[], None] = lambda: None) -> None:
        self._stream = stream
        self._max_bytes = max_bytes
        self._progress = progress
        self.size = 0
        self.digest = digest

    # fsspec takes for a file what has these three.
    def read(self) -> bytes:
        raise NotImplementedError

    def tell(self) -> int:
        return self.size

    def close(self) -> None:
        raise NotImplementedError

    def write(self, content: bytes) -> int:
        self.check(self.size + len(content))
        self.size += len(content)
        self.digest.update(content)
        self._progress()
        try:
            return self._stream.write(content)
        except OSError as error:
            raise scratch_error(error) from error

    def check(self, size: int | None) -> None:
        if size is not None and self._max_bytes is not None and size > self._max_bytes:
            raise TooLargeError


def _fetch_once(system: Any, path: str, target: _Target) -> str | None:
    """Fill `target`; returns the MD5 that the server states, if it does."""
    if scheme_of(path) in {"http", "https"}:
        from fsspec.callbacks import Callback

        callback = Callback()
        system.get_file(_quoted(path), target, callback=callback)
        if callback.size is not None and target.size != callback.size:
            raise CorruptError("the bytes arrived corrupt")
        return None
    found = system.info(path, refresh=True)
    if found["type"] != "file":
        raise FileNotFoundError(path)
    target.check(found["size"])
    while target.size < found["size"]:
        block = system.cat_file(path, start=target.size, end=min(target.size + _BLOCK_BYTES, found["size"]))
        if not block:
            raise CorruptError("the bytes arrived corrupt")
        target.write(block)
    if target.size != found["size"]:
        raise CorruptError("the bytes arrived corrupt")
    return _etag(found)


def _quoted(url: str) -> str:
    # What is quoted stays so, to the letter, as a signature covers it.
    return quote(url, safe="%/:=&?~#+!$,;'@()*[]") if scheme_of(url) in {"http", "https"} else url


def _etag(found: dict[str, Any]) -> str | None:
    etag = str(found.get("ETag") or found.get("etag") or "").strip('"')
    return etag or None


def _object_digests(path: Path) -> tuple[int, set[str]]:
    """Size, and the ETags that S3 gives an object sent whole or in parts of `_PART_BYTES`."""
    whole, parts, size = hashlib.md5(usedforsecurity=False), [], 0
    with open(path, "rb") as stream:
        while block := stream.read(_PART_BYTES):
            size += len(block)
            whole.update(block)
            parts.append(hashlib.md5(block, usedforsecurity=False).digest())
    return size, {whole.hexdigest(), f"{hashlib.md5(b''.join(parts), usedforsecurity=False).hexdigest()}-{len(parts)}"}
