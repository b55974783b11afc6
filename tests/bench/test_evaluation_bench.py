"""`dgl-scale bench evaluation` at the smallest size, and the split that it makes."""

import json
from pathlib import Path

import pytest

from dgl_scale.bench.command import main as bench
from dgl_scale.bench.synthetic_split import write_synthetic_split
from dgl_scale.data.index import load_split
from dgl_scale.data.reader import SampleReader
from tests.evaluation.conftest import CLIP


def test_a_synthetic_split_reads_back(tmp_path: Path) -> None:
    write_synthetic_split(tmp_path / "test", num_videos=3, num_frames=5, side=224, captions=2)
    index = load_split(tmp_path / "test")
    assert (index.num_videos, index.total_captions) == (3, 6)
    sample = SampleReader(index).read(2)
    assert len(sample.frames) == 5
    assert all(len(caption.split()) == 10 for caption in sample.metadata.captions)
    # As large as frames of real footage at this size and quality.
    assert 15_000 < sum(map(len, sample.frames)) / 5 < 60_000


@pytest.mark.slow
def test_measures_workers_beside_the_bare_forward(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip, report = tmp_path / "clip.json", tmp_path / "bench.json"
    clip.write_text(json.dumps(CLIP))
    words = ["evaluation", "--clip", str(clip), "--num-frames", "2", "--videos", "4", "--batch", "2", "--rounds", "1"]
    assert bench([*words, "--json", str(report)]) == 0
    content = json.loads(report.read_text())
    assert [one["name"] for one in content["contenders"]] == ["bare forward", "1 worker", "2 workers"]
    assert all(one["videos_per_second"] > 0 for one in content["contenders"])
    assert content["ratios"].keys() == {"one worker / bare forward", "two workers / one worker"}
    assert "two workers / one worker" in capsys.readouterr().out
