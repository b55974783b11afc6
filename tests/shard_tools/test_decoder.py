import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dgl_scale.errors import DglError
from dgl_scale.shards_config import DecoderConfig
from shard_tools.decoder import Decoder
from shard_tools.failures import SampleFailure, Status
from shard_tools.video import decode_video
from shard_tools.video_request import VideoRequest


def child_pid(decoder: Decoder) -> int:
    assert decoder._child is not None
    return decoder._child.pid


def test_the_child_answers_as_the_function_and_is_reused(clip: Path, tmp_path: Path) -> None:
    with Decoder(DecoderConfig()) as decoder:
        request = VideoRequest(str(clip), short_side=32)
        assert decoder.decode(request) == decode_video(request)
        pid = child_pid(decoder)
        with pytest.raises(SampleFailure) as caught:
            decoder.decode(VideoRequest(str(tmp_path / "none.mp4")))
        assert caught.value.status is Status.MISSING
        assert len(decoder.decode(request).frames) == 9 and child_pid(decoder) == pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_hanging_decoder_costs_one_video(clip: Path) -> None:
    request = VideoRequest(str(clip))
    with Decoder(DecoderConfig(timeout_s=1.0)) as decoder:
        decoder.decode(request)
        os.kill(child_pid(decoder), signal.SIGSTOP)
        with pytest.raises(SampleFailure) as caught:
            decoder.decode(request)
        assert (caught.value.status, caught.value.message) == (Status.TIMEOUT, "not decoded within 1 s")
        assert len(decoder.decode(request).frames) == 9


def test_a_crashing_decoder_costs_one_video(clip: Path) -> None:
    request = VideoRequest(str(clip))
    with Decoder(DecoderConfig()) as decoder:
        decoder.decode(request)
        os.kill(child_pid(decoder), signal.SIGSTOP)
        threading.Timer(0.3, os.kill, (child_pid(decoder), signal.SIGSEGV)).start()
        threading.Timer(0.6, os.kill, (child_pid(decoder), signal.SIGCONT)).start()
        with pytest.raises(SampleFailure) as caught:
            decoder.decode(request)
        assert (caught.value.status, caught.value.message) == (Status.CRASHED, "the decoder was killed by SIGSEGV")
        assert len(decoder.decode(request).frames) == 9


def test_memory_is_limited(tmp_path: Path, make_clip: Callable[..., Path]) -> None:
    huge = make_clip(tmp_path / "huge.mp4", num_frames=2, size=(6000, 6000), preset="ultrafast")
    small = make_clip(tmp_path / "small.mp4", num_frames=2)
    with Decoder(DecoderConfig(memory_limit_gib=0.5)) as decoder:
        assert len(decoder.decode(VideoRequest(str(small))).frames) == 1
        with pytest.raises(SampleFailure) as caught:
            decoder.decode(VideoRequest(str(huge), short_side=None))
        assert caught.value.status in {Status.TOO_LARGE, Status.CRASHED}
        assert len(decoder.decode(VideoRequest(str(small))).frames) == 1
    with Decoder(DecoderConfig()) as decoder:
        assert len(decoder.decode(VideoRequest(str(huge))).frames) == 1


def test_the_child_leaves_with_its_parent(clip: Path, tmp_path: Path) -> None:
    program = f"""
import time
from dgl_scale.shards_config import DecoderConfig
from shard_tools.decoder import Decoder
from shard_tools.video_request import VideoRequest
decoder = Decoder(DecoderConfig())
decoder.decode(VideoRequest({str(clip)!r}))
print(decoder._child.pid, flush=True)
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    # Stopped, it cannot notice that its input has closed; the kernel must end it.
    os.kill(pid, signal.SIGSTOP)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 10
    while _alive(pid):
        assert time.monotonic() < deadline, "the decoding process outlived its parent"
        time.sleep(0.05)


def test_a_decoder_that_cannot_start_is_an_error_of_the_build(clip: Path) -> None:
    with (
        Decoder(DecoderConfig(), (sys.executable, "-c", "raise SystemExit(3)")) as decoder,
        pytest.raises(DglError, match="exit status 3 at its start"),
    ):
        decoder.decode(VideoRequest(str(clip)))
    with Decoder(DecoderConfig(), ("/no/such/program",)) as decoder, pytest.raises(DglError, match="cannot start"):
        decoder.decode(VideoRequest(str(clip)))


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
