import contextlib
import logging
import multiprocessing
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dgl_scale.data.frames import choose_frames, decode_frames
from dgl_scale.data.index import load_split
from dgl_scale.data.loader import TrainLoader, evaluation_batches
from dgl_scale.data.order import epoch_batches
from dgl_scale.data.reader import SampleReader
from dgl_scale.errors import ConfigError, DataError, DglError

NUM_CAPTIONS = [3, 1, 0, 5, 2, 2, 1, 4, 1, 3, 2, 1, 3, 2, 1, 1, 2]  # 34 pairs of 16 videos
SIZE, FRAMES = 24, 3


@pytest.fixture(scope="module")
def index(make_split):
    return load_split(make_split(NUM_CAPTIONS, per_shard=4))


@pytest.fixture(scope="module")
def build(index, code_points):
    def build_loader(index=index, **changes):
        settings = {"num_frames": FRAMES, "global_batch_size": 8, "micro_batch_size": None, "seed": 3, "rank": 0, "world_size": 1}
        settings |= {"num_workers": 0, "train_frames": "random", "last_batch": "drop", "max_corrupt_fraction": 0.2}
        return TrainLoader(index, code_points, SIZE, **settings | changes)

    return build_loader


def join(steps):
    """Each step's micro-batches as one batch: (frames, tokens, keys)."""
    return [
        (torch.cat([b.frames for b in micro]), torch.cat([b.tokens for b in micro]), tuple(key for b in micro for key in b.keys))
        for micro in steps
    ]


def assert_same(steps, expected):
    assert len(steps) == len(expected)
    for (frames, tokens, keys), (expected_frames, expected_tokens, expected_keys) in zip(steps, expected, strict=True):
        assert keys == expected_keys
        assert torch.equal(frames, expected_frames) and torch.equal(tokens, expected_tokens)


@pytest.fixture(scope="module")
def undisturbed(build):
    """Ten steps of one rank: two epochs and a half."""
    return join(build().steps(0, 10))


def test_batches_are_what_the_order_says(index, code_points, undisturbed):
    reader = SampleReader(index)
    for step, (frames, tokens, keys) in enumerate(undisturbed):
        epoch, batch = divmod(step, 4)
        for row, (video, caption) in enumerate(epoch_batches(index.num_captions, 3, epoch, 8, "drop")[batch].tolist()):
            sample = reader.read(video)
            assert keys[row] == sample.key
            assert torch.equal(tokens[row], code_points([sample.metadata.captions[caption]])[0])
            rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([3, epoch, video, caption])))
            expected = np.empty((FRAMES, 3, SIZE, SIZE), dtype=np.uint8)
            decode_frames(sample.frames, choose_frames(len(sample.frames), FRAMES, rng=rng), SIZE, expected)
            assert np.array_equal(frames[row].numpy(), expected)


def test_batch_format(build):
    (batch,) = next(build(global_batch_size=5).steps(0, 1))
    assert batch.frames.shape == (5, FRAMES, 3, SIZE, SIZE) and batch.frames.dtype == torch.uint8
    assert batch.tokens.shape == (5, 12) and batch.video_index.tolist() == [0, 1, 2, 3, 4] and len(batch.keys) == 5


@given(st.sampled_from([1, 2, 4, 8]), st.sampled_from([None, 1, 2, 3, 5]), st.integers(0, 9))
@settings(max_examples=15, deadline=None)
def test_ranks_and_micro_batches_only_cut_the_global_batch(build, undisturbed, world_size, micro, start):
    stop = min(start + 2, 10)
    parts = [list(build(rank=rank, world_size=world_size, micro_batch_size=micro).steps(start, stop)) for rank in range(world_size)]
    assert all(len(batch.keys) <= (micro or 8) for steps in parts for step in steps for batch in step)
    together = [[batch for rank in ranks for batch in rank] for ranks in zip(*parts, strict=True)]
    assert_same(join(together), undisturbed[start:stop])


