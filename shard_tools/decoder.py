"""A decoding process with a time and memory limit, used for many videos, replaced when one kills it.

Parent and child speak over pipes: a JSON line for a request, a JSON line and the frames' bytes for a
reply. JSON and not pickle, because the child has touched data from strangers.
"""

import contextlib
import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from dgl_scale.errors import DglError
from dgl_scale.shards_config import DecoderConfig
from shard_tools.failures import SampleFailure, Status
from shard_tools.video_request import DecodedVideo, VideoRequest

_PR_SET_PDEATHSIG = 1
# Who is killed before it has seen a video is killed by others.
_START_ATTEMPTS = 3
_CLOSE_TIMEOUT_S = 5.0
_SERVE = (sys.executable, "-m", "shard_tools.decoder")
# One thread each: Ray runs as many tasks as there are CPUs, and a math library reserves memory per thread.
_THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
# glibc gives every large block back at once, and asks for it again with each batch of frames: a twentieth of the time.
_MEMORY = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(256 << 20)}


class Decoder:
    """Decodes videos one after the other in a child process. Use as a context manager.

    Args:
        config: the limits of one video.
        command: the program that serves requests; the memory limit in bytes is its last argument.
    """

    def __init__(self, config: DecoderConfig, command: Sequence[str] = _SERVE) -> None:
        self._config = config
        self._command = command
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def decode(self, request: VideoRequest) -> DecodedVideo:
        """Decode one video.

        Raises:
            SampleFailure: as `decode_video`, and timeout, crashed or too_large for a video that broke its process.
            DglError: the decoding process cannot start at all.
        """
        child = self._child or self._start()
        timed_out = threading.Event()
        timer = threading.Timer(self._config.timeout_s, _expire, (child, timed_out))
        timer.start()
        try:
            reply, frames = _ask(child, request)
        except (EOFError, OSError) as error:
            self._child = None
            status = child.wait()
            if timed_out.is_set():
                raise SampleFailure(Status.TIMEOUT, f"not decoded within {self._config.timeout_s:g} s") from error
            raise SampleFailure(Status.CRASHED, f"the decoder {_death(status)}") from error
        finally:
            timer.cancel()
            timer.join()
        if timed_out.is_set():
            # The time ran out just as the reply came; the child is gone, the reply is good.
            self._child = None
            child.wait()
        if "status" in reply:
            raise SampleFailure(Status(reply["status"]), reply["message"])
        return DecodedVideo(frames=frames, **reply)

    def close(self) -> None:
        """End the child process."""
        child, self._child = self._child, None
        if child is None:
            return
        # Closing its standard input asks it to leave.
        with contextlib.suppress(OSError):
            _pipe(child.stdin).close()
        try:
            child.wait(_CLOSE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        _pipe(child.stdout).close()

    def _start(self) -> subprocess.Popen[bytes]:
        package_parent = str(Path(__file__).resolve().parents[1])
        search_path = os.pathsep.join(part for part in (package_parent, os.environ.get("PYTHONPATH", "")) if part)
        command = [*self._command, str(int(self._config.memory_limit_gib * 2**30))]
        environment = {**os.environ, "PYTHONPATH": search_path, **_THREADS, **_MEMORY}
        for _ in range(_START_ATTEMPTS):
            try:
                child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)
            except OSError as error:
                raise DglError(f"the decoding process {self._command[0]} cannot start: {error.strerror or error}") from error
            if _pipe(child.stdout).readline() == b"ready\n":
                self._child = child
                return child
            child.kill()
            with child:
                status = child.wait()
            if status >= 0:
                break
        raise DglError(f"the decoding process {_death(status)} at its start; try `{' '.join(command)}` for the reason")


def serve() -> None:
    """The child: answer requests from standard input until it closes. Its argument is its memory limit in bytes."""
    _leave_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    limit = int(sys.argv[1])
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Whatever a library prints must not reach the pipe of the replies.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    from shard_tools.backends import quiet_decoders
    from shard_tools.video import decode_video, failure_of

    quiet_decoders()
    replies.write(b"ready\n")
    replies.flush()
    for line in sys.stdin.buffer:
        frames: list[bytes] = []
        try:
            video = decode_video(VideoRequest(**json.loads(line)))
            frames = video.frames
            reply: dict[str, Any] = {**asdict(video), "frames": [len(frame) for frame in frames]}
        except Exception as error:
            failure = failure_of(error)
            reply = {"status": failure.status, "message": failure.message}
        replies.write(json.dumps(reply).encode() + b"\n")
        replies.writelines(frames)
        replies.flush()


def _ask(child: subprocess.Popen[bytes], request: VideoRequest) -> tuple[dict[str, Any], list[bytes]]:
    requests, replies = _pipe(child.stdin), _pipe(child.stdout)
    requests.write(json.dumps(asdict(request)).encode() + b"\n")
    requests.flush()
    line = replies.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    reply: dict[str, Any] = json.loads(line)
    frames = [replies.read(size) for size in reply["frames"]] if "frames" in reply else []
    if any(len(frame) != size for frame, size in zip(frames, reply.pop("frames", []), strict=True)):
        raise EOFError
    return reply, frames


def _expire(child: subprocess.Popen[bytes], timed_out: threading.Event) -> None:
    timed_out.set()
    child.kill()


def _death(status: int) -> str:
    if status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return f"ended with exit status {status}"


def _leave_with_parent() -> None:
    # A worker that is killed outright cannot close its child, and a hanging decoder does not read its input.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _pipe(stream: Any) -> BinaryIO:
    pipe: BinaryIO = stream
    return pipe


if __name__ == "__main__":
    serve()
