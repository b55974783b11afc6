"""Scenes and stills to pixels: NumPy and Pillow, no files.

A clip looks otherwise than the stills the small CLIP was trained on: a textured background, sensor
noise, a warm colour cast, and a logo in a corner that no caption speaks of. That shift, and time,
are what prompts have to learn.
"""

from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from dgl_scale.quickstart.scenes import LOGO_SIZE, Motion, Scene, Still, Thing

IMAGE_SIZE = 96
TEXTURE_STD = 0.05
CLIP_NOISE_STD = 0.03
STILL_NOISE_STD = 0.01
"""Standard deviations as fractions of full brightness."""
TEXTURE_CELL = 4
"""Side of a texture cell in pixels."""
WARM_CAST = (1.10, 1.0, 0.80)
"""Factors on red, green and blue: half of what an uncorrected lamp does."""
SUPERSAMPLING = 4
NOISE_BANK_SIZE = 1 << 20
"""Noise is read from one seeded bank at random offsets: drawing 28 thousand normals a frame took
longer than everything else about a frame together."""

BYTE = 255.0


@cache
def shape_mask(shape: str, side: int) -> np.ndarray:
    """Return the anti-aliased coverage of a shape in a box: float32 [side, side], 0 to 1."""
    big = side * SUPERSAMPLING
    image = Image.new("L", (big, big), 0)
    draw = ImageDraw.Draw(image)
    if shape == "circle":
        draw.ellipse((0, 0, big - 1, big - 1), fill=255)
    elif shape == "ring":
        draw.ellipse((0, 0, big - 1, big - 1), fill=255)
        inner = big * 0.27
        draw.ellipse((inner, inner, big - 1 - inner, big - 1 - inner), fill=0)
    elif shape == "heart":
        draw.ellipse((0, 0, big * 0.55, big * 0.55), fill=255)
        draw.ellipse((big * 0.45, 0, big - 1, big * 0.55), fill=255)
        draw.polygon([(big * x, big * y) for x, y in _OUTLINES["heart"]], fill=255)
    else:
        draw.polygon([(big * x, big * y) for x, y in _OUTLINES[shape]], fill=255)
    small = image.resize((side, side), Image.Resampling.BOX)
    mask = np.asarray(small, dtype=np.float32) / BYTE
    mask.setflags(write=False)  # the cache hands out one array to all
    return mask


def _star_outline() -> list[tuple[float, float]]:
    angles = -np.pi / 2 + np.arange(10) * np.pi / 5
    radii = np.where(np.arange(10) % 2 == 0, 0.5, 0.21)
    return [(0.5 + r * np.cos(a), 0.5 + r * np.sin(a)) for r, a in zip(radii, angles, strict=True)]


_OUTLINES: dict[str, list[tuple[float, float]]] = {
    "square": [(0.06, 0.06), (0.94, 0.06), (0.94, 0.94), (0.06, 0.94)],
    "triangle": [(0.5, 0.02), (0.98, 0.95), (0.02, 0.95)],
    "diamond": [(0.5, 0.0), (0.85, 0.5), (0.5, 1.0), (0.15, 0.5)],
    "cross": [
        (0.34, 0.0), (0.66, 0.0), (0.66, 0.34), (1.0, 0.34), (1.0, 0.66), (0.66, 0.66),
        (0.66, 1.0), (0.34, 1.0), (0.34, 0.66), (0.0, 0.66), (0.0, 0.34), (0.34, 0.34),
    ],
    "star": _star_outline(),
    "heart": [(0.06, 0.43), (0.5, 0.18), (0.94, 0.43), (0.5, 0.98)],
}  # fmt: skip


def paint(canvas: np.ndarray, thing: Thing, centre: tuple[float, float], size: float, gain: np.ndarray) -> None:
    """Blend a thing into `canvas` (float32 [H, W, 3], 0 to 255) in place.

    `centre` and `size` are fractions of the side; `gain` [3] multiplies the thing's colour.
    """
    side = canvas.shape[0]
    width = max(4, round(size * side))
    left = min(max(round(centre[0] * side - width / 2), 0), side - width)
    top = min(max(round(centre[1] * side - width / 2), 0), side - width)
    box = canvas[top : top + width, left : left + width]
    mask = shape_mask(thing.shape, width)[:, :, None]
    colour = np.asarray(thing.rgb, dtype=np.float32) * gain
    box += mask * (colour - box)


