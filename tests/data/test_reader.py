import pickle
from multiprocessing import get_context

import pytest

from dgl_scale.data import reader as reader_module
from dgl_scale.data.index import load_split
from dgl_scale.data.reader import SampleReader
from dgl_scale.errors import DataError


def test_every_sample_reads_back_in_any_order(make_split):
    reader = SampleReader(load_split(make_split([1, 2, 0, 3, 1, 1, 4], per_shard=2)))
    for i in (3, 0, 6, 5, 1, 2, 4, 0):
        sample = reader.read(i)
        assert sample.key == f"video_{i}" and len(sample.frames) == 1 + i
        assert all(caption.startswith(f"caption {i}.") for caption in sample.metadata.captions)


def test_a_flipped_byte_names_shard_and_sample_and_spares_the_others(make_split):
    index = load_split(make_split([1, 1, 1], per_shard=3))
    for where in (0, 600, int(index.size[1]) - 1):  # in a header, in a frame, in the padding
        content = bytearray(index.shards[0].read_bytes())
        content[int(index.offset[1]) + where] ^= 1
        index.shards[0].write_bytes(content)
        reader = SampleReader(index)
        with pytest.raises(DataError, match=r"sample video_1 of shard .*tiny-train-000000.tar is damaged .*sha256"):
            reader.read(1)
        assert [reader.read(i).key for i in (0, 2)] == ["video_0", "video_2"]


def test_a_shard_that_vanished_or_shrank_names_the_sample(make_split):
    index = load_split(make_split([1, 1], per_shard=1))
    index.shards[0].unlink()
    index.shards[1].write_bytes(index.shards[1].read_bytes()[:700])
    reader = SampleReader(index)
    with pytest.raises(DataError, match=r"sample video_0 of shard .* cannot be read: No such file"):
        reader.read(0)
    with pytest.raises(DataError, match=r"sample video_1 of shard .* is damaged"):
        reader.read(1)


def test_an_index_of_other_shards_is_noticed(make_split):
    index = load_split(make_split([1, 1], per_shard=2))
    index.keys[0] = "another"
    with pytest.raises(DataError, match="holds sample video_0 where its index says another"):
        SampleReader(index).read(0)


def test_open_files_are_bounded_and_reopened(make_split, monkeypatch):
    monkeypatch.setattr(reader_module, "_MAX_OPEN_SHARDS", 2)
    files = reader_module.ShardFiles()
    index = load_split(make_split([1] * 5, per_shard=1))
    for i in (0, 1, 2, 0, 3, 4, 4, 0):
        assert files.read(index.locate(i)).key == f"video_{i}"
        assert len(files._open) <= 2
    files.close()
    assert not files._open and files.read(index.locate(0)).key == "video_0"


def test_a_copy_opens_its_own_files(make_split):
    reader = SampleReader(load_split(make_split([1, 1])))
    reader.read(0)
    copy = pickle.loads(pickle.dumps(reader))
    reader.close()
    assert copy.read(1).key == "video_1"


def _read_in_child(reader, pipe):
    pipe.send([reader.read(i).key for i in (1, 0)])


def test_a_forked_reader_does_not_disturb_its_parent(make_split):
    reader = SampleReader(load_split(make_split([1, 1, 1])))
    reader.read(0)
    ours, theirs = get_context("fork").Pipe()
    child = get_context("fork").Process(target=_read_in_child, args=(reader, theirs))
    child.start()
    assert reader.read(2).key == "video_2" and ours.recv() == ["video_1", "video_0"]
    child.join(10)
    assert child.exitcode == 0 and reader.read(1).key == "video_1"
