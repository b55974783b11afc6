import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgl_scale.data.order import EpochOrder, epoch_batches, rank_places, rank_slice, replacements, steps_per_epoch
from dgl_scale.errors import ConfigError

captions_per_video = st.lists(st.integers(0, 9), min_size=1, max_size=23).filter(lambda counts: sum(counts) > 0)


@st.composite
def epochs(draw):
    counts = draw(captions_per_video)
    return np.array(counts), draw(st.integers(1, min(13, sum(counts)))), draw(st.integers(0, 3)), draw(st.integers(0, 3))


@given(epochs())
@settings(max_examples=300, deadline=None)
def test_every_pair_once_and_no_video_twice_while_others_are_left(case):
    counts, size, seed, epoch = case
    pairs = {(video, caption) for video, count in enumerate(counts) for caption in range(count)}
    left = set(pairs)
    batches = epoch_batches(counts, seed, epoch, size, "drop")
    assert batches.shape == (len(pairs) // size, size, 2)
    for batch in batches.tolist():
        taken = {tuple(pair) for pair in batch}
        assert len(taken) == size and taken <= left
        assert len({video for video, _ in taken}) == min(size, len({video for video, _ in left}))
        left -= taken
    assert len(left) == len(pairs) % size


@given(epochs())
@settings(max_examples=300, deadline=None)
def test_wrap_adds_one_batch_that_ends_with_pairs_of_the_start(case):
    counts, size, seed, epoch = case
    dropped = epoch_batches(counts, seed, epoch, size, "drop")
    wrapped = epoch_batches(counts, seed, epoch, size, "wrap")
    assert np.array_equal(wrapped[: len(dropped)], dropped)
    assert len(wrapped) == -(-counts.sum() // size)
    occurrences = [tuple(pair) for pair in wrapped.reshape(-1, 2).tolist()]
    assert set(occurrences) == {(video, caption) for video, count in enumerate(counts) for caption in range(count)}
    last = occurrences[-size:]
    assert len(set(last)) == size
    own = last[: counts.sum() % size or size]
    # What the fill may choose from: every pair but the last batch's own.
    possible = min(size, len({video for video, count in enumerate(counts) if count}))
    if len({video for video, _ in own}) == len(own):
        assert len({video for video, _ in last}) == possible


@given(epochs())
@settings(max_examples=300, deadline=None)
def test_no_batch_repeats_a_video_when_none_has_more_captions_than_there_are_whole_batches(case):
    counts, size, seed, epoch = case
    while counts.max() > counts.sum() // size:
        counts = np.minimum(counts, counts.max() - 1)
    if counts.sum() < size:
        return
    for batch in epoch_batches(counts, seed, epoch, size, "wrap"):
        assert len(set(batch[:, 0].tolist())) == size


def test_a_dropped_last_batch_favours_no_video():
    dropped = np.zeros(20)
    for epoch in range(300):
        dropped += 3 - np.bincount(epoch_batches(np.full(20, 3), 0, epoch, 8, "drop")[:, :, 0].ravel(), minlength=20)
    # 4 of 60 pairs are dropped: 60 times a video in 300 epochs, give or take five deviations.
    assert dropped.sum() == 4 * 300 and np.abs(dropped - 60).max() < 5 * np.sqrt(60)


def test_order_is_pinned_so_that_old_runs_resume():
    batches = epoch_batches(np.array([2, 0, 1, 4]), 42, 1, 2, "wrap")
    assert batches.tolist() == [[[3, 1], [0, 1]], [[3, 3], [2, 0]], [[3, 2], [0, 0]], [[3, 0], [0, 1]]]


def test_seed_and_epoch_change_the_order():
    counts = np.full(40, 3)
    seen = {epoch_batches(counts, seed, epoch, 8, "drop").tobytes() for seed in range(3) for epoch in range(3)}
    assert len(seen) == 9


def test_captions_of_a_video_are_spread_over_the_epoch_and_batches_differ_in_company():
    counts = np.full(60, 10)
    batches = epoch_batches(counts, 0, 0, 12, "drop")
    for video in range(60):
        places = np.flatnonzero((batches[:, :, 0] == video).any(axis=1))
        # Neighbouring shares of a tenth each: at most two tenths apart, and a batch or two of waiting.
        assert len(places) == 10 and np.diff(places).max() <= 2 * len(batches) / 10 + 2
    companies = {frozenset(batch[:, 0].tolist()) for batch in batches}
    assert len(companies) == len(batches)


def test_caption_order_within_a_video_is_random():
    order = epoch_batches(np.full(50, 4), 0, 0, 1, "drop").reshape(-1, 2)
    firsts = [int(order[order[:, 0] == video][0, 1]) for video in range(50)]
    assert set(firsts) == {0, 1, 2, 3}


def test_steps_per_epoch():
    assert [steps_per_epoch(13, 4, mode) for mode in ("drop", "wrap")] == [3, 4]
    assert [steps_per_epoch(12, 4, mode) for mode in ("drop", "wrap")] == [3, 3]
    with pytest.raises(ConfigError, match="global_batch_size 14 is larger than the 13 pairs of the split; choose at most 13"):
        steps_per_epoch(13, 14, "wrap")


@given(st.integers(1, 8), st.integers(1, 7), st.one_of(st.none(), st.integers(1, 9)))
def test_slices_of_all_ranks_join_to_the_batch(world_size, share, micro):
    batch = np.arange(2 * share * world_size).reshape(-1, 2)
    slices = [rank_slice(batch, rank, world_size, micro) for rank in range(world_size)]
    assert np.array_equal(np.concatenate([piece for pieces in slices for piece in pieces]), batch)
    sizes = {tuple(len(piece) for piece in pieces) for pieces in slices}
    assert len(sizes) == 1
    assert all(size == min(micro or share, share) for size in next(iter(sizes))[:-1])


def test_world_size_that_does_not_divide_names_sizes_that_do():
    with pytest.raises(
        ConfigError, match="global_batch_size 512 cannot be shared equally by 6 ranks; use a batch of 510 or 516, or 4 or 8 ranks"
    ):
        rank_places(512, 0, 6, None)
    with pytest.raises(ConfigError, match="global_batch_size 4 cannot be shared equally by 6 ranks; use a batch of 6, or 4 ranks"):
        rank_places(4, 0, 6, None)


def test_replacements_come_from_later_batches_and_from_the_batch_itself_last():
    batches = np.array([[[0, 0], [1, 0]], [[2, 0], [0, 1]], [[3, 0], [4, 0]]])
    assert list(replacements(batches, 0, 0)) == [(2, 0), (3, 0), (4, 0), (1, 0)]
    assert list(replacements(batches, 0, 1)) == [(4, 0), (2, 0), (3, 0), (0, 0)]
    assert list(replacements(batches, 2, 1)) == [(1, 0), (0, 1), (0, 0), (2, 0), (3, 0)]
    assert list(replacements(batches[:1], 0, 1)) == [(0, 0)]


def test_epoch_order_gives_each_epoch_whatever_was_asked_before():
    order = EpochOrder(np.array([3, 1, 4]), 5, 2, "drop")
    assert order.steps_per_epoch == 4
    for epoch in (1, 0, 0, 2):
        assert np.array_equal(order.batches(epoch), epoch_batches(np.array([3, 1, 4]), 5, epoch, 2, "drop"))
