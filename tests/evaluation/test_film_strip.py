"""Strips keep time's order and the first and last frame."""

import io

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from dgl_scale.evaluation.film_strip import film_strip


def grey(level: int, height: int = 40, width: int = 60) -> bytes:
    return simplejpeg.encode_jpeg(np.full((height, width, 3), level, dtype=np.uint8), quality=95)


@pytest.mark.parametrize(
    ("num_frames", "expected"), [(1, [0]), (2, [0, 20]), (6, [0, 20, 40, 60, 80, 100]), (11, [0, 40, 80, 120, 160, 200])]
)
def test_frames_are_spread_over_the_clip(num_frames: int, expected: list[int]) -> None:
    strip = Image.open(io.BytesIO(film_strip([grey(20 * i) for i in range(num_frames)]))).convert("L")
    assert strip.height == 80
    assert strip.width == 120 * len(expected) + 2 * (len(expected) - 1)
    levels = [strip.getpixel((60 + 122 * i, 40)) for i in range(len(expected))]
    assert levels == pytest.approx(expected, abs=4)
