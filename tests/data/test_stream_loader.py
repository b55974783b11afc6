"""Foreign WebDataset shards, written by webdataset itself."""

import logging
from collections import Counter

import numpy as np
import pytest
import simplejpeg
import torch
import webdataset

from dgl_scale.config import DataConfig, StreamingConfig
from dgl_scale.data.stream import shard_sequence
from dgl_scale.data.stream_loader import StreamLoader
from dgl_scale.errors import ConfigError, DataError

SHARDS, PER_SHARD = 8, 6
SIZE = 16


def jpeg(value):
    return simplejpeg.encode_jpeg(np.full((SIZE, SIZE, 3), value, dtype=np.uint8), quality=95)


def write_shards(folder, name="s", first=0, frames=1):
    """Sample n has grey frames of value n and the caption `name n`."""
    folder.mkdir(exist_ok=True)
    for shard in range(SHARDS):
        with webdataset.TarWriter(str(folder / f"{name}-{shard:03d}.tar")) as writer:
            for number in range(first + shard * PER_SHARD, first + (shard + 1) * PER_SHARD):
                members = {f"{t:03d}.jpg": jpeg(number) for t in range(frames)} if frames > 1 else {"jpg": jpeg(number)}
                writer.write({"__key__": f"{name}{number}", **members, "txt": f"{name} {number}"})
    return f"{folder}/{name}-{{000..{SHARDS - 1:03d}}}.tar"


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("stream"))


@pytest.fixture
def build(shards, code_points):
    def build_loader(sources=None, streaming=None, **changes):
        config = StreamingConfig(
            sources=sources or [{"shards": shards, "samples": SHARDS * PER_SHARD}], **{"shuffle_buffer": 5, **(streaming or {})}
        )
        options = {"num_frames": 2, "global_batch_size": 6, "micro_batch_size": None, "seed": 3, "rank": 0, "world_size": 1}
        options |= {"num_workers": 0, "train_frames": "random", "max_corrupt_fraction": 0.2}
        return StreamLoader(config, code_points, SIZE, **options | changes)

    return build_loader


def keys_of(steps):
    return [[key for batch in step for key in batch.keys] for step in steps]


def test_batches_hold_frames_and_captions_that_belong_together(build, code_points):
    loader = build(micro_batch_size=4)
    assert loader.steps_per_epoch == 8
    for micro in loader.steps(0, 3):
        assert [len(batch.keys) for batch in micro] == [4, 2]
        for batch in micro:
            assert batch.frames.shape[1:] == (2, 3, SIZE, SIZE) and batch.frames.dtype == torch.uint8
            assert batch.video_index.tolist() == list(range(len(batch.keys)))
            for row, key in enumerate(batch.keys):
                assert torch.equal(batch.tokens[row], code_points([f"s {key[1:]}"])[0])
                assert abs(float(batch.frames[row].float().mean()) - int(key[1:])) < 2
    assert loader.corrupt == {}


