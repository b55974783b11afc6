from pathlib import Path

import pytest

from dgl_scale.errors import DataError
from shard_tools.annotations.annotation_files import AnnotationFile, check_disjoint, read_ids, read_text


@pytest.fixture
def file(tmp_path: Path) -> AnnotationFile:
    return AnnotationFile("lsmdc.train", tmp_path / "f.csv")


def text_of(file: AnnotationFile, content: bytes) -> str:
    file.path.write_bytes(content)
    return read_text(file)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_usual_encodings(file: AnnotationFile, encoding: str) -> None:
    assert text_of(file, "café – “no”\r\nплан"[: 11 if encoding == "cp1252" else None].encode(encoding)).startswith("café – “no”")


def test_lines_of_two_encodings_in_one_file(file: AnnotationFile) -> None:
    assert text_of(file, "один\n".encode() + "café\n".encode("cp1252") + "два".encode()) == "один\ncafé\nдва"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\nодин два".encode()[:-1], "line 2 is UTF-8 with broken characters; the file may be cut off"),
        (b"a\n\x81\x8d", "line 2 is text in neither UTF-8 nor Windows-1252"),
        (b"\x00\x01", "is no text"),
        (b"", "is empty"),
        (b" \n", "is empty"),
    ],
)
def test_what_is_no_text_is_refused_with_its_line(file: AnnotationFile, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=f"^lsmdc.train: .*{message}"):
        text_of(file, content)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read .*: Is a directory"):
        read_text(AnnotationFile("k", tmp_path))


def test_ids_of_a_list_once_and_in_order(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_bytes(b"\xef\xbb\xbfb\r\n\r\n a \r\nb\r\n")
    assert read_ids(AnnotationFile("k", tmp_path / "l.txt")) == ["b", "a"]
    (tmp_path / "l.csv").write_text('n,video_id\n1,b\n2," a"\n3,b\n')
    assert read_ids(AnnotationFile("k", tmp_path / "l.csv")) == ["b", "a"]


def test_a_video_of_two_splits_is_named() -> None:
    check_disjoint({"train": ["a", "a"], "test": ["b"]})
    with pytest.raises(DataError, match="video 'b' is in the files of split train and of split test"):
        check_disjoint({"train": ["a", "b"], "test": ["b"]})