@pytest.mark.parametrize(("global_batch_size", "world_size"), [(15, 3), (15, 5), (12, 6), (14, 7)])
def test_world_sizes_that_do_not_divide_eight(build, global_batch_size, world_size):
    whole = join(build(global_batch_size=global_batch_size, last_batch="wrap").steps(1, 3))
    options = {"global_batch_size": global_batch_size, "world_size": world_size, "micro_batch_size": 2, "last_batch": "wrap"}
    parts = [list(build(rank=rank, **options).steps(1, 3)) for rank in range(world_size)]
    assert_same(join([[batch for rank in ranks for batch in rank] for ranks in zip(*parts, strict=True)]), whole)


def test_videos_with_fewer_frames_than_the_model_takes_are_told_once(build, caplog):
    build(num_frames=5)
    build(num_frames=5, rank=1, world_size=2)
    assert [record.getMessage() for record in caplog.records] == [
        "11 of 17 videos have fewer than model.num_frames 5 frames stored; their last frame is repeated"
    ]
    caplog.clear()
    build(num_frames=1)
    assert not caplog.records


def test_workers_change_nothing_and_serve_any_range_again(build, undisturbed):
    loader = build(num_workers=2, micro_batch_size=3, stall_timeout_s=20.0)
    assert_same(join(loader.steps(5, 8)), undisturbed[5:8])
    abandoned = loader.steps(0, 10)
    next(abandoned)
    assert_same(join(loader.steps(2, 4)), undisturbed[2:4])
    assert_same(join(loader.steps(4, 4)), [])
    interrupted = loader.steps(0, 9)
    next(interrupted)
    with contextlib.suppress(RuntimeError):  # DataLoader says it wherever this process is at that moment, here too
        for worker in multiprocessing.active_children():
            worker.kill()
        time.sleep(0.5)
    for steps in (interrupted, loader.steps(0, 1)):
        with pytest.raises(DglError, match=r"a reading process died .*lower data.num_workers") as error:
            list(steps)
        assert "\n" not in str(error.value)


def test_loading_leaves_torchs_global_random_numbers_alone(build):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    list(build().steps(0, 2))
    assert torch.equal(torch.rand(3), expected)


def test_an_epoch_holds_every_pair_once(build, code_points):
    captions = [tokens for _, step_tokens, _ in join(build(last_batch="wrap").steps(0, 5)) for tokens in step_tokens.tolist()]
    expected = [code_points([f"caption {video}.{c}"])[0].tolist() for video, count in enumerate(NUM_CAPTIONS) for c in range(count)]
    assert sorted(captions[:34]) == sorted(expected) and len(captions) == 40


def test_uniform_frames_are_the_evaluations(build, index, code_points):
    evaluated = {
        key: frames
        for batch in evaluation_batches(index, code_points, SIZE, FRAMES, start=0, stop=17, batch_size=6, num_workers=0)
        for key, frames in zip(batch.keys, batch.frames, strict=True)
    }
    for frames, _, keys in join(build(train_frames="uniform").steps(0, 4)):
        assert all(torch.equal(evaluated[key], frames[row]) for row, key in enumerate(keys))


@pytest.mark.parametrize(("start", "stop", "batch_size", "num_workers"), [(0, 17, 5, 0), (0, 17, 5, 2), (1, 4, 8, 0), (4, 4, 3, 0)])
def test_evaluation_gives_each_video_once_with_all_captions(index, code_points, start, stop, batch_size, num_workers):
    options = {"start": start, "stop": stop, "batch_size": batch_size, "num_workers": num_workers}
    batches = list(evaluation_batches(index, code_points, SIZE, FRAMES, **options))
    assert [key for batch in batches for key in batch.keys] == [f"video_{i}" for i in range(start, stop)]
    assert all(len(batch.keys) == batch_size for batch in batches[:-1])
    for batch in batches:
        assert batch.frames.shape == (len(batch.keys), FRAMES, 3, SIZE, SIZE)
        videos = [int(key.removeprefix("video_")) for key in batch.keys]
        described = [(row, c) for row, video in enumerate(videos) for c in range(NUM_CAPTIONS[video])]
        assert batch.video_index.tolist() == [row for row, _ in described] and batch.video_index.dtype == torch.int64
        assert torch.equal(batch.tokens, code_points([f"caption {videos[row]}.{c}" for row, c in described]))


