"""Clients of object storage and web servers, and what their exceptions mean. The door of fsspec."""

from typing import Any

from dgl_scale.errors import DglError
from dgl_scale.storage.urls import scrub

_MISSING_EXTRAS = {"s3": "s3fs (pip install 'dgl-scale[s3]')", "gs": "gcsfs (pip install gcsfs)"}
_UNREACHABLE = {
    "EndpointConnectionError",
    "ClientConnectorError",
    "ClientConnectorDNSError",
    "ConnectTimeoutError",
    "ConnectionTimeoutError",
}


class TooLargeError(Exception):
    """A remote file is larger than it may be."""


class StorageError(DglError):
    """A place cannot be read or written; the message names it without credentials."""


class NotThereError(StorageError):
    """The server answers that there is no such file."""


class CorruptError(Exception):
    """Not the bytes that were sent."""


def file_system(scheme: str, timeout_s: float) -> Any:
    """The file system of a URL scheme; a server silent for `timeout_s` ends a transfer.

    Raises:
        StorageError: the package for this scheme is not installed.
    """
    # Opened where it is used: its connections do not survive a fork. fsspec keeps one a process and thread.
    import fsspec

    try:
        if scheme == "s3":
            patience = {"connect_timeout": timeout_s, "read_timeout": timeout_s, "retries": {"total_max_attempts": 1}}
            system = fsspec.filesystem("s3", use_listings_cache=False, config_kwargs=patience)
            # One place repeats, `Storage._repeat`; otherwise patience multiplies.
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


def upload(system: Any, method: Any, *arguments: Any, limit_s: float, **options: Any) -> None:
    """Run a file system's coroutine method that sends something.

    The client itself counts silence only from the last byte sent on: for a server that takes no bytes it would wait without end.

    Raises:
        TimeoutError: it takes longer than `limit_s`.
    """
    import fsspec.asyn

    fsspec.asyn.sync(system.loop, method, *arguments, timeout=limit_s, **options)


def explain(error: Exception) -> tuple[str, bool]:
    """Why a transfer failed, in words without addresses, and whether trying again is useless."""
    name = type(error).__name__
    if isinstance(error, CorruptError):
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
    if "Certificate" in name or "CERTIFICATE_VERIFY_FAILED" in str(error):
        return "the server's certificate is not trusted; SSL_CERT_FILE names a file of the authorities to trust", True
    if name in _UNREACHABLE:
        return "the server cannot be reached", False
    if isinstance(error, TimeoutError) or "Timeout" in name:
        return "the server does not answer in time", False
    return f"the transfer failed: {name}: {scrub(str(error))}", False
