"""Scenes to pixels: where things are, that they move, that the same scene gives the same bytes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgl_scale.quickstart.rendering import paint, render_clip, render_stills, shape_mask
from dgl_scale.quickstart.scenes import SHAPES, Thing, draw_stills, plan_world

CLIPS = plan_world(7, scale=0.02)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("side", [5, 23, 38])
def test_masks_cover_a_visible_part_of_their_box(shape, side):
    mask = shape_mask(shape, side)
    assert mask.shape == (side, side) and mask.dtype == np.float32
    assert mask.min() >= 0 and mask.max() <= 1
    assert 0.2 < mask.mean() < 0.85


def test_shapes_differ():
    masks = [shape_mask(shape, 29) for shape in SHAPES]
    for i, one in enumerate(masks):
        for other in masks[i + 1 :]:
            assert np.abs(one - other).mean() > 0.05


@settings(max_examples=50, deadline=None)
@given(x=st.floats(0, 1), y=st.floats(0, 1), size=st.floats(0.05, 0.9), shape=st.sampled_from(SHAPES))
def test_paint_stays_inside_and_keeps_to_the_colour(x, y, size, shape):
    canvas = np.full((31, 31, 3), 100, dtype=np.float32)
    paint(canvas, Thing("red", shape), (x, y), size, np.ones(3, dtype=np.float32))
    changed = np.any(canvas != 100, axis=2)
    assert changed.any()
    low = np.minimum(100, Thing("red", shape).rgb) - 1e-3
    high = np.maximum(100, Thing("red", shape).rgb) + 1e-3
    assert (canvas >= low).all() and (canvas <= high).all()


@pytest.mark.parametrize("clip", CLIPS[::11], ids=lambda clip: clip.video_id)
def test_first_thing_then_second_thing(clip):
    frames = render_clip(clip.scene)
    scene = clip.scene
    assert frames.shape == (scene.num_frames, 96, 96, 3) and frames.dtype == np.uint8
    for thing, motion, idx, progress in (
        (scene.first, scene.first_motion, 0, 0.0),
        (scene.second, scene.second_motion, round(scene.switch * scene.num_frames), 0.0),
    ):
        expected = np.full((96, 96, 3), np.nan, dtype=np.float32)
        x, y = np.add(motion.start, progress * np.subtract(motion.end, motion.start))
        blank = np.zeros((96, 96, 3), dtype=np.float32)
        warm = np.array([1.1, 1.0, 0.8], dtype=np.float32)
        paint(blank, thing, (x, y), motion.size, warm)
        solid = blank.sum(axis=2) > 0.999 * np.float32(np.dot(thing.rgb, warm))
        expected[solid] = np.clip(np.dot(np.diag(thing.rgb), warm), 0, 255)
        error = np.nanmean(np.abs(frames[idx] - expected))
        assert error < 10, "the thing's own pixels have its colour, but for noise"


def test_objects_move_and_twins_show_the_same_background():
    clip = CLIPS[0]
    frames, twin = render_clip(clip.scene), render_clip(clip.scene.reversed())
    step = np.abs(frames[0].astype(int) - frames[round(clip.scene.switch * len(frames)) - 1])
    assert (step.max(axis=2) > 60).sum() > 50
    half = len(frames) // 4
    untouched = np.abs(frames[half].astype(int) - twin[half]).max(axis=2) == 0
    assert untouched.mean() > 0.5


def test_same_scene_same_pixels_other_seed_other_noise():
    scene = CLIPS[3].scene
    assert np.array_equal(render_clip(scene), render_clip(scene))
    assert not np.array_equal(render_clip(scene), render_clip(CLIPS[5].scene)[: scene.num_frames])


def test_stills_are_seeded_and_nearly_noiseless():
    stills = draw_stills(np.random.default_rng(3), 11)
    images = render_stills(stills, np.random.default_rng(4))
    assert images.shape == (11, 96, 96, 3) and images.dtype == np.uint8
    assert np.array_equal(images, render_stills(stills, np.random.default_rng(4)))
    for image, still in zip(images, stills, strict=True):
        ground = np.abs(image.astype(int) - still.background).max(axis=2) < 16
        assert ground.mean() > 0.5
