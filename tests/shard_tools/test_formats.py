"""Codecs, containers and odd files: upright frames with right colours and times, the same from both backends."""

import os
import struct
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st

from dgl_scale.shards_config import DecoderConfig
from shard_tools.backends import open_source, read_with_av, read_with_decord
from shard_tools.decoder import Decoder
from shard_tools.failures import SampleFailure, Status
from shard_tools.video import decode_video, stored_size
from shard_tools.video_request import DecodedVideo, VideoRequest
from tests.shard_tools.clips import encode, number_of, picture

NUMBER = 12
_VFR_MS = [0, 40, 240, 273, 773, 873, 913, 1113, 1146, 1646, 1746, 1786]


def decoded(video: DecodedVideo) -> list[np.ndarray]:
    return [simplejpeg.decode_jpeg(frame) for frame in video.frames]


def check_backends(path: Path, served_by: str, short_side: int | None = None) -> np.ndarray:
    """All frames of a clip of `NUMBER` pictures, after checking that both backends give the same bytes."""
    source = open_source(str(path))
    size = stored_size(source, short_side)
    with_av = np.array(list(read_with_av(str(path), source, size, range(NUMBER))))
    assert [number_of(frame) for frame in with_av] == list(range(NUMBER))
    assert decode_video(VideoRequest(str(path), short_side=short_side)).decoder == served_by
    if served_by == "decord":
        assert np.array_equal(with_av, np.array(list(read_with_decord(str(path), source, size, range(NUMBER)))))
    return with_av


@pytest.mark.parametrize(
    ("name", "codec", "pixels", "served_by"),
    [
        ("h264.mp4", "libx264", "yuv420p", "decord"),
        ("h264.mkv", "libx264", "yuv420p10le", "decord"),
        ("h264.avi", "libx264", "yuv420p", "pyav"),
        ("h264.ts", "libx264", "yuv420p", "pyav"),
        ("h264.flv", "libx264", "yuv420p", "decord"),
        ("hevc.mp4", "libx265", "yuv420p", "decord"),
        ("vp8.webm", "libvpx", "yuv420p", "decord"),
        ("vp9.webm", "libvpx-vp9", "yuv420p", "decord"),
        ("av1.mp4", "libsvtav1", "yuv420p", "decord"),
        ("mpeg4.avi", "mpeg4", "yuv420p", "decord"),
        ("wmv.wmv", "wmv2", "yuv420p", "decord"),
        ("gif.gif", "gif", "rgb8", "decord"),
    ],
)
def test_codecs_and_containers(tmp_path: Path, name: str, codec: str, pixels: str, served_by: str) -> None:
    priority = os.sched_getscheduler(0)
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    path = encode(tmp_path / name, codec, [picture(i, 96, 64) for i in range(NUMBER)], pixels=pixels, options=options)
    assert os.sched_getscheduler(0) == priority
    frames = check_backends(path, served_by, short_side=48)
    assert frames.shape == (NUMBER, 48, 72, 3)
    # GIF has few colours, the others lose a little.
    assert np.abs(frames[0, 8, 8].astype(int) - (200, 40, 40)).max() < (50 if codec == "gif" else 16)
    video = decode_video(VideoRequest(str(path), fps=5.0, short_side=48))
    assert video.frame_times == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert [number_of(frame) for frame in decoded(video)] == [0, 2, 4, 6, 8, 10]
    assert (video.duration, video.fps, video.width, video.height) == (1.2, 10.0, 72, 48)


