import pytest

from dgl_scale.errors import DataError
from shard_tools.annotations.video_files import VideoFiles


def test_files_are_found_by_name_whatever_suffix_and_folder() -> None:
    files = VideoFiles(["a/x.webm", "b/c/y.MP4", "z.1-2.avi"])
    assert (files.find("x"), files.find("y"), files.find("z.1-2"), files.get("z")) == ("a/x.webm", "b/c/y.MP4", "z.1-2.avi", None)
    assert files.find("w", "y", "x") == "b/c/y.MP4"
    assert "a/x.webm" in files and "a/x.mp4" not in files and len(files) == 3


def test_a_missing_file_is_expected_beside_the_others() -> None:
    assert VideoFiles(["all/a.mkv", "all/b.mkv", "all/c.mp4"]).find("d") == "all/d.mkv"
    assert VideoFiles(["m/a.avi", "n/b.avi"]).find("d") == "d.avi"
    assert VideoFiles([]).find("d") == "d.mp4"


def test_two_files_of_one_name_are_refused_when_asked_for() -> None:
    files = VideoFiles(["b/x.mp4", "a/x.webm", "y.mp4"])
    assert files.find("y") == "y.mp4"
    with pytest.raises(DataError, match="two files are called 'x': a/x.webm and b/x.mp4; keep one"):
        files.find("x")
