"""Object storage that falls silent: what sends there ends with a line instead of waiting without end."""

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import s3fs

from dgl_scale.storage.clients import StorageError
from dgl_scale.storage.storage import Storage
from dgl_scale.storage_config import StorageConfig
from tests.s3_server import point_s3_at


@pytest.fixture
def silent_s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`s3://` means a server that accepts connections, as its backlog does, and never reads or answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        point_s3_at(monkeypatch, server.getsockname()[1])
        yield
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize(
    "use",
    [
        lambda storage, file: storage.send(file, "s3://bucket/file"),
        lambda storage, file: storage.create("s3://bucket/file", b"content"),
        lambda storage, file: storage.remove("s3://bucket/file"),
        lambda storage, file: storage.size("s3://bucket/file"),
    ],
    ids=["send", "create", "remove", "size"],
)
@pytest.mark.timeout(60)
def test_a_silent_server_ends_a_try(silent_s3: None, tmp_path: Path, use: Callable[[Storage, Path], object]) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"content" * 10_000)
    with pytest.raises(StorageError, match=r"s3://bucket/file: the server does not answer in time \(2 attempts\)"):
        use(Storage(StorageConfig(attempts=2, timeout_s=0.5)), file)
