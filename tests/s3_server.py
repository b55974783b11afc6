"""A real S3 server (moto) on this machine, in a process of its own."""

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import s3fs

SECRET = "hush4711"


@contextlib.contextmanager
def serve_s3() -> Iterator[int]:
    """The port of a server that runs while the block does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.05)
        yield port
    finally:
        server.terminate()
        server.wait(30)


def point_s3_at(patch: pytest.MonkeyPatch, port: int) -> None:
    """From now on `s3://` means the server at a port of this machine to this process; clear s3fs's cache when that ends."""
    settings = {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": SECRET, "DEFAULT_REGION": "us-east-1"}
    for name, value in {**settings, "ENDPOINT_URL": f"http://127.0.0.1:{port}"}.items():
        patch.setenv(f"AWS_{name}", value)
    s3fs.S3FileSystem.clear_instance_cache()


@contextlib.contextmanager
def s3_bucket() -> Iterator[s3fs.S3FileSystem]:
    """The file system of a server with a bucket `bucket`; while the block runs it is what `s3://` means to this process."""
    with serve_s3() as port, pytest.MonkeyPatch.context() as patch:
        point_s3_at(patch, port)
        system = s3fs.S3FileSystem(use_listings_cache=False)
        system.mkdir("bucket")
        yield system
    s3fs.S3FileSystem.clear_instance_cache()