def test_sizes_that_cannot_work_are_refused_at_once(build):
    with pytest.raises(ConfigError, match="global_batch_size 35 is larger than the 34 pairs"):
        build(global_batch_size=35)
    with pytest.raises(ConfigError, match="global_batch_size 8 cannot be shared equally by 3 ranks"):
        build(world_size=3)


def flip_byte(index, i, where=700):
    content = bytearray(index.shards[index.shard[i]].read_bytes())
    content[int(index.offset[i]) + where] ^= 1
    index.shards[index.shard[i]].write_bytes(content)


@pytest.fixture
def damaged(make_split):
    index = load_split(make_split(NUM_CAPTIONS, per_shard=4))
    for i in (3, 7, 12):
        flip_byte(index, i)
    return index


def test_unreadable_samples_are_replaced_by_the_same_ones_everywhere(build, damaged, undisturbed, caplog):
    caplog.set_level(logging.WARNING)
    loader = build(damaged)
    whole = join(loader.steps(0, 8))
    assert set(loader.corrupt) == {"video_3", "video_7", "video_12"}
    assert all(key in error and "is damaged" in error for key, error in loader.corrupt.items())
    skipped = [record.args[0] for record in caplog.records if record.msg.startswith("skipped")]
    assert sorted(skipped) == sorted(loader.corrupt.values())
    for (frames, tokens, keys), (clean_frames, clean_tokens, clean_keys) in zip(whole, undisturbed[:8], strict=True):
        for row, key in enumerate(clean_keys):
            if key in loader.corrupt:
                assert keys[row] not in loader.corrupt and keys[row] not in clean_keys
            else:
                assert keys[row] == key and torch.equal(frames[row], clean_frames[row]) and torch.equal(tokens[row], clean_tokens[row])
    parts = [list(build(damaged, rank=rank, world_size=4, micro_batch_size=1).steps(3, 8)) for rank in range(4)]
    assert_same(join([[batch for rank in ranks for batch in rank] for ranks in zip(*parts, strict=True)]), whole[3:8])
    assert_same(join(build(damaged, num_workers=1).steps(3, 8)), whole[3:8])


def test_too_many_unreadable_samples_stop_the_run(build, damaged):
    with pytest.raises(
        DataError, match=r"3 of 17 samples of .* cannot be read, more than data.max_corrupt_fraction 0.15; the latest: sample video_"
    ) as error:
        list(build(damaged, max_corrupt_fraction=0.15).steps(0, 8))
    assert "\n" not in str(error.value)


def test_nothing_readable_is_left(make_split, build):
    index = load_split(make_split([1] * 4))
    for i in range(4):
        flip_byte(index, i)
    with pytest.raises(DataError, match=r"no readable sample of .* is left"):
        list(build(index, global_batch_size=2, max_corrupt_fraction=1.0).steps(0, 1))


def test_a_frame_that_is_no_jpeg_counts_as_unreadable(build, damaged, tmp_path, make_split):
    conftest = make_split.__globals__
    sample = conftest["make_sample"]("bad", 2, ["caption"])
    good = [conftest["make_sample"](f"good_{i}", 2, ["caption"]) for i in range(9)]
    bad = type(sample)("bad", [b"no jpeg", b"none"], sample.metadata)
    loader = build(load_split(conftest["write_split"](tmp_path / "split", [*good, bad])), global_batch_size=5)
    keys = [key for _, _, keys in join(loader.steps(0, 2)) for key in keys]
    assert len(keys) == 10 and "bad" not in keys and list(loader.corrupt) == ["bad"]
    assert "sample bad of shard" in loader.corrupt["bad"] and "no valid JPEG" in loader.corrupt["bad"]


def test_evaluation_refuses_an_unreadable_sample(damaged, code_points):
    batches = evaluation_batches(damaged, code_points, SIZE, FRAMES, start=0, stop=17, batch_size=2, num_workers=0)
    next(batches)
    with pytest.raises(DataError, match=r"sample video_3 of shard .* is damaged"):
        list(batches)
