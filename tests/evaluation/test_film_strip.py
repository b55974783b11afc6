"""Strips keep time's order and the first and last frame."""

import io

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from dgl_scale.evaluation.film_strip import FINE, SMALL, StripFormat, film_strip


def grey(level: int, height: int = 40, width: int = 60) -> bytes:
    return simplejpeg.encode_jpeg(np.full((height, width, 3), level, dtype=np.uint8), quality=95)


@pytest.mark.parametrize(
    ("form", "num_frames", "expected"),
    [
        (FINE, 1, [0]),
        (FINE, 2, [0, 20]),
        (FINE, 6, [0, 20, 40, 60, 80, 100]),
        (FINE, 11, [0, 40, 80, 120, 160, 200]),
        (SMALL, 10, [0, 60, 120, 180]),
    ],
)
def test_frames_are_spread_over_the_clip(form: StripFormat, num_frames: int, expected: list[int]) -> None:
    strip = film_strip([grey(20 * i) for i in range(num_frames)], form)
    picture = Image.open(io.BytesIO(strip.content)).convert("L")
    width = form.height * 60 // 40
    assert picture.size == (strip.width, strip.height) == ((width + 2) * len(expected) - 2, form.height)
    levels = [picture.getpixel((width // 2 + (width + 2) * i, form.height // 2)) for i in range(len(expected))]
    assert levels == pytest.approx(expected, abs=6)


def test_large_frames_are_as_sharp_as_small_ones() -> None:
    frame = np.zeros((720, 1280, 3), dtype=np.uint8)
    frame[:, 640:] = 255
    strip = Image.open(io.BytesIO(film_strip([simplejpeg.encode_jpeg(frame, quality=95)]).content)).convert("L")
    assert strip.size == (142, 80)
    assert strip.getpixel((65, 40)) < 30
    assert strip.getpixel((77, 40)) > 225
