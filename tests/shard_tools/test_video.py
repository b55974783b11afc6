import io
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import shard_tools.video as video_module
from shard_tools.backends import open_source, read_with_av
from shard_tools.failures import SampleFailure, Status
from shard_tools.video import choose_frames, decode_video, encode_frame, stored_size
from shard_tools.video_request import DecodedVideo, VideoRequest

MakeClip = Callable[..., Path]


def levels(video: DecodedVideo) -> list[int]:
    """The number of each frame of a `make_clip` video, read from its brightness."""
    return [round(float(simplejpeg.decode_jpeg(frame).mean()) / 8) for frame in video.frames]


def failure(path: Path, **request: Any) -> SampleFailure:
    with pytest.raises(SampleFailure) as caught:
        decode_video(VideoRequest(str(path), **request))
    return caught.value


def on_display(times: np.ndarray, moment: float) -> int:
    """Slow twin: the last frame that has appeared by `moment`."""
    return max([i for i, time in enumerate(times) if time <= moment + 1e-3], default=0)


@settings(max_examples=100, deadline=None)
@given(
    source=st.sampled_from([1.0, 10.0, 24.0, 25.0, 29.97, 60.0]),
    number=st.integers(1, 200),
    fps=st.sampled_from([0.5, 1.0, 3.0, 7.0]),
    start=st.floats(0, 3),
    length=st.none() | st.floats(0.1, 5),
)
def test_frames_at_a_rate_are_those_on_display(source: float, number: int, fps: float, start: float, length: float | None) -> None:
    times, stop = np.arange(number) / source, number / source
    chosen = choose_frames(times, stop, VideoRequest("", start, None if length is None else start + length, fps))
    end = stop if length is None else min(stop, start + length)
    if start >= end:
        assert chosen == []
        return
    moments = [start + k / fps for k in range(2000) if k == 0 or start + k / fps < end - 1e-3]
    assert chosen == sorted({on_display(times, moment) for moment in moments})


@pytest.mark.parametrize(
    ("number", "request_", "expected"),
    [
        (10, VideoRequest("", fps=None, max_frames=4), [0, 3, 6, 9]),
        (10, VideoRequest("", fps=None, max_frames=1), [5]),
        (3, VideoRequest("", fps=None, max_frames=8), [0, 1, 2]),
        (10, VideoRequest("", fps=None, max_frames=3, start=0.2, end=0.5), [2, 3, 4]),
        (10, VideoRequest("", fps=5.0, max_frames=2), [0, 8]),
        (10, VideoRequest("", fps=3.0, start=1.0), []),
        (10, VideoRequest("", fps=3.0, start=0.95), [9]),
    ],
)
def test_frame_choice_by_table(number: int, request_: VideoRequest, expected: list[int]) -> None:
    assert choose_frames(np.arange(number) / 10, number / 10, request_) == expected


def test_a_clip_gives_its_frames_times_and_size(clip: Path) -> None:
    video = decode_video(VideoRequest(str(clip), fps=2.0, short_side=24))
    assert levels(video) == [0, 5, 10, 15, 20, 25]
    assert video.frame_times == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
    assert (video.width, video.height, video.duration, video.fps) == (32, 24, 3.0, 10.0)
    assert simplejpeg.decode_jpeg_header(video.frames[0])[:2] == (24, 32)


def test_a_segment_gives_its_frames_only(clip: Path) -> None:
    video = decode_video(VideoRequest(str(clip), start=1.0, end=2.0, fps=5.0))
    assert levels(video) == [10, 12, 14, 16, 18] and video.duration == 1.0


def test_size_is_kept_without_a_short_side(clip: Path) -> None:
    assert [decode_video(VideoRequest(str(clip), short_side=side)).width for side in (None, 48, 96)] == [64, 64, 128]