@pytest.mark.parametrize(("codec", "full_range"), [("libx264", False), ("libx264", True), ("mjpeg", True)])
def test_both_colour_ranges_give_the_same_colours(tmp_path: Path, codec: str, full_range: bool) -> None:
    pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path = encode(tmp_path / "range.mov", codec, [picture(i) for i in range(NUMBER)], pixels=pixels, full_range=full_range)
    frame = check_backends(path, "decord")[-1].astype(int)
    for place, colour in (((5, 5), (200, 40, 40)), ((5, -5), (40, 180, 40)), ((-5, 5), (40, 40, 200)), ((-5, -5), (176, 176, 176))):
        assert np.abs(frame[place] - colour).max() <= 6


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotated_frames_come_out_upright(tmp_path: Path, rotation: int) -> None:
    if not hasattr(av.video.stream.VideoStream, "set_display_rotation"):
        pytest.skip(f"PyAV {av.__version__} cannot write a display matrix")
    # As a phone does it: the sensor's rows are stored as they are, and the player is told to turn them.
    stored = [np.ascontiguousarray(np.rot90(picture(i), -(rotation // 90))) for i in range(NUMBER)]
    path = encode(tmp_path / "turned.mp4", "libx264", stored, rotation=rotation)
    frames = check_backends(path, "pyav", short_side=24)
    assert frames.shape == (NUMBER, 24, 32, 3)
    upright = decode_video(
        VideoRequest(str(encode(tmp_path / "upright.mp4", "libx264", [picture(i) for i in range(NUMBER)])), short_side=24)
    )
    for one, other in zip(decoded(upright), decoded(decode_video(VideoRequest(str(path), short_side=24))), strict=True):
        assert np.abs(one.astype(int) - other).mean() < 4


def test_odd_sizes(tmp_path: Path) -> None:
    path = encode(tmp_path / "odd.webm", "libvpx-vp9", [picture(i, 63, 47) for i in range(NUMBER)])
    assert check_backends(path, "decord").shape == (NUMBER, 47, 63, 3)
    assert check_backends(path, "decord", short_side=31).shape == (NUMBER, 31, 42, 3)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of variable frame rate."""
    path = tmp_path_factory.mktemp("uneven") / "uneven.mkv"
    return encode(path, "libx264", [picture(i) for i in range(NUMBER)], times_ms=_VFR_MS)


@settings(max_examples=40, deadline=None)
@given(
    fps=st.none() | st.sampled_from([0.7, 3.0, 10.0, 90.0]),
    max_frames=st.integers(1, 14),
    start=st.floats(0, 1.7),
    length=st.none() | st.floats(0.01, 2),
)
def test_frames_of_an_uneven_clip(uneven: Path, fps: float | None, max_frames: int, start: float, length: float | None) -> None:
    end = None if length is None else start + length
    video = decode_video(VideoRequest(str(uneven), start=start, end=end, fps=fps, max_frames=max_frames))
    # The twin: every frame by name, every moment one after the other.
    stop = (_VFR_MS[-1] + 100) / 1000
    last = min(end or stop, stop)
    shown = lambda moment: max([i for i in range(NUMBER) if _VFR_MS[i] / 1000 <= moment + 1e-3], default=0)  # noqa: E731
    if fps is None:
        wanted = [i for i in range(NUMBER) if i == shown(start) or start + 1e-3 < _VFR_MS[i] / 1000 < last - 1e-3]
    else:
        wanted = sorted({shown(start + k / fps) for k in range(300) if k == 0 or start + k / fps < last - 1e-3})
    if len(wanted) > max_frames:
        assert len(video.frames) == max_frames
        if max_frames > 1:
            assert video.frame_times[0] == _VFR_MS[wanted[0]] / 1000 and video.frame_times[-1] == _VFR_MS[wanted[-1]] / 1000
        wanted = [i for i in wanted if _VFR_MS[i] / 1000 in video.frame_times]
    assert video.frame_times == [_VFR_MS[i] / 1000 for i in wanted]
    assert [number_of(frame) for frame in decoded(video)] == wanted


def test_scaling_is_bicubic_with_antialiasing(tmp_path: Path) -> None:
    rows, columns = np.mgrid[0:480, 0:640]
    # A zone plate: its fine outer rings become coarse ghosts unless scaling averages them away.
    rings = (127.5 + 127.5 * np.cos((rows**2 + columns**2) / 640)).astype(np.uint8)
    path = encode(tmp_path / "rings.mkv", "ffv1", [np.repeat(rings[..., None], 3, axis=2)], pixels="yuv444p")
    (frame,) = decoded(decode_video(VideoRequest(str(path), short_side=120, jpeg_quality=100)))
    from PIL import Image

    expected = np.asarray(Image.fromarray(rings).resize((160, 120), Image.Resampling.BICUBIC)).astype(int)
    aliased = rings[2::4, 2::4].astype(int)
    assert np.abs(frame[..., 1] - expected).mean() < 3 < 20 < np.abs(frame[..., 1] - aliased).mean()


@pytest.mark.parametrize(
    ("name", "codec", "pixels"), [("one.mp4", "libx264", "yuv420p"), ("one.webm", "libvpx-vp9", "yuv420p"), ("one.gif", "gif", "rgb8")]
)
def test_a_clip_of_one_frame(tmp_path: Path, name: str, codec: str, pixels: str) -> None:
    path = encode(tmp_path / name, codec, [picture(7)], pixels=pixels)
    video = decode_video(VideoRequest(str(path)))
    assert (video.frame_times, video.duration, video.decoder) == ([0.0], 0.1, "decord")
    assert [number_of(frame) for frame in decoded(video)] == [7]


def test_four_hours(tmp_path: Path) -> None:
    # A frame in five seconds; every frame tells its number modulo 16.
    frames = [picture(i) for i in range(16)] * 180
    options = {"preset": "ultrafast", "g": "100"}
    path = encode(tmp_path / "long.mp4", "libx264", frames, times_ms=range(0, 14_400_000, 5000), options=options)
    with Decoder(DecoderConfig(timeout_s=60, memory_limit_gib=1)) as decoder:
        video = decoder.decode(VideoRequest(str(path), fps=3.0, max_frames=9))
        assert len(video.frames) == 9 and video.frame_times[-1] == 14_395.0
        assert [number_of(frame) for frame in decoded(video)] == [round(time / 5) % 16 for time in video.frame_times]
        late = decoder.decode(VideoRequest(str(path), start=14_000.2, end=14_009.9, fps=1.0))
        assert late.frame_times == [14_000.0, 14_005.0] and late.duration == 9.7


def test_an_edit_list_hides_frames(tmp_path: Path) -> None:
    frames = [picture(i) for i in range(NUMBER)]
    whole, cut = encode(tmp_path / "whole.mp4", "libx264", frames, options={"g": "100"}), tmp_path / "cut.mp4"
    # Cut at frame 5 without encoding again: frames 0 to 4 stay in the file, for the decoder only.
    with av.open(str(whole)) as source, av.open(str(cut), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                shift = round(5 / (10 * packet.time_base))
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, stream
                target.mux(packet)
    video = decode_video(VideoRequest(str(cut), fps=10.0))
    assert [number_of(frame) for frame in decoded(video)] == list(range(5, NUMBER))
    assert (video.frame_times[0], video.duration, video.decoder) == (0.0, 0.7, "pyav")


def test_a_song_with_a_cover_is_no_video(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "song.m4a"), "w", format="mp4") as container:
        sound: Any = container.add_stream("aac", rate=44100)
        cover: Any = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        container.mux(cover.encode(av.VideoFrame.from_ndarray(picture(0), format="rgb24").reformat(format="yuvj420p")))
        container.mux(cover.encode())
        for index in range(20):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 44100, 1024 * index
            container.mux(sound.encode(frame))
        container.mux(sound.encode())
    with pytest.raises(SampleFailure) as caught:
        decode_video(VideoRequest(str(tmp_path / "song.m4a")))
    assert caught.value.message == "the file has no video stream, only audio"


def bombs(folder: Path) -> dict[str, Path]:
    """Small files that declare huge pictures, or very many frames."""
    frames = [picture(i) for i in range(NUMBER)]
    gif = bytearray(encode(folder / "screen.gif", "gif", frames, pixels="rgb8").read_bytes())
    gif[6:10] = struct.pack("<HH", 65_535, 65_535)
    (folder / "screen.gif").write_bytes(gif)
    jpeg = encode(folder / "jpeg.mov", "mjpeg", frames, pixels="yuvj420p").read_bytes()
    # The size in each JPEG's own header (SOF0: length, precision, height, width).
    jpeg = jpeg.replace(b"\xff\xc0\x00\x11\x08" + struct.pack(">HH", 48, 64), b"\xff\xc0\x00\x11\x08" + struct.pack(">HH", 16_000, 16_000))
    (folder / "jpeg.mov").write_bytes(jpeg)
    table = bytearray(encode(folder / "table.mp4", "libx264", frames).read_bytes())
    place = table.index(b"stsz") + 8
    table[place : place + 8] = struct.pack(">II", 1, 2_000_000_000)
    place = table.index(b"stts") + 12
    table[place : place + 4] = struct.pack(">I", 2_000_000_000)
    (folder / "table.mp4").write_bytes(table)
    thin = encode(folder / "thin.mp4", "libx264", [picture(i, 2048, 16) for i in range(NUMBER)], options={"preset": "ultrafast"})
    return {"screen": folder / "screen.gif", "jpeg": folder / "jpeg.mov", "table": folder / "table.mp4", "thin": thin}


def test_bombs_are_refused_before_memory_is_spent(tmp_path: Path) -> None:
    paths = bombs(tmp_path)
    with Decoder(DecoderConfig(timeout_s=20, memory_limit_gib=2)) as decoder:
        for name, statuses in (
            ("screen", {Status.TOO_LARGE, Status.UNREADABLE}),
            ("jpeg", {Status.TOO_LARGE, Status.UNREADABLE, Status.CRASHED}),
            ("table", {Status.TOO_LARGE}),
            ("thin", {Status.TOO_LARGE}),
        ):
            with pytest.raises(SampleFailure) as caught:
                decoder.decode(VideoRequest(str(paths[name]), short_side=9000))
            assert caught.value.status in statuses, (name, caught.value.message)
        assert decoder._child is not None
        memory = Path(f"/proc/{decoder._child.pid}/status").read_text()
        (peak,) = [int(line.split()[1]) for line in memory.splitlines() if line.startswith("VmHWM")]
        assert peak < 400 * 1024, "the refused files took memory"


def test_a_million_frames_a_second(tmp_path: Path) -> None:
    path = encode(tmp_path / "fast.mp4", "libx264", [picture(i) for i in range(NUMBER)], rate=1_000_000)
    video = decode_video(VideoRequest(str(path)))
    assert (len(video.frames), video.fps, video.duration) == (1, 1e6, 1.2e-5)
