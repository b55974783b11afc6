from pathlib import Path

import pytest

from dgl_scale.dataset_config import LsmdcConfig
from dgl_scale.errors import DataError
from shard_tools.annotations.lsmdc import read_lsmdc
from shard_tools.annotations.video_files import VideoFiles
from shard_tools.plan import sample_key

CLIP = "0001_American_Beauty_00.00.51.926-00.00.54.129"
OTHER = "1004_Juno_00.00.32.991-00.00.36.340"
FILES = VideoFiles([f"0001_American_Beauty/{CLIP}.avi", "1004_Juno/unrelated.avi"])


def line(clip: str, sentence: str, times: str = "00.00.51.926\t00.00.54.129\t\t") -> str:
    return f"{clip}\t{times}\t{sentence}"


def read(path: Path, content: bytes) -> list[tuple[str, ...]]:
    path.write_bytes(content)
    return [video.captions for video in read_lsmdc(LsmdcConfig(train=str(path)), FILES)]


def test_lines_without_header_joined_by_clip(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(f"{line(CLIP, 'SOMEONE sits.')}\n{line(OTHER, 'He runs.')}\n{line(CLIP, 'SOMEONE sits.')}\n")
    first, second = read_lsmdc(LsmdcConfig(train=str(tmp_path / "train.csv")), FILES)
    assert (first.video_id, first.split, first.captions) == (CLIP, "train", ("SOMEONE sits.", "SOMEONE sits."))
    assert (first.path, second.path) == (f"0001_American_Beauty/{CLIP}.avi", f"{OTHER}.avi")
    assert (first.start, first.end, first.extra) == (0.0, None, {"source_video": "0001_American_Beauty"})
    assert "." not in sample_key(first.video_id)


def test_quotes_mean_nothing_and_any_encoding_is_read(tmp_path: Path) -> None:
    sentence = 'He says, "Café – no" and " leaves'
    for encoding in ("utf-8", "utf-8-sig", "cp1252"):
        assert read(tmp_path / "t.csv", f"{line(CLIP, sentence)}\r\n{line(OTHER, 'x')}".encode(encoding)) == [(sentence,), ("x",)]


def test_a_line_separator_within_a_sentence_ends_no_line(tmp_path: Path) -> None:
    assert read(tmp_path / "t.csv", f"{line(CLIP, 'one' + chr(0x2028) + 'two' + chr(0x85) + 'three')}\n".encode()) == [
        ("one\u2028two\x85three",)
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"{CLIP},1,2,3,4,a sentence\n", r"lsmdc.train: .*line 1 has 1 columns between tabs instead of 6"),
        (f"{line(CLIP, 'fine')}\n{CLIP}\t1\t2\t3\t4\n", "line 2 has 5 columns"),
        (line(CLIP, "a\tb"), "line 1 has 7 columns"),
        (line(" ", "a"), "line 1"),
    ],
)
def test_wrong_columns_are_refused_with_their_line(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path / "t.csv", content.encode())


def test_a_clip_in_two_splits_is_refused(tmp_path: Path) -> None:
    for name in ("train", "val"):
        (tmp_path / name).write_text(line(CLIP, "a"))
    with pytest.raises(DataError, match=r"is in the files of split train and of split validation"):
        read_lsmdc(LsmdcConfig(train=str(tmp_path / "train"), validation=str(tmp_path / "val")), FILES)
