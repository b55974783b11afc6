import io
from fractions import Fraction
from math import floor

import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dgl_scale.data.frames import choose_frames, decode_frames, decode_jpeg, fit_frame
from dgl_scale.errors import DataError

counts = st.integers(1, 400)


@given(counts, counts)
def test_evaluation_takes_the_middle_of_equal_parts(n, t):
    expected = [floor(Fraction(n, t) / 2 + Fraction(n, t) * x) for x in range(t)] if n > t else [min(x, n - 1) for x in range(t)]
    assert choose_frames(n, t) == expected


@given(counts, counts, st.integers(0, 9))
def test_training_takes_one_frame_of_each_segment(n, t, seed):
    chosen = choose_frames(n, t, rng=np.random.default_rng(seed))
    assert len(chosen) == t
    if n <= t:
        assert chosen == choose_frames(n, t)
    else:
        assert all(x * (n // t) <= frame < (x + 1) * (n // t) for x, frame in enumerate(chosen))


def test_published_examples():
    assert choose_frames(30, 12) == [1, 3, 6, 8, 11, 13, 16, 18, 21, 23, 26, 28]
    assert choose_frames(13, 4) == [1, 4, 8, 11]
    assert choose_frames(3, 5) == [0, 1, 2, 2, 2]
    with pytest.raises(DataError, match="without frames"):
        choose_frames(0, 4)


def test_random_frames_reach_every_frame_of_a_segment():
    rng = np.random.default_rng(0)
    seen = {tuple(choose_frames(11, 3, rng=rng)) for _ in range(400)}
    assert seen == {(a, b, c) for a in range(3) for b in range(3, 6) for c in range(6, 9)}


def jpeg(height, width, seed=0, mode="RGB"):
    pixels = np.random.default_rng(seed).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC).convert(mode).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def clip_reference(content, size):
    """What CLIP's published preprocessing does, in Pillow alone."""
    image = Image.open(io.BytesIO(content)).convert("RGB")
    width, height = image.size
    if min(width, height) != size:
        scaled = (size, int(size * height / width)) if width <= height else (int(size * width / height), size)
        image = image.resize(scaled, Image.Resampling.BICUBIC)
    width, height = image.size
    left, top = round((width - size) / 2.0), round((height - size) / 2.0)
    return np.asarray(image.crop((left, top, left + size, top + size)))


@pytest.mark.parametrize(("height", "width"), [(32, 32), (32, 43), (57, 32), (64, 48), (31, 90), (20, 33), (32, 37)])
def test_frames_are_prepared_as_clip_does(height, width):
    content = jpeg(height, width)
    out = np.empty((1, 3, 32, 32), dtype=np.uint8)
    decode_frames([content], [0], 32, out)
    assert np.array_equal(out[0].transpose(1, 2, 0), clip_reference(content, 32))


def test_only_chosen_frames_are_decoded_and_repeats_are_copied():
    jpegs = [jpeg(16, 16, seed) for seed in range(3)] + [b"never decoded"]
    out = np.empty((5, 3, 16, 16), dtype=np.uint8)
    decode_frames(jpegs, [0, 2, 2, 2, 1], 16, out)
    for t, i in enumerate([0, 2, 2, 2, 1]):
        assert np.array_equal(out[t].transpose(1, 2, 0), decode_jpeg(jpegs[i]))


def test_grey_frames_become_rgb():
    pixels = decode_jpeg(jpeg(8, 9, mode="L"))
    assert pixels.shape == (8, 9, 3) and np.array_equal(pixels[..., 0], pixels[..., 2])


@pytest.mark.parametrize("content", [b"", b"not a jpeg", jpeg(16, 16)[:40], jpeg(16, 16)[:-60], jpeg(16, 16, mode="CMYK")[:200]])
def test_bytes_that_are_no_jpeg_are_refused_in_one_line(content):
    with pytest.raises(DataError, match="no valid JPEG") as error:
        decode_jpeg(content)
    assert "\n" not in str(error.value)


def test_fit_frame_keeps_what_fits():
    pixels = simplejpeg.decode_jpeg(jpeg(24, 24))
    assert np.array_equal(fit_frame(pixels, 24), pixels)
