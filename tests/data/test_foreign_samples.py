import json

import pytest

from dgl_scale.data.foreign_samples import read_sample
from dgl_scale.errors import DataError


@pytest.mark.parametrize(
    ("members", "frames", "captions"),
    [
        ({"jpg": b"a", "txt": b" a dog\n"}, [b"a"], ["a dog"]),
        ({"jpeg": b"a", "cls": b"3", "json": b'{"caption": "a dog", "width": 3}'}, [b"a"], ["a dog"]),
        ({"010.jpg": b"c", "002.jpg": b"b", "000.jpg": b"a", "json": b'{"captions": ["x", " ", "y"]}'}, [b"a", b"b", b"c"], ["x", "y"]),
        ({"f0.jpg": b"a", "txt": "Hündin".encode(), "json": b"not even json"}, [b"a"], ["Hündin"]),
        ({"jpg": b"a", "json": b'{"captions": [], "text": "t", "txt": 3}'}, [b"a"], ["t"]),
    ],
)
def test_customary_layouts(members, frames, captions):
    assert read_sample(members) == (frames, captions)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"txt": b"a"}, r"no frames \(.jpg\), only txt"),
        ({"mp4": b"a", "txt": b"a"}, r"holds a video \(mp4\) and no frames; build shards of frames"),
        ({"jpg": b"a"}, "no caption"),
        ({"jpg": b"a", "txt": b"  "}, "no caption"),
        ({"jpg": b"a", "json": json.dumps(["a"]).encode()}, "no caption"),
        ({"jpg": b"a", "json": b"{"}, "captions cannot be read"),
        ({"jpg": b"a", "txt": b"\xff"}, "captions cannot be read"),
    ],
)
def test_what_is_no_sample(members, message):
    with pytest.raises(DataError, match=message):
        read_sample(members)
