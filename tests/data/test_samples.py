import io
import json
import tarfile
from dataclasses import asdict, replace

import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from dgl_scale.data.samples import MAX_FRAMES, Sample, SampleMetadata, check_key, decode_members, decode_tar_range, encode_members
from dgl_scale.errors import DataError

METADATA = SampleMetadata(
    "a/video", ["ein Hund 狗 🐶"], "train", 0.5, 2.0, 1.5, 29.97, [0.5, 0.9], 32, 24, "videos/a.mp4", {"licence": "CC"}
)

keys = st.from_regex(r"[A-Za-z0-9_-]{1,90}", fullmatch=True)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
samples = st.builds(
    lambda key, frames, captions, extra: Sample(key, frames, replace(METADATA, captions=captions, extra={"note": extra})),
    keys,
    st.lists(st.binary(max_size=1100), min_size=1, max_size=7),
    st.lists(texts, max_size=3),
    texts,
)


def write_tar(sample, format=tarfile.USTAR_FORMAT):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=format) as tar:
        for name, content in encode_members(sample):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        end = tar.offset
    return stream.getvalue()[:end], stream.getvalue()


@given(samples, st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
@settings(max_examples=60, deadline=None)
def test_samples_survive_any_tar_format(sample, format):
    plain, with_end_mark = write_tar(sample, format)
    assert decode_tar_range(plain) == sample
    assert decode_tar_range(with_end_mark) == sample


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_take_the_slow_way_and_agree(format):
    sample = Sample("k" * 95, [b"x"], METADATA)  # with ".000.jpg" more than the 100 bytes of a plain header
    if format == tarfile.USTAR_FORMAT:
        with pytest.raises(ValueError, match="name is too long"):
            write_tar(sample, format)
    else:
        assert decode_tar_range(write_tar(sample, format)[0]) == sample


def test_a_webdataset_tar_takes_the_fast_way(monkeypatch):
    stream = io.BytesIO()
    sample = Sample("clip", [bytes(range(256)) * 3] * 4, METADATA)
    writer = webdataset.TarWriter(stream, encoder=False, mtime=0)
    writer.write({"__key__": "clip"} | {name.partition(".")[2]: content for name, content in encode_members(sample)})
    end = writer.tarstream.offset
    writer.close()
    monkeypatch.setattr(tarfile, "open", None)
    assert decode_tar_range(stream.getvalue()[:end]) == sample


def test_members_are_sorted_as_tar_readers_expect():
    for count in (1, 3, 1001):
        names = [name for name, _ in encode_members(Sample("clip", [b"x"] * count, METADATA))]
        assert names == sorted(names) and names[-1] == "clip.json" and len(names) == count + 1


def test_bytes_are_the_same_for_the_same_sample():
    sample = Sample("clip", [b"x"], METADATA)
    again = Sample("clip", [b"x"], replace(METADATA, extra=dict(METADATA.extra)))
    assert encode_members(sample) == encode_members(again)
    assert encode_members(sample)[-1][1].decode().startswith('{"captions":["ein Hund 狗 🐶"]')


@pytest.mark.parametrize("key", ["", "a.b", "a/b", "..", "a b", "ä", "a\n"])
def test_keys_that_readers_would_cut_are_refused(key):
    with pytest.raises(DataError, match="may hold only ASCII letters"):
        check_key(key)
    with pytest.raises(DataError, match="may hold only ASCII letters"):
        encode_members(Sample(key, [b"x"], METADATA))


def test_too_many_frames_are_refused():
    with pytest.raises(DataError, match=f"more than {MAX_FRAMES}"):
        encode_members(Sample("clip", [b""] * (MAX_FRAMES + 1), METADATA))


@pytest.mark.parametrize("cut", [1, 100, 511, 512, 513, 700, -1, -512, -600])
def test_cut_tar_data_is_refused(cut):
    content, _ = write_tar(Sample("clip", [bytes(700)] * 2, METADATA))
    with pytest.raises(DataError):
        decode_tar_range(content[:cut])


@given(st.binary(max_size=2000))
def test_noise_is_refused(content):
    with pytest.raises(DataError):
        decode_tar_range(content)


def test_incomplete_and_mixed_samples_are_refused():
    metadata = json.dumps(asdict(METADATA)).encode()
    with pytest.raises(DataError, match="no frames"):
        decode_members([("clip.json", metadata)])
    with pytest.raises(DataError, match="no metadata"):
        decode_members([("clip.000.jpg", b"x")])
    with pytest.raises(DataError, match="members of one sample"):
        decode_members([("clip.000.jpg", b"x"), ("other.json", metadata)])
    with pytest.raises(DataError, match="metadata of sample clip"):
        decode_members([("clip.000.jpg", b"x"), ("clip.json", b'{"video_id": 1}')])
