"""Which frames of a video are taken, and JPEG bytes to pixels of the model's size."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image

from dgl_scale.errors import DataError

Pixels = npt.NDArray[np.uint8]


def choose_frames(num_available: int, num_frames: int, *, rng: np.random.Generator | None = None) -> list[int]:
    """Indices of `num_frames` frames out of `num_available` (paper: sparse sampling).

    With n available and T wanted, n > T: frame `floor(n/T/2 + n/T*x)` for x = 0 .. T-1, or with `rng` one
    random frame of each of T segments of `floor(n/T)` frames. n <= T: 0 .. n-1, then n-1 again.
    """
    n, t = num_available, num_frames
    if n < 1:
        raise DataError("a video without frames has none to choose from")
    if n <= t:
        return [*range(n), *[n - 1] * (t - n)]
    if rng is None:
        # floor(n/T/2 + n/T*x) = floor(n*(2x+1) / 2T), in integers so that no rounding decides.
        return [n * (2 * x + 1) // (2 * t) for x in range(t)]
    segment = n // t
    return [x * segment + int(place) for x, place in enumerate(rng.integers(0, segment, size=t))]


def decode_frames(jpegs: Sequence[bytes], chosen: Sequence[int], image_size: int, out: Pixels) -> None:
    """Decode `jpegs[i]` for each i of `chosen` into `out`, uint8 `[T, 3, image_size, image_size]`.

    As CLIP prepares images: the short side resized to `image_size` (bicubic), then the centre cut out. A
    frame chosen twice is decoded once.

    Raises:
        DataError: a frame is no valid JPEG.
    """
    previous = -1
    for t, i in enumerate(chosen):
        if i == previous:
            out[t] = out[t - 1]
            continue
        out[t] = fit_frame(decode_jpeg(jpegs[i]), image_size).transpose(2, 0, 1)  # [H, W, 3] -> [3, H, W]
        previous = i


def decode_jpeg(content: bytes) -> Pixels:
    """RGB pixels uint8 `[height, width, 3]` of a JPEG.

    Raises:
        DataError: the bytes are no valid JPEG.
    """
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(content, "RGB")
    except ValueError as error:
        raise DataError(f"a frame is no valid JPEG: {error}") from error
    return pixels


def fit_frame(pixels: Pixels, image_size: int) -> Pixels:
    """`[height, width, 3]` to `[image_size, image_size, 3]`: short side resized, centre cut out."""
    height, width, _ = pixels.shape
    short = min(height, width)
    if short != image_size:
        width, height = image_size * width // short, image_size * height // short
        pixels = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))
    top, left = round((height - image_size) / 2), round((width - image_size) / 2)
    return pixels[top : top + image_size, left : left + image_size]
