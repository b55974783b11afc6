import pickle
from pathlib import Path
from typing import Any

import pytest

from dgl_scale.dataset_config import MsvdConfig
from dgl_scale.errors import DataError
from shard_tools.annotations.msvd import read_msvd
from shard_tools.annotations.video_files import VideoFiles

FILES = VideoFiles(["-4wsuPCjDBc_5_15.avi", "a_b-c_dEfgh_0_12.avi", "zzzzzzzzzzz_1_2.avi"])
CAPTIONS = {
    "-4wsuPCjDBc_5_15": [["a", "squirrel", "eats"], ["a", "café"]],
    "a_b-c_dEfgh_0_12": [["two", "men"]],
    "zzzzzzzzzzz_1_2": [["rain"]],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "raw-captions.pkl").write_bytes(pickle.dumps(CAPTIONS))
    (tmp_path / "train.txt").write_text("a_b-c_dEfgh_0_12\r\n-4wsuPCjDBc_5_15\r\n")
    (tmp_path / "test.txt").write_text("zzzzzzzzzzz_1_2\n\n")
    return tmp_path


def config(folder: Path, captions: str = "raw-captions.pkl", **more: Any) -> MsvdConfig:
    return MsvdConfig(captions=str(folder / captions), train=str(folder / "train.txt"), test=str(folder / "test.txt"), **more)


def test_pickled_words_become_captions_in_the_order_of_the_lists(folder: Path) -> None:
    a, squirrel, rain = read_msvd(config(folder), FILES)
    assert (squirrel.video_id, squirrel.path, squirrel.split) == ("-4wsuPCjDBc_5_15", "-4wsuPCjDBc_5_15.avi", "train")
    assert squirrel.captions == ("a squirrel eats", "a café") and (squirrel.start, squirrel.end) == (0.0, None)
    assert a.extra == {"source_video": "a_b-c_dEfgh"}
    assert (rain.split, rain.captions) == ("test", ("rain",))


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_every_pickle_protocol(folder: Path, protocol: int) -> None:
    (folder / "raw-captions.pkl").write_bytes(pickle.dumps(CAPTIONS, protocol))
    assert read_msvd(config(folder), FILES)[1].captions == ("a squirrel eats", "a café")


def test_texts_of_a_python_2_pickle(folder: Path) -> None:
    # What Python 2 wrote for {"a_b-c_dEfgh_0_12": [["caf\xe9"]]}: byte strings (opcode U), here in Windows-1252.
    (folder / "raw-captions.pkl").write_bytes(b"\x80\x02}q\x00U\x10a_b-c_dEfgh_0_12q\x01]q\x02]q\x03U\x04caf\xe9q\x04aas.")
    (folder / "test.txt").write_text("a_b-c_dEfgh_0_12")
    (video,) = read_msvd(MsvdConfig(captions=str(folder / "raw-captions.pkl"), test=str(folder / "test.txt")), FILES)
    assert video.captions == ("café",)


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self.target,)


def test_code_in_a_pickle_is_refused_and_not_run(folder: Path) -> None:
    mark = folder / "mark"
    for value in (Bomb(mark), {"a_b-c_dEfgh_0_12": [Bomb(mark)]}):
        (folder / "raw-captions.pkl").write_bytes(pickle.dumps(value))
        with pytest.raises(DataError, match=r"names pathlib.*; only plain dicts, lists and texts .* nothing of it was run"):
            read_msvd(config(folder), FILES)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Bomb(mark)))
    assert mark.exists(), "the bomb is none: this test cannot fail"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"cos\nsystem\n(S'touch x'\ntR.", "names os.system"),
        (b"cposix\nsystem\n.", "names posix.system"),
        (b"\x80\x02c__builtin__\neval\n.", r"names __builtin__\.eval"),
        (b"Pfile\n.", "names a persistent object"),
        (pickle.dumps(CAPTIONS)[:-40], "no pickle, or is cut off"),
        (b"no pickle", "no pickle, or is cut off"),
        (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.", "no pickle, or is cut off"),
        # An empty list, stored as number two thousand million: it must not cost the memory of so many.
        (b"\x80\x02]r\xff\xff\xff\x7f.", "must hold a dict"),
        (b"", "is empty"),
        (pickle.dumps([1]), "must hold a dict"),
        (pickle.dumps({"a": "text"}), "must hold a dict of clip names to lists"),
    ],
)
def test_a_wrong_pickle_is_one_line(folder: Path, content: bytes, message: str) -> None:
    (folder / "raw-captions.pkl").write_bytes(content)
    with pytest.raises(DataError, match=f"msvd.captions: .*{message}") as error:
        read_msvd(config(folder), FILES)
    assert "\n" not in str(error.value)


def test_the_publishers_text_file(folder: Path) -> None:
    text = "# comment\n\n-4wsuPCjDBc_5_15 a squirrel eats\na_b-c_dEfgh_0_12 two men\n-4wsuPCjDBc_5_15 a nut\nzzzzzzzzzzz_1_2 rain\n"
    (folder / "AllVideoDescriptions.txt").write_text(text)
    assert read_msvd(config(folder, "AllVideoDescriptions.txt"), FILES)[1].captions == ("a squirrel eats", "a nut")
    (folder / "AllVideoDescriptions.txt").write_text("alone\n")
    with pytest.raises(DataError, match="line 1 has no caption"):
        read_msvd(config(folder, "AllVideoDescriptions.txt"), FILES)


def test_files_that_are_called_vid1_are_found_by_the_mapping(folder: Path) -> None:
    (folder / "map.txt").write_text("-4wsuPCjDBc_5_15 vid1\nzzzzzzzzzzz_1_2 vid1300\n")
    paths = {video.video_id: video.path for video in read_msvd(config(folder, mapping=str(folder / "map.txt")), VideoFiles(["v/vid1.avi"]))}
    assert paths == {
        "-4wsuPCjDBc_5_15": "v/vid1.avi",
        "a_b-c_dEfgh_0_12": "v/a_b-c_dEfgh_0_12.avi",
        "zzzzzzzzzzz_1_2": "v/zzzzzzzzzzz_1_2.avi",
    }
    (folder / "map.txt").write_text("a b c\n")
    with pytest.raises(DataError, match="msvd.mapping: .*line 1"):
        read_msvd(config(folder, mapping=str(folder / "map.txt")), FILES)