def test_both_backends_give_the_same_frames(clip: Path, real_clips: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (clip, real_clips[2]):
        request = VideoRequest(str(path), fps=3.0, start=0.4, short_side=64)
        with_decord = decode_video(request)
        with monkeypatch.context() as patch:
            patch.setattr(video_module, "read_with_decord", None)
            with_av = decode_video(request)
        assert (with_decord.decoder, with_av.decoder) == ("decord", "pyav")
        assert replace(with_av, decoder="decord") == with_decord


def test_real_footage(real_clips: list[Path]) -> None:
    for path, frames in zip(real_clips, (16, 30, 13), strict=True):
        video = decode_video(VideoRequest(str(path), short_side=96))
        assert len(video.frames) == len(video.frame_times) == frames
        assert video.height == 96
        assert all(simplejpeg.decode_jpeg(frame).std() > 10 for frame in video.frames)


def test_flat_tables_cost_fewer_bytes_for_the_same_error(real_clips: list[Path]) -> None:
    for path in real_clips:
        source = open_source(str(path))
        (frame,) = read_with_av(str(path), source, stored_size(source, 224), [5])

        def size_and_error(quality: int, tables: str, frame: np.ndarray = frame) -> tuple[int, float]:
            content = encode_frame(frame, quality, tables)
            header = simplejpeg.decode_jpeg_header(content)
            assert header[:2] == frame.shape[:2] and header[3] == "444"
            return len(content), float(np.square(simplejpeg.decode_jpeg(content) - frame.astype(float)).mean())

        size, error = size_and_error(95, "standard")
        flat_size = next(
            size for size, flat_error in (size_and_error(quality, "flat") for quality in range(90, 101)) if flat_error <= error
        )
        assert flat_size < 0.9 * size, (path, size, flat_size)


@pytest.mark.parametrize("quality", [1, 49, 50, 95, 100])
def test_flat_tables_hold_one_step(quality: int) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    tables = Image.open(io.BytesIO(encode_frame(frame, quality, "flat"))).quantization  # type: ignore[attr-defined]
    assert {step for table in tables.values() for step in table} == {{1: 255, 49: 51, 50: 50, 95: 5, 100: 1}[quality]}


def test_one_frame_is_a_video(tmp_path: Path, make_clip: MakeClip) -> None:
    video = decode_video(VideoRequest(str(make_clip(tmp_path / "one.mp4", num_frames=1))))
    assert len(video.frames) == 1 and video.duration == 0.1


def test_files_that_are_no_video(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("this is a text")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "folder.mp4").mkdir()
    os.mkfifo(tmp_path / "pipe.mp4")
    assert failure(tmp_path / "text.mp4").status is Status.UNREADABLE
    assert failure(tmp_path / "empty.mp4").status is Status.EMPTY
    assert failure(tmp_path / "folder.mp4").message == "not a regular file"
    assert failure(tmp_path / "pipe.mp4").message == "not a regular file"
    assert failure(tmp_path / "none.mp4").status is Status.MISSING
    assert str(tmp_path) not in failure(tmp_path / "text.mp4").message


@pytest.mark.parametrize("name", ["end.mp4", "front.mp4", "clip.mkv"])
def test_a_file_cut_in_half(tmp_path: Path, make_clip: MakeClip, name: str) -> None:
    options = {"movflags": "faststart"} if name == "front.mp4" else {}
    path = make_clip(tmp_path / name, noise=True, **options)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    # With its index at the end an mp4 cannot be opened at all.
    assert failure(path).status is (Status.UNREADABLE if name == "end.mp4" else Status.TRUNCATED)


def test_no_frames_and_no_video_stream(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "zero.mp4"), "w") as container:
        stream: Any = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
    with av.open(str(tmp_path / "audio.mp4"), "w") as container:
        sound: Any = container.add_stream("aac", rate=44100)
        for index in range(10):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 44100, 1024 * index
            container.mux(sound.encode(frame))
        container.mux(sound.encode())
    assert failure(tmp_path / "zero.mp4").message == "the file has no video stream"
    assert failure(tmp_path / "audio.mp4").message == "the file has no video stream, only audio"


def test_a_segment_after_the_end_is_empty(clip: Path) -> None:
    assert failure(clip, start=3.5).message == "the segment starts at 3.5 s, the video ends at 3 s"
