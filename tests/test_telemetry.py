import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dgl_scale.telemetry import MetricsWriter, read_metrics


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a small file system here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def tensorboard_points(run_folder: Path, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(run_folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_a_resumed_run_holds_every_step_once(tmp_path: Path) -> None:
    for start, stop in ((0, 5), (3, 7)):
        writer = MetricsWriter(tmp_path, start)
        for step in range(start + 1, stop):
            writer.record(step, {"loss": float(start)})
        writer.close()
    expected = [(1, 0), (2, 0), (3, 0), (4, 3), (5, 3), (6, 3)]
    assert [(record["step"], record["loss"]) for record in read_metrics(tmp_path)] == expected
    assert tensorboard_points(tmp_path, "loss") == expected


def test_a_full_disk_costs_no_run_and_no_line(small_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer = MetricsWriter(small_disk, 0)
    writer.record(1, {"loss": 1.0})
    filler = small_disk / "filler"
    with open(filler, "wb", buffering=0) as stream, pytest.raises(OSError, match="No space"):
        while True:
            stream.write(b"0" * 4096)
    for step in range(2, 300):
        writer.record(step, {"loss": 1.0, "a rather long name of a metric": 2.0})
    assert capsys.readouterr().err.count("warning: cannot write") == 2  # once a file
    filler.unlink()
    writer.record(300, {"loss": 1.0})
    writer.close()
    assert [step for step, _ in tensorboard_points(small_disk, "loss")] == list(range(1, 301))
    lines = (small_disk / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 301))
