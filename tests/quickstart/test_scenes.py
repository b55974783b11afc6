"""The world in symbols: splits that share nothing, captions that are true, twins."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgl_scale.quickstart.scenes import (
    CLEAR_OFFSET,
    FRAMES_PER_SECOND,
    NUM_FRAMES_CHOICES,
    TEMPORAL_TEMPLATES,
    Mixture,
    Still,
    all_things,
    count_stills,
    draw_stills,
    grammar_words,
    plan_world,
    split_pairs,
)

SEED = 5


@pytest.fixture(scope="module")
def world():
    return plan_world(SEED)


def test_counts(world):
    assert Counter(clip.split for clip in world) == {"train": 1200, "validation": 200, "test": 200}
    assert len({clip.video_id for clip in world}) == len(world)


def test_no_caption_and_no_pair_is_shared_between_splits(world):
    captions, pairs = {}, {}
    for clip in world:
        captions.setdefault(clip.split, set()).update(clip.captions)
        pair = frozenset((clip.scene.first, clip.scene.second))
        pairs.setdefault(clip.split, set()).add(pair)
    for one, other in (("train", "test"), ("train", "validation"), ("validation", "test")):
        assert not captions[one] & captions[other]
        assert not pairs[one] & pairs[other]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31))
def test_every_seed_gives_disjoint_pairs(seed):
    owned = [frozenset(pair) for pairs in split_pairs(seed).values() for pair in pairs]
    assert len(owned) == len(set(owned)) == 260


def test_twins_differ_in_order_only(world):
    by_id = {clip.video_id: clip for clip in world}
    for clip in world:
        twin = by_id[clip.twin]
        assert twin.twin == clip.video_id and twin.split == clip.split
        assert twin.scene == clip.scene.reversed() != clip.scene
        assert not set(twin.captions) & set(clip.captions)


def test_captions_name_the_first_thing_first(world):
    for clip in world:
        a, b = clip.scene.first.phrase, clip.scene.second.phrase
        allowed = [template.format(a=a, b=b) for template in TEMPORAL_TEMPLATES]
        assert clip.captions[0] == f"first {a} then {b}"
        assert set(clip.captions) <= set(allowed)
        assert len(set(clip.captions)) == len(clip.captions) <= 3


def test_a_part_of_the_clips_has_several_captions(world):
    share = np.mean([len(clip.captions) > 1 for clip in world])
    assert 0.25 < share < 0.42


def test_scenes_stay_inside_the_image_and_move(world):
    for clip in world:
        for motion in (clip.scene.first_motion, clip.scene.second_motion):
            for position in (*motion.start, *motion.end):
                assert motion.size / 2 - 1e-4 <= position <= 1 - motion.size / 2 + 1e-4
            assert np.hypot(*np.subtract(motion.end, motion.start)) >= 0.25
        assert clip.scene.logo.shape not in (clip.scene.first.shape, clip.scene.second.shape)
        assert 1.5 <= clip.scene.num_frames / FRAMES_PER_SECOND <= 4.0


@pytest.mark.parametrize("num_frames", NUM_FRAMES_CHOICES)
def test_the_last_training_segment_of_four_shows_the_second_thing(num_frames, world):
    stored = num_frames * 3 // FRAMES_PER_SECOND
    last_segment_begins = 3 * (stored // 4) / stored
    assert all(clip.scene.switch <= last_segment_begins for clip in world)


def test_plan_is_a_function_of_the_seed_and_a_small_world_is_part_of_it(world):
    assert plan_world(SEED) == world
    assert plan_world(SEED + 1) != world
    small = plan_world(SEED, scale=0.05)
    assert len(small) == 60 + 10 + 10
    assert set(small) <= set(world)


def test_things_and_words():
    things = all_things()
    assert len(things) == len(set(things)) == 64
    words = set(grammar_words())
    for clip in plan_world(SEED, scale=0.2):
        for caption in clip.captions:
            assert set(caption.split()) <= words


@pytest.mark.parametrize(("places", "mixture"), [(None, Mixture()), (1.0, Mixture(0.1, 0.9, 1.0)), (0.0, Mixture(0.3, 0.7, 0.0))])
def test_stills_come_in_the_stated_mixture(places, mixture):
    stills = draw_stills(np.random.default_rng(0), 53, mixture)
    singles, num_partners = count_stills(53, mixture)
    assert len(stills) == 53
    assert sum(len(still.things) == 1 for still in stills) == singles == round(53 * mixture.singles)
    hard = stills[singles : singles + 2 * num_partners]
    for still, partner in zip(hard[::2], hard[1::2], strict=True):
        assert still.centres == partner.centres and still.caption != partner.caption
        assert Counter(t.colour for t in still.things) == Counter(t.colour for t in partner.things)
        assert Counter(t.shape for t in still.things) == Counter(t.shape for t in partner.things)
        if places is not None:
            assert (set(still.things) == set(partner.things)) == bool(places)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31))
def test_captions_of_stills_are_true(seed):
    for still in draw_stills(np.random.default_rng(seed), 23):
        assert _is_true(still), still


CLAIMS = {
    " on the left and ": (0, 1), " on the right and ": (0, -1), " at the top and ": (1, 1), " at the bottom and ": (1, -1),
    " and then ": (0, 1), " then ": (0, 1), " before ": (0, 1), " followed by ": (0, 1), " left of ": (0, 1), " above ": (1, 1),
}  # fmt: skip
END = {
    " on the left and ": " on the right", " on the right and ": " on the left",
    " at the top and ": " at the bottom", " at the bottom and ": " at the top",
}  # fmt: skip


def _is_true(still: Still) -> bool:
    """Read a caption back into a claim about places and check it, without the grammar's code."""
    if len(still.things) == 1:
        return still.caption == still.things[0].phrase
    place = {thing.phrase: centre for thing, centre in zip(still.things, still.centres, strict=True)}
    caption = still.caption.removeprefix("first ")
    for words, (axis, sign) in CLAIMS.items():
        if words in caption:
            one, other = (part.removesuffix(END[words]) if words in END else part for part in caption.split(words))
            return sign * (place[other][axis] - place[one][axis]) >= CLEAR_OFFSET
    return set(caption.split(" and ")) == set(place)
