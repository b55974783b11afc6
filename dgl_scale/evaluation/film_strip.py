"""A clip as one small picture: some of its frames side by side."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

_GAP = 2


@dataclass(frozen=True)
class StripFormat:
    """How many frames, how high in pixels, and the quality of the WebP, 0 to 100."""

    frames: int
    height: int
    quality: int


FINE = StripFormat(frames=6, height=80, quality=70)
"""5 to 14 kB a clip of real footage."""
SMALL = StripFormat(frames=4, height=64, quality=40)
"""2 to 5 kB a clip of real footage, so that a page can hold a thousand."""


@dataclass(frozen=True)
class Strip:
    """A WebP and its size in pixels."""

    content: bytes
    width: int
    height: int


def film_strip(frames: Sequence[bytes], form: StripFormat = FINE) -> Strip:
    """Some of the JPEG frames side by side, first and last among them, in order of time."""
    count = min(form.frames, len(frames))
    chosen = [frames[round(i * (len(frames) - 1) / max(1, count - 1))] for i in range(count)]
    images = [_small(frame, form.height) for frame in chosen]
    strip = Image.new("RGB", (sum(image.width + _GAP for image in images) - _GAP, form.height), "white")
    left = 0
    for image in images:
        strip.paste(image, (left, 0))
        left += image.width + _GAP
    stream = io.BytesIO()
    strip.save(stream, "WEBP", quality=form.quality)
    return Strip(stream.getvalue(), strip.width, strip.height)


def _small(frame: bytes, height: int) -> Image.Image:
    image = Image.open(io.BytesIO(frame))
    size = max(1, round(image.width * height / image.height)), height
    # A JPEG can be decoded at a half, quarter or eighth: at twice the size wanted nobody sees the difference.
    image.draft("RGB", (2 * size[0], 2 * height))
    return image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
