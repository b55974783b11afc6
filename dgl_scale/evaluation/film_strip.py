"""A clip as one small picture: some of its frames side by side."""

import io
from collections.abc import Sequence

from PIL import Image

_MAX_FRAMES = 6
_HEIGHT = 80
_GAP = 2
_QUALITY = 80


def film_strip(frames: Sequence[bytes]) -> bytes:
    """JPEG of up to six of the JPEG frames, first and last among them, 80 pixels high, in order of time."""
    count = min(_MAX_FRAMES, len(frames))
    chosen = [frames[round(i * (len(frames) - 1) / max(1, count - 1))] for i in range(count)]
    images = [_small(Image.open(io.BytesIO(frame)).convert("RGB")) for frame in chosen]
    strip = Image.new("RGB", (sum(image.width + _GAP for image in images) - _GAP, _HEIGHT), "white")
    left = 0
    for image in images:
        strip.paste(image, (left, 0))
        left += image.width + _GAP
    stream = io.BytesIO()
    strip.save(stream, "JPEG", quality=_QUALITY)
    return stream.getvalue()


def _small(image: Image.Image) -> Image.Image:
    return image.resize((max(1, round(image.width * _HEIGHT / image.height)), _HEIGHT), Image.Resampling.BICUBIC)
