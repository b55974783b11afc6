"""Who evaluates which checkpoint, among watchers that share object storage and no disk.

CLAIMS/step-00001000-validation/00000001    the claim of the watcher that came first
                                00000002    of the one that took over after the first had been silent for too long

A server makes a claim only if there is none of its name, so of several watchers one gets it, and the highest number counts. A holder
writes its claim anew again and again. Whoever sees one that does not change for `silence_s`, by its own clock, takes the holder
for dead: no two clocks are compared.
"""

import contextlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator

from dgl_scale.errors import DglError
from dgl_scale.files import LockedError
from dgl_scale.storage.clients import NotThereError, StorageError
from dgl_scale.storage.storage import Storage
from dgl_scale.storage.urls import Location, join, public_url
from dgl_scale.storage_config import StorageConfig
from dgl_scale.telemetry import say

_RENEWALS_IN_SILENCE = 4


class RemoteClaims:
    """The claims on the evaluations of a run.

    Args:
        folder: address of the folder of claims.
        silence_s: seconds after which a claim that is not written anew is void.
    """

    def __init__(self, folder: Location, silence_s: float) -> None:
        self._storage = Storage()
        self._folder = folder
        self._silence_s = silence_s
        self._renewal_s = silence_s / _RENEWALS_IN_SILENCE
        # What a claim needs while it is held may fail once; a watcher that ends shall not wait for a server that is silent.
        self._hasty_storage = Storage(StorageConfig(attempts=1, timeout_s=self._renewal_s))
        self._holder = f"{socket.gethostname()} process {os.getpid()} {uuid.uuid4().hex}"
        # Claims of others: what was in them when they last changed, and when that was, on this machine's clock.
        self._seen: dict[Location, tuple[bytes, float]] = {}
        self._is_refusal_said = False
        self._is_server_known = False

    @contextlib.contextmanager
    def claim(self, name: str) -> Iterator[None]:
        """Hold the claim on the evaluation `name` while the block runs. Where none can be made, that is said once and nothing is held.

        Raises:
            LockedError: another watcher holds it.
        """
        try:
            claim = self._make(name)
        except StorageError as error:
            if not self._is_refusal_said:
                say(f"another watcher may evaluate the same checkpoints, as no claims can be made: {error}")
            self._is_refusal_said = True
            yield
            return
        with self._kept_alive(claim):
            yield

    def _make(self, name: str) -> Location:
        folder = join(self._folder, name)
        latest = max(map(int, filter(str.isdecimal, self._storage.names(folder))), default=0)
        if latest and not self._is_void(_numbered(folder, latest)):
            raise LockedError(f"{public_url(folder)} is claimed by another watcher")
        claim = _numbered(folder, latest + 1)
        if not self._storage.create(str(claim), self._content(0)) and self._read(claim) != self._content(0):
            raise LockedError(f"{public_url(folder)} was just claimed by another watcher")
        self._check_server(claim)
        return claim

    def _check_server(self, claim: Location) -> None:
        """Claims are worth something only where a second object of the same name is refused."""
        if not self._is_server_known and self._storage.create(str(claim), self._content(0)):
            self._storage.remove(claim)
            raise StorageError(f"{public_url(claim)}: the server makes an object of a name that there is already")
        self._is_server_known = True

    def _is_void(self, claim: Location) -> bool:
        content, now = self._read(claim), time.monotonic()
        if content is None:
            return False
        known, since = self._seen.get(claim, (None, now))
        if content != known:
            self._seen[claim] = (content, now)
            return False
        return now - since >= self._silence_s

    @contextlib.contextmanager
    def _kept_alive(self, claim: Location) -> Iterator[None]:
        ended = threading.Event()
        renewer = threading.Thread(target=self._renew, args=(claim, ended), daemon=True)
        renewer.start()
        try:
            yield
        finally:
            ended.set()
            renewer.join()
            # One that cannot be removed becomes void.
            with contextlib.suppress(StorageError):
                self._remove_up_to(claim)

    def _renew(self, claim: Location, ended: threading.Event) -> None:
        count = 0
        while not ended.wait(self._renewal_s):
            count += 1
            # The next one may get through; until then the others have patience.
            with contextlib.suppress(DglError), self._hasty_storage.output_file(claim) as stream:
                stream.write(self._content(count))

    def _remove_up_to(self, claim: Location) -> None:
        """Remove a claim and the void ones before it, which would count if they outlived it."""
        folder, _, last = str(claim).rpartition("/")
        for name in self._hasty_storage.names(folder):
            if name.isdecimal() and int(name) <= int(last):
                self._hasty_storage.remove(join(folder, name))

    def _read(self, claim: Location) -> bytes | None:
        """What is in a claim; None if it is there no more."""
        try:
            with self._storage.local_copy(claim) as path:
                return path.read_bytes()
        except NotThereError:
            return None

    def _content(self, renewals: int) -> bytes:
        return f"{self._holder}, renewed {renewals} times\n".encode()


def _numbered(folder: Location, number: int) -> Location:
    return join(folder, f"{number:08d}")
