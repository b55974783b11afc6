import html.parser
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from dgl_scale.data.samples import decode_members
from dgl_scale.shards_config import ColumnsConfig, FramesConfig, ShardsConfig
from shard_tools.annotations.table import read_table
from shard_tools.annotations.videos import AnnotatedVideo
from shard_tools.stats import collect, main, summarise
from shard_tools.stats_report import histogram
from shard_tools.verify import read_tar
from tests.shard_tools.finished_build import finish_build


@pytest.fixture(scope="module")
def finished(videos_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished build of good and bad videos, one of them with captions longer than what is read first."""
    output, columns = tmp_path_factory.mktemp("stats") / "shards", ColumnsConfig(video_id="id", split="split")
    frames = FramesConfig(short_side=32)
    shards_config = ShardsConfig(dataset="toy", format="folder", videos=str(videos_folder), output=str(output), frames=frames)
    videos = read_table(videos_folder / "annotations.jsonl", columns, "train")
    videos.append(AnnotatedVideo("talker", "good/03.mp4", ("word " * 9_999 + "end", "<b>&"), "train"))
    return finish_build(videos, shards_config, 8)


@pytest.fixture
def build(finished: Path, tmp_path: Path) -> Path:
    """A copy to write into, and to damage."""
    return Path(shutil.copytree(finished, tmp_path / "build"))


def test_the_numbers_are_those_of_the_samples(build: Path) -> None:
    for name, split in collect(build).items():
        samples = [decode_members(members) for tar in sorted((build / name).glob("*.tar")) for _, members in read_tar(tar)]
        words = [len(caption.split()) for sample in samples for caption in sample.metadata.captions]
        assert split.values["words"] == words
        assert split.values["duration"] == [sample.metadata.duration for sample in samples]
        assert split.values["frames"] == [len(sample.frames) for sample in samples]
        assert split.sizes == {"43 x 32": len(samples)} and split.decoders == {"decord": len(samples)}
        summary = summarise(split)
        assert summary["samples"] == len(samples) and summary["words"]["max"] == max(words)
        assert summary["captions"]["mean"] == round(len(words) / len(samples), 3)
    assert summary["failures"] == {"bad_path": 4, "unreadable": 1, "empty": 1, "truncated": 1, "missing": 1, "no_caption": 1}
    assert summary["failed"] == 9 and summary["words"]["max"] == 10_000


class Page(html.parser.HTMLParser):
    """Counts elements, and keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not any(name in {"src", "href"} for name, _ in attrs), "the page needs another file"

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_command_prints_and_draws(build: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(build)]) == 0
    text = capsys.readouterr().out
    assert "train: 10 samples in 3 shards, 9 failed" in text and "bad_path                              4" in text
    assert "decoded by decord (10)" in text
    numbers = json.loads((build / "stats.json").read_text())
    assert set(numbers) == {"test", "train"} and numbers["train"]["duration"]["count"] == 10
    page = Page()
    page.feed((build / "stats.html").read_text())
    assert page.tags.count("svg") == 10 and "bad_path" in page.text and "script" not in page.tags


@pytest.mark.parametrize(
    ("values", "bars", "counts"),
    [
        ([3], 1, [1]),
        ([1, 1, 2, 5], 5, [2, 1, 0, 0, 1]),
        ([0.0] * 5, 1, [5]),
        ([*range(400), 10_000_000], 24, None),
        (np.linspace(0.1, 7.3, 500).tolist(), 24, None),
    ],
)
def test_a_histogram_counts_every_value_once(values: list[float], bars: int, counts: list[int] | None) -> None:
    found = [int(number.replace(",", "")) for number in re.findall(r"and more: ([\d,]+)<", histogram(values))]
    assert sum(found) == len(values) and (counts is None or found == counts)
    assert len(found) == bars
    assert max(found) < 100, "one far value leaves a single bar"


def test_what_is_no_build_is_one_line(tmp_path: Path, build: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none")]) == 1
    (build / "test" / next((build / "test").glob("*.tar")).name).unlink()
    assert main([str(build)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and "build.json" in lines[0] and "cannot be read: No such file or directory; build the shards again" in lines[1]