def render_clip(scene: Scene, *, image_size: int = IMAGE_SIZE) -> np.ndarray:
    """Return the frames of a scene: uint8 [F, H, W, 3], F = `scene.num_frames`."""
    rng = np.random.default_rng(scene.pixel_seed)
    gain = np.asarray(WARM_CAST, dtype=np.float32)
    still_part = _textured_background(rng, scene.background, image_size) * gain
    paint(still_part, scene.logo, _corner(scene.logo_corner), LOGO_SIZE, gain)
    noise = _noise_bank() * np.float32(CLIP_NOISE_STD * BYTE)
    offsets = rng.integers(NOISE_BANK_SIZE - still_part.size, size=scene.num_frames)
    frames = np.empty((scene.num_frames, image_size, image_size, 3), dtype=np.uint8)
    switch_frame = round(scene.switch * scene.num_frames)
    for idx, offset in enumerate(offsets):
        canvas = still_part.copy()
        if idx < switch_frame:
            thing, motion, progress = scene.first, scene.first_motion, idx / switch_frame
        else:
            progress = (idx - switch_frame) / (scene.num_frames - switch_frame)
            thing, motion = scene.second, scene.second_motion
        paint(canvas, thing, _position(motion, progress), motion.size, gain)
        canvas += noise[offset : offset + canvas.size].reshape(canvas.shape)
        frames[idx] = np.clip(canvas, 0, BYTE, out=canvas)
    return frames


def render_stills(stills: list[Still], rng: np.random.Generator, *, image_size: int = IMAGE_SIZE) -> np.ndarray:
    """Return stills as uint8 [N, H, W, 3]; `rng` draws their noise."""
    gain = np.ones(3, dtype=np.float32)
    noise = _noise_bank() * np.float32(STILL_NOISE_STD * BYTE)
    images = np.empty((len(stills), image_size, image_size, 3), dtype=np.uint8)
    for idx, still in enumerate(stills):
        canvas = np.empty(images.shape[1:], dtype=np.float32)
        canvas[:] = still.background
        for thing, centre, size in zip(still.things, still.centres, still.sizes, strict=True):
            paint(canvas, thing, centre, size, gain)
        offset = rng.integers(NOISE_BANK_SIZE - canvas.size)
        canvas += noise[offset : offset + canvas.size].reshape(canvas.shape)
        images[idx] = np.clip(canvas, 0, BYTE, out=canvas)
    return images


@cache
def _noise_bank() -> np.ndarray:
    bank = np.random.default_rng(0).standard_normal(NOISE_BANK_SIZE, dtype=np.float32)
    bank.setflags(write=False)
    return bank


def _textured_background(rng: np.random.Generator, colour: tuple[int, int, int], image_size: int) -> np.ndarray:
    """Return colour plus smooth blotches, float32 [H, W, 3]."""
    cells = image_size // TEXTURE_CELL
    blotches = rng.standard_normal((cells, cells), dtype=np.float32)
    smooth = Image.fromarray(blotches).resize((image_size, image_size), Image.Resampling.BICUBIC)
    texture = np.asarray(smooth) * np.float32(TEXTURE_STD * BYTE)
    return np.asarray(colour, dtype=np.float32) + texture[:, :, None]


def _corner(corner: int) -> tuple[float, float]:
    near, far = LOGO_SIZE / 2, 1 - LOGO_SIZE / 2
    return (far if corner % 2 else near, far if corner >= 2 else near)


def _position(motion: Motion, progress: float) -> tuple[float, float]:
    (x0, y0), (x1, y1) = motion.start, motion.end
    return x0 + (x1 - x0) * progress, y0 + (y1 - y0) * progress
