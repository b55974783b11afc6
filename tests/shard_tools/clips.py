"""Clips in any format, made by PyAV. Every frame shows its number, its colours, and which way is up."""

import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

LEVEL = 16


def picture(number: int, width: int = 64, height: int = 48) -> np.ndarray:
    """[height, width, 3] uint8: red, green and blue quarters, and at the bottom right the number as a grey level."""
    frame = np.zeros((height, width, 3), np.uint8)
    top, left = height // 2, width // 2
    frame[:top, :left], frame[:top, left:], frame[top:, :left] = (200, 40, 40), (40, 180, 40), (40, 40, 200)
    frame[top:, left:] = LEVEL * number % 256
    return frame


def number_of(frame: np.ndarray) -> int:
    """The number of an upright frame, of any size."""
    height, width = frame.shape[:2]
    return round(float(frame[3 * height // 4 - 2 : 3 * height // 4 + 2, 3 * width // 4 - 2 : 3 * width // 4 + 2].mean()) / LEVEL)


def encode(
    path: Path,
    codec: str,
    frames: Sequence[np.ndarray],
    *,
    pixels: str = "yuv420p",
    rate: int = 10,
    times_ms: Sequence[int] | None = None,
    full_range: bool = False,
    rotation: int = 0,
    options: dict[str, str] | None = None,
) -> Path:
    """Write a video file of [H, W, 3] RGB frames; skips the test where this PyAV has no such encoder.

    Args:
        times_ms: when each frame appears; None: `rate` frames a second.
        rotation: counterclockwise degrees that a player must turn the frames by.
    """
    if codec not in av.codecs_available:
        pytest.skip(f"PyAV {av.__version__} has no encoder {codec}")
    height, width = frames[0].shape[:2]
    path.parent.mkdir(parents=True, exist_ok=True)
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt, stream.thread_count = width, height, pixels, 1
        if full_range:
            stream.codec_context.color_range = 2
        if rotation:
            stream.set_display_rotation(rotation)
        if times_ms is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number, content in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(content, format="rgb24")
            frame = frame.reformat(format=pixels, dst_color_range=2 if full_range else None)
            if times_ms is not None:
                frame.pts, frame.time_base = times_ms[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    # As root, SVT-AV1 gives the thread that calls it real-time priority, and so all that this process starts from then on: everything
    # else on the machine would wait for it.
    os.sched_setscheduler(0, policy, parameters)
    return path
