"""Claims on a real S3 server: one watcher at a time, and none for longer than it lives."""

import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import s3fs

from dgl_scale.evaluation.remote_claims import RemoteClaims
from dgl_scale.files import LockedError
from dgl_scale.storage.clients import StorageError
from dgl_scale.storage.storage import Storage
from tests.s3_server import point_s3_at

NAME = "step-00000010-validation"


@pytest.fixture
def watcher(bucket: Any, request: pytest.FixtureRequest) -> Callable[..., RemoteClaims]:
    """`watcher(silence_s)`: one more watcher of the run that has the test's name."""
    return lambda silence_s=60.0: RemoteClaims(f"s3://bucket/{request.node.name}", silence_s)


@pytest.fixture
def claims(bucket: Any, request: pytest.FixtureRequest) -> Callable[[], list[str]]:
    """The numbers of the claims that are there."""
    return lambda: [path.rpartition("/")[2] for path in sorted(bucket.find(f"bucket/{request.node.name}"))]


def leave_claim(bucket: Any, run: str, number: int = 1) -> None:
    """As a watcher that was killed leaves it."""
    bucket.pipe_file(f"bucket/{run}/{NAME}/{number:08d}", b"somebody")


def is_free(watcher: RemoteClaims, name: str = NAME) -> bool:
    try:
        with watcher.claim(name):
            return True
    except LockedError:
        return False


def test_a_claim_keeps_others_out_until_it_ends(watcher: Callable[..., RemoteClaims], claims: Callable[[], list[str]]) -> None:
    first, second = watcher(), watcher()
    with first.claim(NAME):
        assert claims() == ["00000001"]
        assert not is_free(second)
        assert is_free(second, "step-00000020-validation")
    assert claims() == []
    with pytest.raises(ZeroDivisionError), second.claim(NAME):
        raise ZeroDivisionError
    assert is_free(first)


def test_a_live_holder_keeps_its_claim(watcher: Callable[..., RemoteClaims], claims: Callable[[], list[str]]) -> None:
    first, second = watcher(2.0), watcher(2.0)
    with first.claim(NAME):
        end = time.monotonic() + 5
        while time.monotonic() < end:
            assert not is_free(second)
            time.sleep(0.1)
    assert claims() == []


def test_the_claim_of_a_dead_holder_goes_to_another(
    watcher: Callable[..., RemoteClaims], claims: Callable[[], list[str]], bucket: Any, request: pytest.FixtureRequest
) -> None:
    leave_claim(bucket, request.node.name, 9)
    waiting, fresh = watcher(0.5), watcher(60.0)
    started = time.monotonic()
    while not is_free(waiting):
        assert claims() == ["00000009"]
        time.sleep(0.02)
    assert time.monotonic() - started >= 0.5
    assert claims() == [], "the dead one's goes with the holder's, or it would count again"
    leave_claim(bucket, request.node.name)
    assert not is_free(fresh), "who sees it for the first time cannot know"
    assert not is_free(waiting), "it is another claim than the one before"


@pytest.mark.parametrize("is_one_void", [False, True])
def test_one_of_many_gets_it(
    watcher: Callable[..., RemoteClaims],
    claims: Callable[[], list[str]],
    bucket: Any,
    request: pytest.FixtureRequest,
    is_one_void: bool,
) -> None:
    watchers = [watcher(0.2 if is_one_void else 60.0) for _ in range(8)]
    if is_one_void:
        leave_claim(bucket, request.node.name)
        assert not any(is_free(one) for one in watchers)
        time.sleep(0.3)
    together, over = threading.Barrier(len(watchers)), threading.Barrier(len(watchers))

    def race(one: RemoteClaims) -> bool:
        together.wait(60)
        try:
            with one.claim(NAME):
                over.wait(60)
                return True
        except LockedError:
            over.wait(60)
            return False

    with ThreadPoolExecutor(len(watchers)) as pool:
        assert sum(pool.map(race, watchers)) == 1
    assert claims() == []


def test_a_holder_ends_though_the_server_is_silent(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        one = RemoteClaims("s3://bucket/silent", 4.0)
        with one.claim(NAME):
            # Accepts connections, as its backlog does, and never answers.
            point_s3_at(monkeypatch, silent.getsockname()[1])
            time.sleep(1.5)
        # Without an end of patience the test would take eight minutes, and time out.
    monkeypatch.undo()
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_claim_whose_answer_was_lost_is_held(watcher: Callable[..., RemoteClaims], monkeypatch: pytest.MonkeyPatch) -> None:
    create = Storage.create

    def lose_the_answer(storage: Storage, url: str, content: bytes) -> bool:
        return create(storage, url, content) and create(storage, url, content)

    monkeypatch.setattr(Storage, "create", lose_the_answer)
    first, second = watcher(), watcher()
    with first.claim(NAME):
        assert not is_free(second)


def test_storage_that_takes_no_claims_is_said_once_and_keeps_nobody(
    watcher: Callable[..., RemoteClaims], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(storage: Storage, url: str, content: bytes) -> bool:
        raise StorageError(f"{url}: access denied")

    monkeypatch.setattr(Storage, "create", refuse)
    one = watcher()
    assert is_free(one)
    assert is_free(one)
    assert capsys.readouterr().err.count("another watcher may evaluate the same checkpoints, as no claims can be made: s3://") == 1


def test_a_server_that_replaces_a_claim_takes_none(
    watcher: Callable[..., RemoteClaims],
    claims: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def replace(storage: Storage, url: str, content: bytes) -> bool:
        with storage.output_file(url) as stream:
            stream.write(content)
        return True

    monkeypatch.setattr(Storage, "create", replace)
    first, second = watcher(), watcher()
    with first.claim(NAME):
        assert claims() == []
        assert is_free(second)
    assert capsys.readouterr().err.count("the server makes an object of a name that there is already") == 2
