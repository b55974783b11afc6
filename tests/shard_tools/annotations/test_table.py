import datetime
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from dgl_scale.errors import ConfigError, DataError
from dgl_scale.shards_config import ColumnsConfig
from dgl_scale.storage.urls import is_url
from shard_tools.annotations.table import read_table
from shard_tools.annotations.videos import AnnotatedVideo
from shard_tools.failures import Status


def read(path: Path, **columns: str) -> list[AnnotatedVideo]:
    return read_table(path, ColumnsConfig(**columns), "train")


def jsonl(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_jsonl_with_lists_segments_splits_and_extra(tmp_path: Path) -> None:
    row = {"path": "a/x.mp4", "captions": [" one ", "two"], "id": "x", "part": "test", "from": 1, "to": 2.5, "twin": "y", "none": None}
    (video,) = read(jsonl(tmp_path / "t.jsonl", row), video_id="id", split="part", start="from", end="to")
    assert video == AnnotatedVideo("x", "a/x.mp4", ("one", "two"), "test", 1.0, 2.5, {"twin": "y"}, None)


def test_csv_rows_of_one_video_are_joined_in_order(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text('﻿path,captions,note\nx.mp4,"first, caption",n1\ny.mp4,other,\nx.mp4,second,n2\n', encoding="utf-8")
    x, y = read(table)
    assert (x.video_id, x.captions, x.extra) == ("x", ("first, caption", "second"), {"note": "n1"})
    assert (y.video_id, y.captions) == ("y", ("other",))


def test_parquet_keeps_json_values_and_drops_others(tmp_path: Path) -> None:
    rows = [{"path": "x.mp4", "captions": ["a"], "n": 3, "nan": float("nan"), "raw": b"\xff", "day": datetime.date(2026, 1, 1)}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.parquet")
    (video,) = read(tmp_path / "t.parquet")
    assert video.captions == ("a",) and video.extra == {"n": 3}


def test_captions_are_kept_as_they_are(tmp_path: Path) -> None:
    captions = ["word " * 1999 + "wordy", "一只猫在弹钢琴", "a 🐈‍⬛ plays 🎹"]
    (video,) = read(jsonl(tmp_path / "t.jsonl", {"path": "x.mp4", "captions": captions}))
    assert video.captions == tuple(captions) and len(video.captions[0]) == 10_000
    csv = tmp_path / "t.csv"
    csv.write_text("path,captions\n" + "".join(f"x.mp4,{caption}\n" for caption in captions), encoding="utf-8")
    assert read(csv)[0].captions == tuple(captions)


@pytest.mark.parametrize(
    ("captions", "status"),
    [
        ([], Status.NO_CAPTION),
        (None, Status.NO_CAPTION),
        ("", Status.NO_CAPTION),
        (["", " \n"], Status.NO_CAPTION),
        (5, Status.BAD_CAPTION),
        (["a", None], Status.BAD_CAPTION),
        (["a", {"text": "b"}], Status.BAD_CAPTION),
        (["\ud800"], Status.BAD_CAPTION),
    ],
)
def test_bad_captions_cost_their_video_only(tmp_path: Path, captions: Any, status: Status) -> None:
    table = jsonl(tmp_path / "t.jsonl", {"path": "x.mp4", "captions": captions}, {"path": "y.mp4", "captions": "fine"})
    bad, good = read(table)
    assert bad.problem is not None and bad.problem.status is status and good.problem is None
    if status is Status.BAD_CAPTION:
        assert "line 1" in bad.problem.message and str(tmp_path) not in bad.problem.message


def test_one_bad_row_makes_the_whole_video_bad(tmp_path: Path) -> None:
    rows = [{"path": "x.mp4", "captions": "fine"}, {"path": "x.mp4", "captions": 5}]
    (video,) = read(jsonl(tmp_path / "t.jsonl", *rows))
    assert video.problem is not None and video.problem.status is Status.BAD_CAPTION


@pytest.mark.parametrize(("start", "end"), [("x", None), (-1, None), (2, 2), (3, 1.5), (True, 2), ("nan", None), (0, "inf")])
def test_bad_segments_cost_their_video_only(tmp_path: Path, start: Any, end: Any) -> None:
    row = {"path": "x.mp4", "captions": "c", "s": start, "e": end}
    (video,) = read(jsonl(tmp_path / "t.jsonl", row), start="s", end="e")
    assert video.problem is not None and video.problem.status is Status.BAD_SEGMENT


def test_one_id_for_two_videos_is_refused(tmp_path: Path) -> None:
    rows = [{"path": "a/x.mp4", "captions": "c"}, {"path": "b/x.mp4", "captions": "c"}]
    with pytest.raises(DataError, match="two videos have the id 'x'"):
        read(jsonl(tmp_path / "t.jsonl", *rows))
    splits = [{"path": "x.mp4", "captions": "c", "s": "train"}, {"path": "x.mp4", "captions": "c", "s": "test"}]
    with pytest.raises(DataError, match="split 'train' and 'test'"):
        read(jsonl(tmp_path / "t.jsonl", *splits), split="s")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "file,captions\nx.mp4,c\n", "no column 'path'; it has file, captions"),
        ("t.csv", "path,captions\nx.mp4,a,b\n", "line 2 has more cells"),
        ("t.csv", 'path,captions\nx.mp4,"a"b\n', "line 2 is not valid CSV"),
        ("t.csv", "path,captions\n", "has no rows"),
        ("t.jsonl", '{"path": "x.mp4"', "line 1 is not valid JSON"),
        ("t.jsonl", "[1]\n", "line 1 must be a JSON object"),
        ("t.jsonl", '{"path": null, "captions": "c"}\n', "column 'path' must be a text, got None"),
        ("t.parquet", "no parquet", "not a valid Parquet file"),
    ],
)
def test_a_malformed_table_is_refused_with_its_place(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read(tmp_path / name)


def test_a_bad_split_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"split '\.\./x'"):
        read(jsonl(tmp_path / "t.jsonl", {"path": "x.mp4", "captions": "c", "s": "../x"}), split="s")