def test_the_same_run_sees_the_same_batches_and_other_seeds_others(build):
    assert keys_of(build().steps(0, 8)) == keys_of(build().steps(0, 8)) != keys_of(build(seed=4).steps(0, 8))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_rank_has_the_same_number_of_batches_and_an_epoch_every_sample_nearly_once(build, world_size):
    ranks = [keys_of(build(rank=rank, world_size=world_size).steps(0, 8)) for rank in range(world_size)]
    assert all([len(keys) for keys in steps] == [6 // world_size] * 8 for steps in ranks)
    counts = Counter(key for steps in ranks for keys in steps for key in keys)
    # The shuffle buffers still hold some of the first pass; 8 shards for 3 ranks reach further into the second.
    assert len(counts) >= 48 - 6 * world_size and max(counts.values()) <= 2


def test_it_goes_on_at_the_shard_where_the_run_was(build):
    loader = build(streaming={"shuffle_buffer": 0})
    assert loader.position(4) == (0, [4]) and loader.position(17) == (2, [17])
    order = list(zip(range(16), shard_sequence(SHARDS, "3 0", 0, 1), strict=False))
    going_on = [int(key[1:]) // PER_SHARD for keys in keys_of(loader.steps(4, 12)) for key in keys]
    assert going_on == [shard for _, shard in order[4:12] for _ in range(PER_SHARD)]
    assert keys_of(loader.steps(4, 6)) == keys_of(build(streaming={"shuffle_buffer": 0}).steps(4, 6))


def test_passes_differ_and_hold_every_shard_once():
    places = shard_sequence(5, "seed", 0, 1)
    passes = [[next(places) for _ in range(5)] for _ in range(4)]
    assert all(sorted(order) == list(range(5)) for order in passes) and len({tuple(order) for order in passes}) > 1
    every_third = shard_sequence(5, "seed", 4, 3)
    whole = [shard for order in passes for shard in order]
    assert [next(every_third) for _ in range(5)] == whole[4:19:3]


def test_sources_come_by_their_weights(build, shards, tmp_path):
    other = write_shards(tmp_path, "o", first=100, frames=3)
    sources = [{"shards": shards, "samples": 48, "weight": 3}, {"shards": other, "samples": 48, "weight": 1}]
    loader = build(sources)
    assert loader.num_samples == 96 and loader.position(16) == (1, [12, 4])
    counts = Counter(key[0] for keys in keys_of(loader.steps(0, 60)) for key in keys)
    assert abs(counts["s"] / 360 - 0.75) < 0.07


@pytest.mark.slow
def test_workers_read_streams_of_their_own(build):
    loader = build(num_workers=2)
    steps = keys_of(loader.steps(0, 4))
    assert len({key for keys in steps for key in keys}) == 24
    assert keys_of(loader.steps(0, 4)) == steps


def damage(shards, number, length=2000):
    path = shards.replace("{000..007}", f"{number:03d}")
    content = open(path, "rb").read()  # noqa: SIM115
    open(path, "wb").write(content[:length])  # noqa: SIM115
    return path


def test_shards_and_samples_that_cannot_be_read_are_skipped_named_and_counted(build, tmp_path, caplog):
    shards = write_shards(tmp_path)
    cut = damage(shards, 2)
    with webdataset.TarWriter(shards.replace("{000..007}", "005")) as writer:
        writer.write({"__key__": "mute", "jpg": jpeg(0)})
        writer.write({"__key__": "noise", "jpg": b"noise", "txt": "noise"})
        writer.write({"__key__": "good", "jpg": jpeg(7), "txt": "good"})
    caplog.set_level(logging.WARNING)
    loader = build([{"shards": shards, "samples": 48}], max_corrupt_fraction=0.5)
    keys = [key for keys in keys_of(loader.steps(0, 8)) for key in keys]
    assert "good" in keys and "mute" not in keys and "noise" not in keys
    assert loader.corrupt.keys() == {cut, f"sample mute of shard {cut[:-7]}005.tar", f"sample noise of shard {cut[:-7]}005.tar"}
    assert "no caption" in loader.corrupt[f"sample mute of shard {cut[:-7]}005.tar"]
    assert len(caplog.records) == 3
    with pytest.raises(DataError, match=r"about \d+ samples of data.streaming cannot be read, more than .*; the latest: ") as error:
        list(build([{"shards": shards, "samples": 48}], max_corrupt_fraction=0.1).steps(0, 8))
    assert "\n" not in str(error.value)


def test_shards_of_which_none_has_a_sample_end_the_run(build, tmp_path):
    shards = write_shards(tmp_path)
    for number in range(SHARDS):
        webdataset.TarWriter(shards.replace("{000..007}", f"{number:03d}")).close()
    with pytest.raises(DataError, match=r"none of 8 shards, .* among them, holds a sample that can be read"):
        list(build([{"shards": shards, "samples": 48}], max_corrupt_fraction=1.0).steps(0, 1))


def test_commands_run_only_where_allowed(build, shards):
    sources = [{"shards": f"pipe:cat {shards}", "samples": 48}]
    with pytest.raises(ConfigError, match=r"sources\[0\]: pipe:cat .*000.tar would run a shell command; set data.streaming.allow_pipe"):
        build(sources)
    piped = build(sources, {"allow_pipe": True, "shuffle_buffer": 0})
    assert keys_of(piped.steps(0, 4)) == keys_of(build(streaming={"shuffle_buffer": 0}).steps(0, 4))


def test_a_command_that_fails_names_itself_without_secrets(build):
    sources = [{"shards": "pipe:exit {1..8} '#' https://me:hush4711@host/x?token=hush4711", "samples": 48}]
    with pytest.raises(DataError, match=r"the latest: pipe:exit \d '#' https://host/x: ") as error:
        list(build(sources, {"allow_pipe": True}).steps(0, 1))
    assert "hush4711" not in str(error.value)


def test_a_command_that_fails_at_its_end_is_a_bad_shard(build, shards):
    loader = build([{"shards": f"pipe:cat {shards}; exit 3", "samples": 48}], {"allow_pipe": True, "samples_per_epoch": 4800})
    batches = loader.steps(0, 100)
    while not loader.corrupt:
        next(batches)
    assert "the command ended with exit 3" in loader.corrupt.values()


def test_a_command_that_hangs_is_named(build):
    loader = build([{"shards": "pipe:sleep {1000..1007}", "samples": 48}], {"allow_pipe": True}, stall_timeout_s=0.5)
    with pytest.raises(DataError, match=r"reading stalled: opening shard pipe:sleep 100\d, and nothing for"):
        list(loader.steps(0, 1))


@pytest.mark.parametrize(
    ("sources", "changes", "kind", "message"),
    [
        (None, {"global_batch_size": 49}, ConfigError, "global_batch_size 49 is larger than the 48 samples of an epoch"),
        (
            None,
            {"world_size": 4, "global_batch_size": 8, "num_workers": 3},
            ConfigError,
            "8 shards for 12 .*on 4 ranks.*at most 2",
        ),
        (None, {"world_size": 16, "global_batch_size": 16}, ConfigError, "each needs one of its own, so write more, smaller shards"),
        ("/nowhere/{0..3}.tar", {}, DataError, r"4 of 4 shards are not there \(/nowhere/0.tar first\)"),
        ("ftp://host/{0..3}.tar", {}, ConfigError, "ftp:// is not supported"),
    ],
)
def test_what_cannot_work_is_refused_at_once(build, sources, changes, kind, message):
    with pytest.raises(kind, match=message) as error:
        build(sources and [{"shards": sources, "samples": 48}], **changes)
    assert "\n" not in str(error.value)


def test_train_and_streaming_exclude_each_other(shards):
    streaming = {"sources": [{"shards": shards, "samples": 48}]}
    with pytest.raises(ValueError, match="give train or streaming, not both"):
        DataConfig(train="a", streaming=streaming)
    with pytest.raises(ValueError, match="exclude needs an index"):
        DataConfig(exclude="a", streaming=streaming)
