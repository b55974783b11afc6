"""Where builds read and write: local folders, object storage (s3://, gs://) and web servers. The door of fsspec.

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
from dgl_scale.storage.scratch import scratch_error, scratch_file
from dgl_scale.storage.urls import Location, is_url, public_url, scheme_of, scrub
from dgl_scale.storage_config import StorageConfig

_BLOCK_BYTES = 16 << 20
_PART_BYTES = 64 << 20
_FIRST_PAUSE_S = 0.2
_MAX_PAUSE_S = 15.0
_MISSING_EXTRAS = {"s3": "s3fs (pip install 'dgl-scale[s3]')", "gs": "gcsfs (pip install gcsfs)"}
_UNREACHABLE = {
    "EndpointConnectionError",
    "ClientConnectorError",
    "ClientConnectorDNSError",
    "ConnectTimeoutError",
    "ConnectionTimeoutError",
}
_NO_BUCKET = "specified bucket"
_T = TypeVar("_T")


class TooLargeError(Exception):
    """A remote file is larger than it may be."""


class StorageError(DglError):
    """A place cannot be read or written; the message names it without credentials."""


class NotThereError(StorageError):
    """The server answers that there is no such file."""


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
            self._send(path, str(location))

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

    def write_json(self, location: Location, value: Any) -> None:
        """Write JSON as `dgl_scale.files.write_json` does."""
        if not is_url(location):
            write_json(Path(location), value)
            return
        with self.output_file(location) as stream:
            stream.write((json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())

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
            target = _Target(stream, max_bytes)
            expected = _fetch_once(system, path, target)
            stream.flush()
            md5 = target.md5.hexdigest()
            # Without a digest to compare with, and without TLS, the same bytes twice are the proof. An object
            # store's ETag may look like an MD5 and be none (encryption with a managed key).
            if md5 not in (expected, *digests[-1:]) and not (expected is None and url.startswith("https://")):
                digests.append(md5)
                raise _CorruptError("the bytes arrived corrupt")

        self._repeat(url, fetch)

    def _send(self, source: Path, url: str) -> None:
        size, digests = _object_digests(source)

        def send(system: Any, path: str) -> None:
            try:
                system.put_file(str(source), path, chunksize=_PART_BYTES)
                found = system.info(path, refresh=True)
            except FileNotFoundError as error:
                if _NO_BUCKET in str(error):
                    raise
                # The name of an upload in parts was damaged on its way, or that of the object.
                raise _CorruptError("the bytes were stored corrupt") from None
            if found["size"] == size and _etag(found) in digests:
                return
            sha256, received = hashlib.sha256(), hashlib.sha256()
            with open(source, "rb") as stream:
                while block := stream.read(_BLOCK_BYTES):
                    sha256.update(block)
            for start in range(0, size, _BLOCK_BYTES):
                received.update(system.cat_file(path, start=start, end=min(start + _BLOCK_BYTES, size)))
            if found["size"] != size or received.digest() != sha256.digest():
                raise _CorruptError("the bytes were stored corrupt")

        self._repeat(url, send)

    def _repeat(self, url: str, work: Callable[[Any, str], _T]) -> _T:
        """`work(file system, path)`, again after a pause while it fails in a way that may pass.

        Raises:
            NotThereError, StorageError, TooLargeError: at once, or after the last attempt.
        """
        for attempt in range(1, self._config.attempts + 1):
            try:
                return work(_file_system(scheme_of(url), self._config.timeout_s), url)
            except (TooLargeError, DglError):
                raise
            except FileNotFoundError as error:
                bucket = _NO_BUCKET in str(error)
                what = f"{scrub(str(error))}; create it or name another" if bucket else "no such file"
                # `from None`: an exception of the client may quote the address with its credentials.
                raise (StorageError if bucket else NotThereError)(f"{public_url(url)}: {what}") from None
            except Exception as error:
                reason, final = _explain(error)
                if final or attempt == self._config.attempts:
                    tries = "" if final else f" ({attempt} attempts)"
                    raise StorageError(f"{public_url(url)}: {reason}{tries}") from None
            time.sleep(min(_FIRST_PAUSE_S * 2 ** (attempt - 1), _MAX_PAUSE_S) * random.uniform(0.5, 1.0))
        raise AssertionError("unreachable")


class _CorruptError(Exception):
    """Not the bytes that were sent."""


class _Target:
    """A file that is written once from its beginning, hashed, and bounded."""

    def __init__(self, stream: BinaryIO, max_bytes: int | None) -> None:
        self._stream = stream
        self._max_bytes = max_bytes
        self.size = 0
        self.md5 = hashlib.md5(usedforsecurity=False)

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
        self.md5.update(content)
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
        # What is quoted stays so, to the letter, as a signature covers it.
        system.get_file(quote(path, safe="%/:=&?~#+!$,;'@()*[]"), target, callback=callback)
        if callback.size is not None and target.size != callback.size:
            raise _CorruptError("the bytes arrived corrupt")
        return None
    found = system.info(path, refresh=True)
    if found["type"] != "file":
        raise FileNotFoundError(path)
    target.check(found["size"])
    while target.size < found["size"]:
        block = system.cat_file(path, start=target.size, end=min(target.size + _BLOCK_BYTES, found["size"]))
        if not block:
            raise _CorruptError("the bytes arrived corrupt")
        target.write(block)
    if target.size != found["size"]:
        raise _CorruptError("the bytes arrived corrupt")
    return _etag(found)


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


def _file_system(scheme: str, timeout_s: float) -> Any:
    # Opened where it is used: its connections do not survive a fork. fsspec keeps one a process and thread.
    import fsspec

    try:
        if scheme == "s3":
            patience = {"connect_timeout": timeout_s, "read_timeout": timeout_s, "retries": {"total_max_attempts": 1}}
            system = fsspec.filesystem("s3", use_listings_cache=False, config_kwargs=patience)
            # One place repeats, `_repeat`; otherwise patience multiplies.
            system.retries = 1
            return system
        if scheme in {"http", "https"}:
            import aiohttp

            timeout = aiohttp.ClientTimeout(total=None, sock_connect=timeout_s, sock_read=timeout_s)
            return fsspec.filesystem(
                "https", encoded=True, use_listings_cache=False, client_kwargs={"timeout": timeout}, headers={"Accept-Encoding": "identity"}
            )
        return fsspec.filesystem(scheme, use_listings_cache=False)
    except ImportError:
        raise StorageError(f"{scheme}:// needs {_MISSING_EXTRAS.get(scheme, 'another package')} on every node") from None


def _explain(error: Exception) -> tuple[str, bool]:
    """Why a transfer failed, in words without addresses, and whether trying again is useless."""
    name = type(error).__name__
    if isinstance(error, _CorruptError):
        return str(error), False
    if isinstance(error, PermissionError) or "Credentials" in name:
        return "access denied; check the credentials and their rights", True
    if name == "NonHttpUrlRedirectClientError":
        return "redirects to an address that is neither http nor https", True
    if name == "TooManyRedirects":
        return "redirects without end", True
    if name in {"InvalidURL", "InvalidUrlClientError", "ParamValidationError"}:
        return "no valid address", True
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return f"the server answers {status}", 400 <= status < 500 and status not in {408, 429}
    if name in _UNREACHABLE:
        return "the server cannot be reached", False
    if isinstance(error, TimeoutError) or "Timeout" in name:
        return "the server does not answer in time", False
    return f"the transfer failed: {name}: {scrub(str(error))}", False