def test_missing_unknown_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read annotations"):
        read(tmp_path / "none.csv")
    with pytest.raises(ConfigError, match="must end in"):
        read(tmp_path / "t.xlsx")
    (tmp_path / "t.csv").write_bytes(b"path,captions\n\xff,\n")
    with pytest.raises(DataError, match="not UTF-8"):
        read(tmp_path / "t.csv")


def test_a_webvid_csv_of_urls(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(
        "videoid,contentUrl,duration,page_dir,name\n"
        '21179416,https://ak.example.net/videos/clip-21179416.mp4?s=1.2,PT00H00M11S,006001_006050,"Aerial shot, winter forest"\n'
        "5629184,s3://bucket/a/5629184.webm,PT00H00M29S,071501_071550,Senior couple\n"
    )
    named = {"video": "contentUrl", "caption": "name"}
    first, second = read(tmp_path / "t.csv", video_id="videoid", **named)
    assert (first.video_id, first.captions) == ("21179416", ("Aerial shot, winter forest",))
    assert first.path.startswith("https://ak.example.net/") and first.extra == {"duration": "PT00H00M11S", "page_dir": "006001_006050"}
    assert is_url(first.path) and is_url(second.path) and not is_url("s3/a.mp4")
    assert [video.video_id for video in read(tmp_path / "t.csv", **named)] == ["clip-21179416", "5629184"]


def test_a_path_made_of_several_columns(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("videoid,page_dir,name\n7,a_b,x\n8,,y\n")
    columns = {"video": "{page_dir}/{videoid}.mp4", "caption": "name", "video_id": "videoid"}
    with pytest.raises(DataError, match="line 3: column 'page_dir' must be a text"):
        read(tmp_path / "t.csv", **columns)
    (tmp_path / "t.csv").write_text("videoid,page_dir,name\n7,a_b,x\n")
    (video,) = read(tmp_path / "t.csv", **columns)
    assert (video.video_id, video.path, video.extra) == ("7", "a_b/7.mp4", {})
    with pytest.raises(DataError, match="no column 'page'; it has videoid, page_dir, name"):
        read(tmp_path / "t.csv", **{**columns, "video": "{page}/{videoid}.mp4"})


def test_other_encodings_by_config(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes("path,captions\r\nx.mp4,Café\r\n".encode("cp1252"))
    with pytest.raises(DataError, match="is not UTF-8 text: .* set encoding, such as encoding=cp1252"):
        read(tmp_path / "t.csv")
    assert read_table(tmp_path / "t.csv", ColumnsConfig(), "train", "cp1252")[0].captions == ("Café",)
    with pytest.raises(DataError, match="is not UTF-16 text"):
        read_table(tmp_path / "t.csv", ColumnsConfig(), "train", "utf-16")
